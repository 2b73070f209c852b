"""pass@k: what each policy reaches in k attempts, and whether a stage widened that or only sharpened it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.report.charts import Chart, Key, Note, Shape, Tick, dots, joined, spread_labels, y_axis_ticks
from posttrain.report.numbers import MISSING, Axis, axis, count, difference, interval, number
from posttrain.runs.read import RunContents
from posttrain.runs.records.evaluation import Figure, PassAtKChange, PassAtKCounts, PassAtKPoint

COLOURS = ("chosen", "second", "rejected", "warn")
"""Of the stages between the start, which is grey, and the last, which has the accent."""
KINDS = {"widened": "good", "cannot tell": "warn"}

KPoint = tuple[int, Figure]
PassAtKCurve = tuple[str, list[KPoint]]
"""A policy and its pass@k, by k."""


@dataclass(frozen=True, slots=True)
class PasskFinding:
    """One verdict: PasskFinding("plain", "grpo only sharpened ...", wide=False)."""

    kind: str
    text: str
    wide: bool
    """Over several stages at once: from the start to the end."""


@dataclass(frozen=True, slots=True)
class PasskCell:
    value: str
    interval: str


@dataclass(frozen=True, slots=True)
class PasskRow:
    """One k over all policies, and the last stage's difference."""

    k: str
    cells: list[PasskCell]
    moved: PasskCell | None
    sign: str
    """better, worse or same; "" where nothing is compared."""


@dataclass(frozen=True, slots=True)
class PasskSuite:
    """One suite as the template lays it out."""

    name: str
    prompts: str
    samples: str
    findings: list[PasskFinding]
    chart: Chart
    policies: list[str]
    compared: str
    """Whose difference the rows show: "grpo − sft"."""
    rows: list[PasskRow]


def passk_view(run: RunContents) -> list[PasskSuite]:
    """The section's suites, in the order of the final table; empty where no suite asked for pass@k."""
    changed = dict.fromkeys(change.suite for change in run.pass_at_k)
    counted = dict.fromkeys(suite for _, evaluated in run.measured for suite in evaluated.counts)
    suites = []
    for name in dict.fromkeys([*changed, *counted]):
        counts = {policy: found.counts[name] for policy, found in run.measured if name in found.counts}
        curves = [(policy, points) for policy, record in counts.items() if (points := _points(record))]
        if curves:
            own = [change for change in run.pass_at_k if change.suite == name]
            suites.append(_suite(name, counts[curves[-1][0]], curves, own))
    return suites


def _points(counts: PassAtKCounts) -> list[KPoint]:
    return [
        (point.k, Figure(point.value, point.low, point.high))
        for point in counts.curve
        # k is drawn by its logarithm, and files may hold anything.
        if point.k is not None and point.k >= 1 and point.value is not None
    ]


def _suite(name: str, counts: PassAtKCounts, curves: list[PassAtKCurve], changes: list[PassAtKChange]) -> PasskSuite:
    policies = [policy for policy, _ in curves]
    places = {policy: index for index, policy in enumerate(policies)}
    # The last stage against the one before it: against the start every earlier stage's gain would be its own.
    last = next((change for change in changes if change.trained == policies[-1] and _adjacent(change, places)), None)
    return PasskSuite(
        name=name,
        prompts=count(len(counts.correct)),
        samples=count(counts.samples),
        findings=[_finding(change, places) for change in changes if change.trained in places],
        chart=_chart(name, curves),
        policies=policies,
        compared=f"{last.trained} − {last.base}" if last else "",
        rows=_rows(curves, last.points if last else ()),
    )


def _adjacent(change: PassAtKChange, places: dict[str, int]) -> bool:
    """A stage against the policy before it, not the end against the start."""
    base, trained = places.get(change.base), places.get(change.trained)
    return base is not None and trained is not None and trained - base == 1


