"""pass@k: what each policy reaches in k attempts, and whether a stage widened that or only sharpened it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.report.charts import Chart, Key, Note, Path, Tick, dots, joined, spread_labels, y_axis_ticks
from posttrain.report.numbers import MISSING, Axis, axis, count, difference, interval, number
from posttrain.runs.read import Run, Score
from posttrain.runs.tolerant import Files, as_list, as_mapping, as_number, as_text

COLOURS = ("chosen", "second", "rejected", "warn")
"""Of the stages between the start, which is grey, and the last, which has the accent."""
KINDS = {"widened": "good", "cannot tell": "warn"}

Point = tuple[int, Score]
Curve = tuple[str, list[Point]]
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


def passk_view(run: Run) -> list[PasskSuite]:
    """The section's suites, in the order of the final table; empty where no suite asked for pass@k."""
    files = Files(run.folder)
    changes = [as_mapping(one) for one in as_list(files.record(run.folder / "pass_at_k.json").get("changes"))]
    names = dict.fromkeys(as_text(one.get("suite")) for one in changes)
    folders = [run.folder / "start", *(stage.folder for stage in run.stages)]
    found = dict.fromkeys(
        path.name.removesuffix(".counts.json")
        for folder in folders
        for path in sorted((folder / "evaluations").glob("*.counts.json"))
    )
    suites = []
    for name in dict.fromkeys([*names, *found]):
        records = {folder.name: files.record(folder / "evaluations" / f"{name}.counts.json") for folder in folders}
        curves = [(policy, points) for policy, record in records.items() if (points := _points(record))]
        if curves:
            own = [one for one in changes if one.get("suite") == name]
            suites.append(_suite(name, records[curves[-1][0]], curves, own))
    return suites


def _points(record: dict[str, Any]) -> list[Point]:
    points = []
    for one in map(as_mapping, as_list(record.get("curve"))):
        k, value = as_number(one.get("k")), as_number(one.get("value"))
        if k is not None and k >= 1 and value is not None:
            points.append((int(k), Score(value, as_number(one.get("low")), as_number(one.get("high")))))
    return points


def _suite(name: str, record: dict[str, Any], curves: list[Curve], changes: list[dict[str, Any]]) -> PasskSuite:
    policies = [policy for policy, _ in curves]
    places = {policy: index for index, policy in enumerate(policies)}
    last = next((one for one in changes if one.get("trained") == policies[-1] and _adjacent(one, places)), {})
    return PasskSuite(
        name=name,
        prompts=count(len(as_list(record.get("correct")))),
        samples=count(as_number(record.get("samples"))),
        findings=[_finding(one, places) for one in changes if one.get("trained") in places],
        chart=_chart(name, curves),
        policies=policies,
        compared=f"{as_text(last.get('trained'))} − {as_text(last.get('base'))}" if last else "",
        rows=_rows(curves, last),
    )


def _adjacent(one: dict[str, Any], places: dict[str, int]) -> bool:
    """A stage against the policy before it, not the end against the start."""
    base, trained = places.get(as_text(one.get("base"))), places.get(as_text(one.get("trained")))
    return base is not None and trained is not None and trained - base == 1


def _finding(one: dict[str, Any], places: dict[str, int]) -> PasskFinding:
    ends = [as_mapping(point) for point in as_list(one.get("points"))[-1:]]
    moved = as_number(as_mapping(ends[0].get("difference")).get("value")) if ends else None
    narrowed = bool(ends and ends[0].get("clear") and moved is not None and moved < 0)
    kind = "warn" if narrowed else KINDS.get(as_text(one.get("verdict")), "plain")
    return PasskFinding(kind, as_text(one.get("said")), wide=not _adjacent(one, places))


def _rows(curves: list[Curve], last: dict[str, Any]) -> list[PasskRow]:
    moved = {as_number(point.get("k")): point for point in map(as_mapping, as_list(last.get("points")))}
    by_policy = [dict(points) for _, points in curves]
    rows = []
    for k in sorted({k for points in by_policy for k in points}):
        scores = [points.get(k) for points in by_policy]
        cells = [
            PasskCell(MISSING, "")
            if one is None
            else PasskCell(number(one.value, "share"), interval(one.low, one.high, "share"))
            for one in scores
        ]
        point = moved.get(float(k), {})
        gap = {key: as_number(value) for key, value in as_mapping(point.get("difference")).items()}
        value, low, high = gap.get("value"), gap.get("low"), gap.get("high")
        if value is None or low is None or high is None:
            rows.append(PasskRow(str(k), cells, None, ""))
            continue
        reach = f"{difference(low, 'share').removesuffix(' points')} to {difference(high, 'share')}"
        sign = "same" if not point.get("clear") else "better" if value > 0 else "worse"
        rows.append(PasskRow(str(k), cells, PasskCell(difference(value, "share"), reach), sign))
    return rows


# ---------------------------------------------------------------- the picture


def _chart(name: str, curves: list[Curve]) -> Chart:
    """pass@k against k on a logarithmic axis, with the 95 % intervals as bands."""
    ks = sorted({k for _, points in curves for k, _ in points})
    low, high = math.log2(ks[0]), math.log2(ks[-1])
    across = Axis(low - 0.12, high + 0.12) if high > low else Axis(low - 1, high + 1)
    up = axis(0.0, 1.0, room=0.03)
    paths: list[Path] = []
    notes: list[Note] = []
    keys: list[Key] = []
    for (policy, points), colour in zip(curves, _colours(len(curves)), strict=True):
        middle = [(across.place(math.log2(k)), up.place(score.value)) for k, score in points]
        paths += [
            Path(_band(points, across, up), colour, "area"),
            Path(joined(middle), colour, "main"),
            Path(dots(middle), colour, "main dot"),
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


def _band(points: Sequence[Point], across: Axis, up: Axis) -> str:
    known = [
        (across.place(math.log2(k)), up.place(score.low), up.place(score.high))
        for k, score in points
        if score.low is not None and score.high is not None
    ]
    there, back = [(x, high) for x, _, high in known], [(x, low) for x, low, _ in reversed(known)]
    return f"{joined([*there, *back])}Z" if known else ""
