"""docs/curation.svg is what a selection of the planted rows comes to."""

from __future__ import annotations

from pathlib import Path

from posttrain.curation.pipeline import select
from tools.curation_picture import BROKEN_EVERY, COPIED_EVERY, LEAKED, STEPS, curation_svg, rows

PICTURE = Path(__file__).parents[3] / "docs" / "curation.svg"


def test_the_picture_is_current() -> None:
    """After a change that is meant: python -m tools.curation_picture > docs/curation.svg"""
    assert PICTURE.read_text(encoding="utf-8") == curation_svg()


def test_every_planted_fault_is_found() -> None:
    picked = select(rows(), steps=STEPS, progress=False)
    leaks, form, _, copies, _ = picked.steps
    assert leaks.by_reason["contaminated"] == LEAKED
    assert form.by_reason["below"] == len(range(0, 1659, BROKEN_EVERY))
    # The quickstart's rows have 21 copies of their own, as its audit says.
    assert copies.by_reason["duplicate"] >= len(range(0, 1659, COPIED_EVERY))
