"""Accuracy against what is spent: a suite's strategies in one picture, the table, and what it comes to in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from posttrain.report.charts import Chart, Key, Note, Shape, Tick, dots, joined, spread_labels, y_axis_ticks
from posttrain.report.numbers import MISSING, Axis, axis, count, difference, interval, number, tick_labels, ticks
from posttrain.runs.read import RunContents
from posttrain.runs.records.budget import BudgetChoice, BudgetCurve, BudgetCurves, BudgetFinding, BudgetPoint
from posttrain.runs.records.evaluation import Figure

COLOURS = ("accent", "chosen", "rejected", "second", "bad", "ink", "warn", "good")
"""Of what chooses: majority, each scorer, each strategy, in this order and then from the beginning."""
LOOKS = {"oracle": "rule", "weighted": "held-out"}
"""How a kind's line is drawn where it is not solid: weighted by a scorer is its plain line dashed."""


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One point as the table has it."""

    method: str
    """Only in the first row of its curve."""
    point: str
    accuracy: str
    interval: str
    tokens: str
    scored: str
    seconds: str
    stopped: str


@dataclass(frozen=True, slots=True)
class PriceRow:
    """Who is best at a price."""

    n: str
    tokens: str
    best: str
    second: str
    ahead: str
    interval: str
    clear: bool


@dataclass(frozen=True, slots=True)
class DifficultyRow:
    rates: str
    prompts: str
    choices: str
    chosen: str
    fixed: str


@dataclass(frozen=True, slots=True)
class PolicyBudget:
    """One model's curves as the template lays them out."""

    policy: str
    findings: Sequence[BudgetFinding]
    charts: list[Chart]
    prices: list[PriceRow]
    rows: list[BudgetRow]
    difficulty: list[DifficultyRow]


@dataclass(frozen=True, slots=True)
class BudgetSection:
    """One suite: the last model that was asked, and those before it."""

    name: str
    prompts: str
    samples: str
    tokens: str
    last: PolicyBudget
    earlier: list[PolicyBudget]


def budget_view(run: RunContents) -> list[BudgetSection]:
    """The section's suites, in the order in which they were asked; empty where no suite measured a budget."""
    names = dict.fromkeys(suite for _, evaluated in run.measured for suite in evaluated.budgets)
    sections = []
    for name in names:
        records = [(policy, found.budgets[name]) for policy, found in run.measured if name in found.budgets]
        views = [_policy(policy, record) for policy, record in records if any(map(_known, record.curves))]
        if views:
            record = records[-1][1]
            sections.append(
                BudgetSection(
                    name,
                    count(record.prompts),
                    count(record.samples),
                    number(record.tokens_per_answer),
                    views[-1],
                    views[:-1][::-1],
                )
            )
    return sections


def _policy(policy: str, record: BudgetCurves) -> PolicyBudget:
    curves = [curve for curve in record.curves if _known(curve)]
    charts = [
        _chart(policy, curves, lambda point: point.tokens, "tokens that the model sampled for one prompt", "tokens"),
        _chart(policy, curves, lambda point: point.seconds, "seconds of one prompt, all side by side", "seconds"),
    ]
    difficulty = record.difficulty
    return PolicyBudget(
        policy,
        [finding for finding in record.findings if finding.said],
        [chart for chart in charts if chart is not None],
        [_price(choice) for choice in record.choices if choice.best],
        [row for curve in curves for row in _rows(curve)],
        []
        if difficulty is None
        else [
            DifficultyRow(
                number(one.low, "share") if one.low == one.high else interval(one.low, one.high, "share"),
                count(one.prompts),
                " / ".join(dict.fromkeys(one.choices)),
                number(one.chosen, "share"),
                number(one.fixed, "share"),
            )
            for one in difficulty.bins
        ],
    )


def _known(curve: BudgetCurve) -> bool:
    return any(_value(point) is not None for point in curve.points)


def _value(point: BudgetPoint) -> Figure | None:
    figure = point.accuracy
    return figure if figure is not None and figure.value is not None else None


def _price(choice: BudgetChoice) -> PriceRow:
    gap = choice.difference
    known = gap is not None and gap.low is not None and gap.high is not None
    return PriceRow(
        count(choice.n),
        count(choice.tokens),
        choice.best,
        choice.second or MISSING,
        difference(gap.value, "share") if gap is not None and known else MISSING,
        _reach(gap) if gap is not None and known else "",
        bool(choice.clear),
    )


