"""docs/curation.svg, drawn from a selection of planted rows: `python -m tools.curation_picture > docs/curation.svg`.

The rows are those of the quickstart, with faults planted among them that a file from the world has: questions of the
held-out suites, copies, answers that end in a template's token. A bar a step, as long as it has rows: what it leaves,
and what it takes by reason; below them the two sets that a selection hands on, itself and its random twin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np

from posttrain.curation.pipeline import select
from posttrain.curation.selection import Selection
from posttrain.data.sources.shipped import PACKAGE_DATA
from tools.architecture import STYLE

LEAKED, COPIED_EVERY, BROKEN_EVERY = 120, 8, 13
STEPS: list[dict[str, Any]] = [
    {"kind": "decontaminate", "against": ["embedded"]},
    {"kind": "score", "score": "form", "keep": {"least": 1}},
    {"kind": "score", "score": "length", "keep": {"most": 24}},
    {"kind": "deduplicate"},
    {"kind": "budget", "rows": 500, "by": "random"},
]
WIDTH, MARGIN, LABEL, BAR, GAP, TOP = 1000, 24, 130, 26, 46, 74
COLOURS = """
  .kept { fill: #54aeff; } .gone0 { fill: #d1242f; } .gone1 { fill: #bf8700; } .twin { fill: #8250df; }
  .from { fill: none; stroke: #8250df; stroke-dasharray: 4 3; }
  @media (prefers-color-scheme: dark) {
    .kept { fill: #388bfd; } .gone0 { fill: #f85149; } .gone1 { fill: #d29922; } .twin { fill: #a371f7; }
    .from { stroke: #a371f7; }
  }
"""


def rows() -> list[dict[str, Any]]:
    """The quickstart's demonstrations with what is planted among them."""

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (PACKAGE_DATA / name).read_text(encoding="utf-8").splitlines()]

    clean = lines("demonstrations.jsonl")
    leaked = [conversation(row["prompt"], row["answer"]) for row in lines("heldout_facts.jsonl")[:LEAKED]]
    copied = clean[::COPIED_EVERY]
    broken = [
        conversation(row["messages"][0]["content"], row["messages"][1]["content"] + "<|im_end|>")
        for row in clean[::BROKEN_EVERY]
    ]
    return [*clean, *leaked, *copied, *broken]


def conversation(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def curation_svg() -> str:
    """The picture as SVG."""
    picked = select(rows(), steps=STEPS, progress=False)
    scale = (WIDTH - 2 * MARGIN - LABEL) / picked.rows_read
    height = TOP + (len(picked.steps) + 2) * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(_title(picked))}</title>",
        f"<style>{STYLE}{COLOURS}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(MARGIN, 32, _title(picked), "title"),
        _text(MARGIN, 52, "the quickstart's rows with leaks, copies and broken answers planted among them", "soft"),
        *_bars(picked, scale),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _title(picked: Selection) -> str:
    return f"{picked.rows_read:,} rows read, {len(picked.kept):,} kept, {len(picked.twin):,} drawn beside them"


def _bars(picked: Selection, scale: float) -> Iterator[str]:
    start, top = MARGIN + LABEL, TOP
    for result in picked.steps:
        yield _text(start - 10, top + 17, result.step.label, "name end")
        left = float(start)
        width = len(result.taken.kept) * scale
        yield _bar(left, top, width, "kept")
        yield _text(left + 8, top + 17, f"{len(result.taken.kept):,}", "")
        left += width
        yield from _removed(result.by_reason, left, top, scale)
        top += GAP
    clean = next(result for result in picked.steps if result.step.label == "decontaminate")
    yield _text(start - 10, top + 17, "data.jsonl", "name end")
    yield _bar(start, top, len(picked.kept) * scale, "kept")
    yield _text(start + 8, top + 17, f"{len(picked.kept):,}: the selection", "")
    top += GAP
    twin = picked.twins[0]
    shared = int(np.isin(twin.rows, picked.pool.kept).sum())
    yield _text(start - 10, top + 17, "random.jsonl", "name end")
    yield _bar(start, top, len(clean.taken.kept) * scale, "from")
    yield _bar(start, top, len(twin.rows) * scale, "twin")
    said = f"{len(twin.rows):,}: its twin, of the {twin.drawn_from:,} that hold no test; {shared:,} rows are in both"
    yield _text(start + len(twin.rows) * scale + 8, top + 17, said, "")


def _removed(by_reason: Mapping[str, int], left: float, top: float, scale: float) -> Iterator[str]:
    said = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in by_reason.items())
    for place, count in enumerate(by_reason.values()):
        yield _bar(left, top, count * scale, f"gone{place % 2}")
        left += count * scale
    # Beside the bar where there is room; at the right edge it would leave the picture, so it stands over the bar's end.
    if said and left + 8 + 7 * len(said) > WIDTH - MARGIN:
        yield _text(WIDTH - MARGIN, top + BAR + 11, said, "soft end")
    elif said:
        yield _text(left + 8, top + 17, said, "soft")


def _bar(left: float, top: float, width: float, name: str) -> str:
    return f'<rect class="{name}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR}"/>'


def _text(left: float, top: float, text: str, name: str) -> str:
    return f'<text class="{name}" x="{left:.1f}" y="{top:.1f}">{escape(text)}</text>'


if __name__ == "__main__":
    print(curation_svg(), end="")
