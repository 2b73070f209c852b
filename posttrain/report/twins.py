"""What a selection is worth: a table for each pair of a selection and its random twin."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.report.numbers import MISSING, count, difference, interval, number
from posttrain.runs.read import RunContents
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.twins import TwinComparison, TwinFigure

SIGNS = {"gain": "better", "loss": "worse"}
"""The class of a difference; of the others "same", for none is told from chance."""


@dataclass(frozen=True, slots=True)
class TwinRow:
    """TwinRow("sums", "accuracy", "55.0 %", "43.0 %", "+12.0 points", "+6.0 to +18.0 points", "better")"""

    suite: str
    title: str
    selected: str
    twin: str
    difference: str
    interval: str
    sign: str


@dataclass(frozen=True, slots=True)
class TwinTable:
    """One comparison as the template lays it out."""

    title: str
    rows: str
    """How many rows each trained on."""
    said: str
    selected: str
    twin: str
    figures: list[TwinRow]


def twin_tables(run: RunContents) -> list[TwinTable]:
    """In the order of the recipe; empty where no stage trained on a selection's twin."""
    return [
        TwinTable(
            f"{comparison.selected} against {comparison.twin}",
            _rows(comparison),
            comparison.said,
            comparison.selected,
            comparison.twin,
            [_row(figure) for figure in comparison.figures],
        )
        for comparison in run.twins
    ]


def _rows(comparison: TwinComparison) -> str:
    by = "rows" if comparison.rows == "random" else "rows, as many tokens,"
    return (
        f"{count(comparison.selected_rows)} rows that {comparison.selection} chose, against "
        f"{count(comparison.twin_rows)} {by} drawn at random; {count(comparison.shared)} are in both"
    )


def _row(figure: TwinFigure) -> TwinRow:
    moved = figure.difference
    spread = ""
    if moved is not None and moved.low is not None and moved.high is not None:
        # One unit for both bounds, after the second.
        low = difference(moved.low, figure.unit).removesuffix(" points")
        spread = f"{low} to {difference(moved.high, figure.unit)}"
    return TwinRow(
        figure.suite,
        figure.title,
        _value(figure.selected, figure.unit),
        _value(figure.twin, figure.unit),
        MISSING if moved is None else difference(moved.value, figure.unit),
        spread,
        SIGNS.get(figure.verdict, "same"),
    )


def _value(figure: Figure | None, unit: str) -> str:
    if figure is None:
        return MISSING
    spread = interval(figure.low, figure.high, unit)
    return f"{number(figure.value, unit)} ({spread})" if spread else number(figure.value, unit)