def _finding(change: PassAtKChange, places: dict[str, int]) -> PasskFinding:
    last = change.points[-1] if change.points else None
    # At the largest k, where prompts drop out of reach; "sharpened" alone would sound like a success.
    narrowed = last is not None and last.clear and last.difference is not None and last.difference.value < 0
    kind = "warn" if narrowed else KINDS.get(change.verdict, "plain")
    return PasskFinding(kind, change.said, wide=not _adjacent(change, places))


def _rows(curves: list[PassAtKCurve], moved: Sequence[PassAtKPoint]) -> list[PasskRow]:
    by_k = {point.k: point for point in moved}
    by_policy = [dict(points) for _, points in curves]
    rows = []
    for k in sorted({k for points in by_policy for k in points}):
        scores = [points.get(k) for points in by_policy]
        cells = [
            PasskCell(MISSING, "")
            if score is None
            else PasskCell(number(score.value, "share"), interval(score.low, score.high, "share"))
            for score in scores
        ]
        point = by_k.get(k)
        gap = point.difference if point is not None else None
        if point is None or gap is None or gap.low is None or gap.high is None:
            rows.append(PasskRow(str(k), cells, None, ""))
            continue
        reach = f"{difference(gap.low, 'share').removesuffix(' points')} to {difference(gap.high, 'share')}"
        sign = "same" if not point.clear else "better" if gap.value > 0 else "worse"
        rows.append(PasskRow(str(k), cells, PasskCell(difference(gap.value, "share"), reach), sign))
    return rows


# ---------------------------------------------------------------- the picture


def _chart(name: str, curves: list[PassAtKCurve]) -> Chart:
    """pass@k against k on a logarithmic axis, with the 95 % intervals as bands."""
    ks = sorted({k for _, points in curves for k, _ in points})
    # Base 2: each doubling of the attempts has the same width, and a policy that only sharpened meets its base on the
    # right.
    low, high = math.log2(ks[0]), math.log2(ks[-1])
    across = Axis(low - 0.12, high + 0.12) if high > low else Axis(low - 1, high + 1)
    up = axis(0.0, 1.0, room=0.03)
    paths: list[Shape] = []
    notes: list[Note] = []
    keys: list[Key] = []
    for (policy, points), colour in zip(curves, _colours(len(curves)), strict=True):
        middle = [(across.place(math.log2(k)), up.place(score.value)) for k, score in points]
        paths += [
            Shape(_band(points, across, up), colour, "area"),
            Shape(joined(middle), colour, "main"),
            Shape(dots(middle), colour, "main dot"),
        ]
        notes.append(Note(100 - 100 * middle[-1][1], number(points[-1][1].value, "share"), colour))
        keys.append(Key(policy, colour))
    said = "; ".join(
        f"{policy} " + ", ".join(f"{number(score.value, 'share')} at k = {k}" for k, score in points)
        for policy, points in curves
    )
    return Chart(
        title=name,
        unit="pass@k",
        help="the chance that at least one of k sampled answers is right",
        said=f"{name}, pass@k: {said}.",
        caption="bands: 95 % intervals over prompts",
        paths=sorted(paths, key=lambda path: path.look != "area"),
        x_ticks=[Tick(100 * across.place(math.log2(k)), str(k)) for k in ks],
        y_ticks=y_axis_ticks(up, "share"),
        x_title="k",
        notes=spread_labels(notes, gap=6.0),
        keys=keys,
    )


def _colours(policies: int) -> list[str]:
    if policies == 1:
        return ["accent"]
    between = [COLOURS[index % len(COLOURS)] for index in range(policies - 2)]
    return ["ink-3", *between, "accent"]


def _band(points: Sequence[KPoint], across: Axis, up: Axis) -> str:
    known = [
        (across.place(math.log2(k)), up.place(score.low), up.place(score.high))
        for k, score in points
        if score.low is not None and score.high is not None
    ]
    there, back = [(x, high) for x, _, high in known], [(x, low) for x, low, _ in reversed(known)]
    return f"{joined([*there, *back])}Z" if known else ""
