"""docs/architecture.svg, drawn from the imports of the source: `python -m tools.architecture > docs/architecture.svg`.

On top what a row becomes, each arrow with the file that does it; beneath it the layers, with an arrow from a part to
each part that it imports, as far as no longer way leads there (the transitive reduction): 14 arrows say what 70 would.
The lowest layer is drawn without arrows, for every part stands on it.

Only the places of the boxes are written here by hand. Text has its own colours for light and dark pages, and a ground
of its own, because a picture in a page cannot know the page's colour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tools.imports import LAYERS, PACKAGE, modules, part_graph

FLOW = (
    ("rows", "data/read.py"),
    ("Example", "data/encode.py"),
    ("TokenTree", "data/trees.py"),
    ("Batch", "models/tree/logprobs.py"),
    ("TokenLogprobs", "losses/preference.py"),
    ("LossOutput", "training/step.py"),
    ("step", "training/loop.py"),
    ("metrics", "runs/folder.py"),
    ("run folder", "report/page.py"),
    ("report", ""),
)
"""What a row becomes, and the file that makes the next of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a part stands in its layer, in hundredths of the width, and what it is for: Place(42, 80, "recipes")."""

    left: float
    right: float
    purpose: str


PLACES = {
    "cli": Place(0, 100, "one file per verb: run, check, audit, generate, compare, score, merge, samples"),
    "launching": Place(76.8, 90.8, "torchrun, Slurm, Ray"),
    "sweeps": Place(52.9, 68.9, "grids, seeds, choices"),
    "training": Place(3.6, 83, "one loop for every method; a kind of stage is a row of a table, a method too"),
    "evaluate": Place(40.3, 55.3, "suites, intervals"),
    "inference": Place(26, 39, "search, votes"),
    "serve": Place(0, 8, "OpenAI"),
    "synthesis": Place(9.9, 22.9, "rows to make"),
    "curation": Place(56.5, 68.5, "rows to keep"),
    "planning": Place(69.3, 79.7, "what will it take"),
    "rewards": Place(51, 71, "verifiers, rubrics, judges"),
    "rollout": Place(73.4, 85.3, "engines: ids in, ids out"),
    "auditing": Place(13.2, 26.2, "flaws of the rows"),
    "starting": Place(32.5, 44.5, "your own rows"),
    "converting": Place(91.9, 99.9, "tools' files"),
    "models": Place(20, 84, "log-probs over token trees, adapters, model folders, reward heads"),
    "data": Place(14, 38, "rows to Examples to TokenTrees"),
    "config": Place(42, 80, "recipes: keys, values, errors"),
    "report": Place(85.9, 100, "a folder as a page"),
    "advantages": Place(65.8, 76.8, "who gets credit"),
    "losses": Place(81, 100, "pure functions, literal tables"),
    "diagnostics": Place(0, 16, "metrics, checks, alarms"),
    "parallel": Place(46.5, 61.5, "many as one"),
    "runs": Place(20.2, 42.2, "the run folder: records, files"),
    "types": Place(0, 13, "the nouns"),
    "outputs": Place(15, 27, "what comes back"),
    "errors": Place(29, 42, "one exception tree"),
    "arguments": Place(44, 58, "checks at the door"),
    "sampling": Place(60, 73, "one distribution"),
    "intervals": Place(75, 85, "confidence"),
    "embedded": Place(87, 100, "the model inside"),
}
"""The parts that are drawn, where the package has them. Neighbours leave room for the arrows that pass between them."""

NOT_DRAWN = {"__main__", "lazy_torch", "text_file"}

WIDTH, MARGIN, GUTTER = 1000, 24, 92
BOX, GAP = 62, 30
"""Height of a box, and between two layers."""
TOP = 218
"""Where the layers begin, under the band of the flow."""
FILE_LETTER = 4.6
"""Width of a letter of a file's name, about."""
LANE = 16
"""How far arrows stay from each other, and from the corners of boxes."""

LAYER_NAMES = (
    "the ground",
    "pure pieces",
    "rows, recipes",
    "the model",
    "use of models",
    "judgement",
    "the loop",
    "many runs",
    "commands",
)