def _reach(gap: Figure) -> str:
    """The bounds of a difference in points: "−1.0 to +9.0 points"."""
    assert gap.low is not None and gap.high is not None
    return f"{difference(gap.low, 'share').removesuffix(' points')} to {difference(gap.high, 'share')}"


def _rows(curve: BudgetCurve) -> list[BudgetRow]:
    rows = []
    for place, point in enumerate(curve.points):
        figure = _value(point)
        low, high = (figure.low, figure.high) if figure is not None else (None, None)
        rows.append(
            BudgetRow(
                curve.name if place == 0 else "",
                point.label,
                number(figure.value, "share") if figure is not None else MISSING,
                interval(low, high, "share"),
                count(point.tokens),
                count(point.scored) if point.scored else "",
                number(point.seconds),
                ", ".join(f"{count(times)} {why}" for why, times in (point.stopped or {}).items()),
            )
        )
    return rows


# ---------------------------------------------------------------- the picture


def _chart(
    policy: str,
    curves: Sequence[BudgetCurve],
    spent: Callable[[BudgetPoint], float | None],
    title: str,
    unit: str,
) -> Chart | None:
    """Accuracy against tokens or seconds, on a logarithmic axis; an upright line at each point is its 95 % interval."""
    drawn = [(curve, _places(curve, spent)) for curve in curves]
    places = [place for _, own in drawn for place in own]
    if not places:
        return None
    across = axis(min(x for x, _ in places), max(x for x, _ in places), log=True)
    highest = max(figure.high if figure.high is not None else figure.value for _, figure in places)
    up = axis(0.0, min(1.0, max(highest, 0.05)), room=0.03)
    paths: list[Shape] = []
    notes: list[Note] = []
    keys: list[Key] = []
    for (curve, own), colour in zip(drawn, _colours(curves), strict=True):
        if not own:
            continue
        middle = [(across.place(x), up.place(figure.value)) for x, figure in own]
        look = LOOKS.get(curve.kind, "main")
        bars = "".join(
            joined([(across.place(x), up.place(figure.low)), (across.place(x), up.place(figure.high))])
            for x, figure in own
            if figure.low is not None and figure.high is not None
        )
        paths += [Shape(bars, colour, "raw"), Shape(joined(middle), colour, look)]
        if curve.kind != "oracle":  # no way to an answer: it is a line to be measured by
            paths.append(Shape(dots(middle), colour, "main dot"))
        notes.append(Note(100 - 100 * middle[-1][1], number(own[-1][1].value, "share"), colour))
        keys.append(Key(curve.name, colour, {"main": "line", "rule": "dotted"}.get(look, "dashed")))
    said = "; ".join(
        f"{curve.name} " + ", ".join(f"{number(figure.value, 'share')} at {number(x)} {unit}" for x, figure in own)
        for curve, own in drawn
        if own
    )
    return Chart(
        title=f"accuracy of {policy}",
        unit=f"against {unit}",
        help=title,
        said=f"Accuracy of {policy} against {title}: {said}.",
        caption="upright lines: 95 % intervals over prompts; dotted: what no choice among the answers can exceed",
        paths=sorted(paths, key=lambda path: path.look != "raw"),
        x_ticks=_log_ticks(across),
        y_ticks=y_axis_ticks(up, "share"),
        x_title=f"{title}, log scale",
        notes=spread_labels(notes, gap=6.0),
        keys=keys,
    )


def _places(curve: BudgetCurve, spent: Callable[[BudgetPoint], float | None]) -> list[tuple[float, Figure]]:
    found = []
    for point in curve.points:
        x, figure = spent(point), _value(point)
        # By their logarithm, and files may hold anything.
        if x is not None and x > 0 and figure is not None:
            found.append((x, figure))
    return sorted(found, key=lambda place: place[0])


def _log_ticks(scale: Axis) -> list[Tick]:
    values = ticks(scale, 5)
    labels = tick_labels(values, "", log=True)
    return [Tick(100 * scale.place(value), label) for value, label in zip(values, labels, strict=True)]


def _colours(curves: Sequence[BudgetCurve]) -> list[str]:
    """One colour for each way to choose; plain and weighted by one scorer share theirs."""
    known: dict[str, str] = {}
    colours = []
    for curve in curves:
        if curve.kind == "oracle":
            colours.append("ink-3")
            continue
        key = f"scorer {curve.scorer}" if curve.scorer else curve.name
        colours.append(known.setdefault(key, COLOURS[len(known) % len(COLOURS)]))
    return colours
