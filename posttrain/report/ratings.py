"""Ratings of a run's policies, by each of its suites of win rates."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.report.numbers import count, interval, number
from posttrain.runs.read import RunContents
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.ratings import RatedPolicy, Ratings


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure and its interval as the page shows them; both empty where nothing was measured."""

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
    weights = [f"{one.feature} {number(one.weight.value)}" for one in record.style if one.weight is not None]
    if weights:
        said.append(f"Log-odds of one typical difference in style: {', '.join(weights)}.")
    orders = record.orders
    if orders is not None and orders.agreement is not None:
        said.append(
            f"Of {count(orders.comparisons)} comparisons in both orders, {number(orders.agreement.value, 'share')} "
            "have the same outcome."
        )
    return RatedSuite(
        suite=name,
        anchor=record.anchor or "",
        prompts=count(record.prompts),
        rows=[_row(policy, record.anchor) for policy in record.policies],
        said=said,
    )


def _row(policy: RatedPolicy, anchor: str | None) -> RatedRow:
    anchored = policy.policy == anchor
    points = [_cell(figure, anchored) for figure in (policy.rating, policy.controlled)]
    shares = [_cell(figure, False, "share") for figure in (policy.win_rate, policy.lc_win_rate)]
    return RatedRow(policy.policy, [*points, *shares], count(policy.games))


def _cell(figure: Figure | None, anchored: bool, unit: str = "") -> Cell:
    if figure is None:
        return Cell("", "")
    # Ratings are shown to the point: their intervals are tens of points wide.
    value, low, high = figure.value, figure.low, figure.high
    if unit == "":
        ends = "" if anchored or low is None or high is None else f"{low:.0f} to {high:.0f}"
        return Cell(f"{value:.0f}", ends)
    return Cell(number(value, unit), interval(low, high, unit))