STYLE = """
  .page { fill: #ffffff; stroke: #d0d7de; } .box { fill: #f6f8fa; stroke: #8c959f; } .ground { fill: #eef1f4; }
  .step { fill: #ddf4ff; stroke: #54aeff; } text { fill: #1f2328; font-family: -apple-system, "Segoe UI", "Noto Sans",
  Helvetica, Arial, sans-serif; font-size: 12px; } .name { font-size: 14px; font-weight: 600; } .soft { fill: #59636e; }
  .file { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 11px;
  fill: #59636e; } .middle { text-anchor: middle; } .end { text-anchor: end; } .title { font-size: 15px;
  font-weight: 600; } .arrow { fill: none; stroke: #0969da; stroke-width: 1.5; } .head { fill: #0969da; }
  .tick { stroke: #8c959f; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #3d444d; } .box { fill: #151b23; stroke: #656c76; } .ground { fill: #1c232c; }
    .step { fill: #0c2d4d; stroke: #388bfd; } text { fill: #f0f6fc; } .soft, .file { fill: #9198a1; }
    .arrow { stroke: #58a6ff; } .head { fill: #58a6ff; } .tick { stroke: #656c76; }
  }
"""


# ---------------------------------------------------------------- what is drawn


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The arrows that no longer way replaces; the graph must be without circles (tests/surface/test_import_layers.py).

    reduced({"a": {"b", "c"}, "b": {"c"}}) -> {"a": {"b"}, "b": {"c"}}
    """

    def reachable(node: str) -> set[str]:
        return set().union(*({target} | reachable(target) for target in graph.get(node, ())))

    return {node: targets - set().union(*(reachable(target) for target in targets)) for node, targets in graph.items()}


def arrows(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The imports to draw, from the top; those of the ground and of what is not drawn are left away."""
    drawn = {
        part: {target for target in targets if LAYERS[target] > 0}
        for part, targets in graph.items()
        if part not in NOT_DRAWN
    }
    pairs = [(part, target) for part, targets in reduced(drawn).items() for target in targets]
    return sorted(pairs, key=lambda pair: (-LAYERS[pair[0]], PLACES[pair[0]].left, PLACES[pair[1]].left))


# ---------------------------------------------------------------- where it is drawn


@dataclass(frozen=True, slots=True)
class Box:
    """The rectangle of a part, in pixels of the picture."""

    left: float
    right: float
    top: float
    bottom: float

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2


def boxes(parts: list[str]) -> dict[str, Box]:
    """A rectangle for every part; layers without a part take no room.

    Raises:
        KeyError: a part has no place yet; PLACES says where it stands and what it is for.
    """
    missing = sorted(set(parts) - PLACES.keys())
    if missing:
        raise KeyError(f"give a place to {', '.join(missing)}, in PLACES of tools/architecture.py")
    scale = (WIDTH - 2 * MARGIN - GUTTER) / 100
    start = MARGIN + GUTTER
    drawn = {}
    for row, layer in enumerate(sorted({LAYERS[part] for part in parts}, reverse=True)):
        top = TOP + row * (BOX + GAP)
        for part in (part for part in parts if LAYERS[part] == layer):
            place = PLACES[part]
            drawn[part] = Box(start + place.left * scale, start + place.right * scale, top, top + BOX)
    return drawn


def route(source: Box, target: Box, others: list[Box], taken: list[float]) -> list[tuple[float, float]]:
    """The corners of an arrow: straight down where the two boxes overlap, along the layer between neighbours, else
    with one bend above the target. Adds the columns that it uses to `taken`."""
    if source.top == target.top:
        near, far = (source.left, target.right) if source.left > target.left else (source.right, target.left)
        return [(near, source.top + BOX / 2), (far, source.top + BOX / 2)]

    between = [box for box in others if source.bottom < box.top and box.bottom < target.top]
    straight = _column(max(source.left, target.left), min(source.right, target.right), between, taken)
    if straight is not None:
        taken.append(straight)
        return [(straight, source.bottom), (straight, target.top)]

    # Near each other: every column that the stretch between them passes is an arrow that it crosses.
    down = _column(source.left, source.right, between, taken, near=target.middle)
    into = _column(target.left, target.right, [], taken, near=source.middle)
    if down is None or into is None:
        raise ValueError("no way for an arrow: leave room between the boxes, in PLACES of tools/architecture.py")
    taken.extend((down, into))
    bend = target.top - GAP / 2
    return [(down, source.bottom), (down, bend), (into, bend), (into, target.top)]


def _column(
    left: float, right: float, between: list[Box], taken: list[float], near: float | None = None
) -> float | None:
    """The middle of the widest free stretch from left to right, or its point nearest to `near`; None without one."""
    blocks = [(box.left - LANE / 2, box.right + LANE / 2) for box in between]
    blocks += [(x - LANE, x + LANE) for x in taken]
    stretches, at = [], left + LANE
    for start, end in sorted(blocks):
        stretches.append((at, min(start, right - LANE)))
        at = max(at, end)
    stretches.append((at, right - LANE))
    free = [stretch for stretch in stretches if stretch[1] >= stretch[0]]
    if not free:
        return None
    if near is not None:
        wanted = near
        closest = min((min(max(wanted, start), end) for start, end in free), key=lambda x: abs(x - wanted))
        return round(closest)
    start, end = max(free, key=lambda stretch: stretch[1] - stretch[0])
    return round((start + end) / 2)


