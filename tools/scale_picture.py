"""Who talks to whom in a run of several processes, as a picture.

python -m tools.scale_picture > docs/scale.svg
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from tools.architecture import STYLE

WIDTH, HEIGHT = 1000, 554
TITLE = "One recipe on four processes, with two servers that sample"


@dataclass(frozen=True, slots=True)
class Box:
    """Box(40, 90, 300, 60, "rank 0", ("speaks, decides, writes",))"""

    left: float
    top: float
    width: float
    height: float
    name: str
    lines: tuple[str, ...] = ()
    kind: str = "box"


BOXES = (
    Box(
        24, 84, 952, 52, "launcher", ("torchrun, --processes N, slurm or ray: starts the ranks, and starts them again",)
    ),
    Box(
        24,
        196,
        226,
        104,
        "rank 0",
        ("drives the recipe", "the only one that speaks", "and writes the run folder"),
        "step",
    ),
    Box(266, 196, 160, 104, "rank 1", ("the same functions,", "in lockstep", "logs/rank-1.log")),
    Box(442, 196, 160, 104, "rank 2", ("the same functions,", "in lockstep", "logs/rank-2.log")),
    Box(618, 196, 160, 104, "rank 3", ("the same functions,", "in lockstep", "logs/rank-3.log")),
    Box(72, 332, 706, 60, "collectives", ("gradients or shards, figures as (sum, count), rollouts, errors",), "ground"),
    Box(818, 196, 158, 104, "vLLM server 0", ("ids in; ids and", "log-probs back", "weights by version")),
    Box(818, 332, 158, 104, "vLLM server 1", ("watched, and started", "again with the weights", "of now")),
    Box(
        24,
        468,
        952,
        60,
        "run folder, on a file system that all see",
        ("checkpoints (each rank its shards), rollouts, metrics, model",),
    ),
)
ARROWS = (
    ("M 137 136 V 192", "end"),
    ("M 346 136 V 192", "end"),
    ("M 522 136 V 192", "end"),
    ("M 698 136 V 192", "end"),
    ("M 137 304 V 328", "both"),
    ("M 346 304 V 328", "both"),
    ("M 522 304 V 328", "both"),
    ("M 698 304 V 328", "both"),
    ("M 48 304 V 464", "end"),
    ("M 200 192 V 166 H 897 V 192", "both"),
    ("M 798 166 V 384 H 814", "end"),
)
"""Each as a path, and at which of its ends a head stands."""


def picture() -> Iterator[str]:
    """The lines of the SVG."""
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    yield f"<title>{escape(TITLE)}</title>"
    yield f"<style>{STYLE}</style>"
    yield '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
    yield ' orient="auto-start-reverse"><path class="head" d="M 0 0 L 8 4 L 0 8 z"/></marker></defs>'
    yield f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>'
    yield f'<text class="title" x="24" y="34">{escape(TITLE)}</text>'
    yield (
        '<text class="soft" x="24" y="56">every rank knows the whole step and computes its share of it; '
        "the numbers are those of one process</text>"
    )
    for path, heads in ARROWS:
        both = ' marker-start="url(#head)"' if heads == "both" else ""
        yield f'<path class="arrow" d="{path}" marker-end="url(#head)"{both}/>'
    for box in BOXES:
        yield from _drawn(box)
    yield "</svg>"


def _drawn(box: Box) -> Iterator[str]:
    yield (f'<rect class="{box.kind}" x="{box.left}" y="{box.top}" width="{box.width}" height="{box.height}" rx="6"/>')
    yield f'<text class="name" x="{box.left + 14}" y="{box.top + 24}">{escape(box.name)}</text>'
    for place, line in enumerate(box.lines):
        yield f'<text class="soft" x="{box.left + 14}" y="{box.top + 42 + 18 * place}">{escape(line)}</text>'


if __name__ == "__main__":
    print("\n".join(picture()))
