"""Ratings of a run's policies, by each of its suites of win rates."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.report.numbers import MINUS, count, interval, number
from posttrain.runs.read import RunContents
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.ratings import RatedPolicy, Ratings


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure and its interval as the page shows them; both empty where nothing was measured."""

    column: str
    """What it is a figure of, said again where the page is too narrow for heads."""
    value: str
    interval: str


@dataclass(frozen=True, slots=True)
class RatedRow:
    policy: str
    cells: list[Cell]
    """Rating, rating at equal style, win rate, win rate at equal length."""
    games: str


@dataclass(frozen=True, slots=True)
class RatedSuite:
    """A suite's table as the template lays it out."""

    suite: str
    anchor: str
    prompts: str
    rows: list[RatedRow]
    said: list[str]


def ratings_view(run: RunContents) -> list[RatedSuite]:
    """A table for each suite; none where no policies were rated."""
    if run.ratings is None:
        return []
    return [_suite(name, record) for name, record in run.ratings.suites.items() if record.policies]


def _suite(name: str, record: Ratings) -> RatedSuite:
    said = list(record.notes)
    weights = [f"{one.feature} {_ranged(one.weight)}" for one in record.style if one.weight is not None]
    if weights:
        said.append(f"Log-odds of one typical difference in style: {', '.join(weights)}.")
    orders = record.orders
    if orders is not None and orders.agreement is not None:
        said.append(
            f"Of {count(orders.comparisons)} comparisons in both orders, {_ranged(orders.agreement, 'share')} "
            "have the same outcome."
        )
    if orders is not None and orders.lean is not None:
        said.append(f"The answer that is shown first has {_ranged(orders.lean, 'share')} of a point more for it.")
    return RatedSuite(
        suite=name,
        anchor=record.anchor or "",
        prompts=count(record.prompts),
        rows=[_row(policy, record.anchor) for policy in record.policies],
        said=said,
    )


def _row(policy: RatedPolicy, anchor: str | None) -> RatedRow:
    anchored = policy.policy == anchor
    cells = [
        _cell("rating", policy.rating, anchored),
        _cell("at equal style", policy.controlled, anchored),
        _cell(f"wins over {anchor}", policy.win_rate, False, "share"),
        _cell("at equal length", policy.lc_win_rate, False, "share"),
    ]
    return RatedRow(policy.policy, cells, count(policy.games))


def _ranged(figure: Figure, unit: str = "") -> str:
    """0.730 (0.480 to 1.03)"""
    ends = interval(figure.low, figure.high, unit)
    return number(figure.value, unit) + (f" ({ends})" if ends else "")


def _points(rating: float) -> str:
    return f"{rating:.0f}".replace("-", MINUS)


def _cell(column: str, figure: Figure | None, anchored: bool, unit: str = "") -> Cell:
    if figure is None:
        return Cell(column, "", "")
    # Ratings are shown to the point: their intervals are tens of points wide.
    value, low, high = figure.value, figure.low, figure.high
    if unit == "":
        ends = "" if anchored or low is None or high is None else f"{_points(low)} to {_points(high)}"
        return Cell(column, _points(value), ends)
    return Cell(column, number(value, unit), interval(low, high, unit))
