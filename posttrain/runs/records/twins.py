"""twins.json: what a selection of rows is worth, measured against as many rows at random.

Written after each stage that was evaluated, of recipes in which one stage trains on a selection and a sibling on the
selection's twin; `posttrain.evaluate.twins` computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.runs.records.base import Record, WholeFile, other_keys
from posttrain.runs.records.evaluation import Figure


@dataclass(frozen=True, slots=True)
class TwinFigure(Record):
    """One measure of both: TwinFigure("sums", "accuracy", "accuracy", "share", Figure(0.55), Figure(0.43),
    Figure(0.12, 0.06, 0.18, 200), p=0.001, verdict="gain", said="sums (accuracy): on_picked beats ...")"""

    suite: str
    metric: str
    title: str
    unit: str
    selected: Figure | None
    twin: Figure | None
    difference: Figure | None
    """Selection minus twin over the same prompts; without an interval where no scores of single prompts were kept."""
    p: float | None
    """How often chance alone makes as large a difference, by signs."""
    verdict: str
    """gain or loss (chance does not explain it), chance, same (no prompt differs), or unknown (no interval)."""
    said: str
    """In words."""


@dataclass(frozen=True, slots=True)
class TwinComparison(Record):
    """TwinComparison("picked", "random", "on_picked", "on_random", selected_rows=800, twin_rows=800, shared=176,
    differs=(), said="...", figures=(TwinFigure(...), ...))"""

    selection: str
    rows: str
    """The twin's: random, or random_tokens."""
    selected: str
    """The stage that trained on the selection."""
    twin: str
    selected_rows: int | None
    twin_rows: int | None
    shared: int | None
    """Rows that both have."""
    differs: tuple[str, ...]
    """Settings in which the two stages differ beside their rows."""
    said: str
    """How many measures gained and lost; or why nothing is compared."""
    figures: tuple[TwinFigure, ...]


@dataclass(frozen=True, slots=True)
class TwinComparisons(WholeFile):
    """twins.json: TwinComparisons((TwinComparison("picked", "random", "on_picked", "on_random", ...),))."""

    FILE = "twins.json"

    comparisons: tuple[TwinComparison, ...]
    more: Mapping[str, Any] = other_keys()