# ---------------------------------------------------------------- the drawing


def picture(package: Path = PACKAGE) -> str:
    """The whole SVG for the package as it is."""
    graph = part_graph(modules(package))
    parts = [part for part in LAYERS if part in graph and part not in NOT_DRAWN]
    places = boxes(parts)
    height = max(box.bottom for box in places.values()) + 62
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        'aria-label="What a row becomes, and the layers of the package">',
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="head" d="M0 0 L8 4 L0 8 z"/></marker>',
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8"/>',
        *_flow(),
        _text(MARGIN, TOP - 22, "Layers: an arrow is an import, and none goes up", "title"),
    ]
    taken: list[float] = []
    for source, target in arrows(graph):
        corners = route(places[source], places[target], list(places.values()), taken)
        path = " L".join(f"{x:g} {y:g}" for x, y in corners)
        lines.append(f'<path class="arrow" d="M{path}" marker-end="url(#head)"/>')
    for part, box in places.items():
        lines.extend(_box(part, box, package))
    for top, layer in sorted({(box.top, LAYERS[part]) for part, box in places.items()}):
        lines.append(_text(MARGIN, top + BOX / 2 + 4, LAYER_NAMES[layer], "soft"))
    legend = (
        "An import that a longer way implies is left out. Every part may import the ground: no arrows are drawn to it."
    )
    lines.append(_text(MARGIN + GUTTER, height - 24, legend, "soft"))
    return "\n".join([*lines, "</svg>", ""])


def _flow() -> Iterator[str]:
    """The band: a row of chevrons, and the file of each step over or under the point where two of them meet."""
    yield _text(MARGIN, 40, "What a row becomes", "title")
    letters = sum(len(noun) for noun, _ in FLOW)
    padding, tip, seam = 40, 12, 4
    scale = (WIDTH - 2 * MARGIN - (tip - seam) - padding * len(FLOW)) / letters
    left, top, bottom = float(MARGIN), 84, 124
    half = (top + bottom) / 2
    for index, (noun, file) in enumerate(FLOW):
        right = left + padding + len(noun) * scale
        edge, notch = right - seam, left + (tip if index else 0)
        points = [(left, top), (edge, top), (edge + tip, half), (edge, bottom), (left, bottom), (notch, half)]
        outline = " ".join(f"{x:.0f},{y:.0f}" for x, y in points)
        yield f'<polygon class="step" points="{outline}"/>'
        yield _text((left + right + tip) / 2, half + 4, noun, "name middle", size=12.5)
        if file:
            above = index % 2 == 0
            start, end, label = (top, top - 11, top - 14) if above else (bottom, bottom + 12, bottom + 23)
            yield f'<line class="tick" x1="{right:.0f}" x2="{right:.0f}" y1="{start}" y2="{end}"/>'
            yield _text(right, label, file, "file middle")
        left = right


def _box(part: str, box: Box, package: Path) -> Iterator[str]:
    ground = " ground" if LAYERS[part] == 0 else ""
    width = box.right - box.left
    yield f'<rect class="box{ground}" x="{box.left:.0f}" y="{box.top:g}" width="{width:.0f}" height="{BOX}" rx="5"/>'
    folders = sorted(path.parent.name for path in (package / part).glob("*/__init__.py"))
    lines = [(part, "name middle"), (PLACES[part].purpose, "soft middle")]
    if folders:
        lines.append((_fitting([f"{name}/" for name in folders], width), "file middle"))
    first = box.top + BOX / 2 - 8 * (len(lines) - 1) + 4
    for index, (line, style) in enumerate(lines):
        yield _text(box.middle, first + 16 * index, line, style)


def _fitting(names: list[str], width: float) -> str:
    """As many of the names as a box is wide for, and dots for the others."""
    for count in range(len(names), 0, -1):
        text = "  ".join(names[:count] + ["…"] * (count < len(names)))
        if len(text) * FILE_LETTER <= width:
            return text
    return ""


def _text(x: float, y: float, text: str, style: str, size: float | None = None) -> str:
    own = f' style="font-size: {size:g}px"' if size else ""
    return f'<text class="{style}" x="{x:.0f}" y="{y:.0f}"{own}>{escape(text)}</text>'


if __name__ == "__main__":
    print(picture(), end="")
