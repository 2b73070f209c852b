"""The section of an online stage: what it came to, what it sampled, and how it got there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from posttrain.intervals import average, quantile
from posttrain.report.bands import MOST_LEVELS, band_chart, level_chart, score_chart, trend_chart
from posttrain.report.charts import Chart
from posttrain.report.distributions import cloud, common_bins, histogram
from posttrain.report.numbers import MISSING, count, number
from posttrain.report.online_panels import CurveGroup, curve_groups, is_online
from posttrain.report.online_verdict import Tile, learned, said_of, scored, tiles
from posttrain.report.panels import AlarmGroup
from posttrain.report.statement import Statement
from posttrain.report.summaries import Bins
from posttrain.report.text import FINISHES, short_row, shorten
from posttrain.runs.read import Stage
from posttrain.runs.sample_log import Sample
from posttrain.runs.sampled import SamePrompt, StepSpread
from posttrain.runs.samples import StepSamples

WINDOW = 4
"""Early and late are the first and the last quarter of the steps."""
TREND_BINS = 8
LEAST_IN_BIN = 5
SOLVED = 1.0
"""The reward of a right answer, by the custom of verifiers."""
EARLY, LATE = ("early", "ink-3"), ("late", "accent")
LABELS = ("best", "worst", "random")


@dataclass(frozen=True, slots=True)
class SampleCell:
    """One completion; `kind` is best, worst, random or "" and `prompt` is "" where it stands beside the cell."""

    kind: str
    prompt: str
    wanted: str
    text: str
    reward: str
    good: str
    """up for a reward of 1 or more, down for one of 0 or less, else ""."""
    parts: list[tuple[str, str]]
    figures: list[tuple[str, str]]
    finish: str


@dataclass(frozen=True, slots=True)
class SampleRow:
    """Cells side by side, by step; a cell may hold several completions, or none."""

    head: str
    wanted: str
    note: str
    cells: list[list[SampleCell]]


@dataclass(frozen=True, slots=True)
class SampleTable:
    """SampleTable("Held-out tasks", "the same tasks ...", ["step 0", "step 15, the best"], [...])"""

    title: str
    said: str
    columns: list[str]
    rows: list[SampleRow]


@dataclass(frozen=True, slots=True)
class OnlineView:
    """The section as the template lays it out."""

    sampled: str
    tiles: list[Tile]
    said: Sequence[Statement]
    cards: list[list[Chart]]
    groups: list[CurveGroup]
    more: list[Chart]
    tables: list[SampleTable]


def online_view(stage: Stage, alarms: list[AlarmGroup]) -> OnlineView | None:
    """The section, or None for a stage that trains on rows."""
    if not is_online(stage):
        return None
    groups, more = curve_groups(stage, alarms)
    sampled = stage.sampled
    cards = [_scores(stage)]
    tables: list[SampleTable] = []
    if sampled is not None:
        spreads = sampled.spreads
        cards += [_rewards(spreads), _lengths(spreads), _hacking(spreads), _prompts(spreads)]
        tables = [table for table in _tables(stage) if table.rows]
    return OnlineView(
        _read(stage), tiles(stage), said_of(stage), [card for card in cards if card], groups, more, tables
    )


def _read(stage: Stage) -> str:
    """What was sampled, and how much of it the pictures show."""
    sampled = stage.sampled
    if sampled is None or not sampled.steps:
        return ""
    said = f"{count(sampled.completions)} completions in {count(sampled.steps)} step{'s' if sampled.steps > 1 else ''}"
    return (
        said if len(sampled.spreads) == sampled.steps else f"{said}; the pictures read {len(sampled.spreads)} of them"
    )


# ---------------------------------------------------------------- pictures


def _scores(stage: Stage) -> list[Chart]:
    scores, found = scored(stage), learned(stage)
    return (
        [score_chart("Held-out score", scores, found.best_step, found.unit)]
        if found is not None and len(scores) > 1
        else []
    )


def _rewards(spreads: list[StepSpread]) -> list[Chart]:
    """Bands of the rewards, or the shares of each where there are few different ones."""
    steps, values = [one.step for one in spreads], [one.rewards for one in spreads]
    different = {value for some in values for value in some}
    if not different:
        return []
    # Quantiles of rewards that are 0 or 1 jump between the two and say nothing; the share of each does.
    draw = level_chart if len(different) <= MOST_LEVELS else band_chart
    return [draw("Rewards", steps, values, "share of completions" if draw is level_chart else "by step")]


def _lengths(spreads: list[StepSpread]) -> list[Chart]:
    values = [one.lengths for one in spreads]
    return [band_chart("Lengths", [one.step for one in spreads], values, "tokens")] if any(values) else []


def windows(spreads: list[StepSpread]) -> tuple[list[StepSpread], list[StepSpread]]:
    """The first and the last quarter of the steps; the late one is empty where there is one step alone."""
    size = max(1, len(spreads) // WINDOW)
    return spreads[:size], spreads[-size:] if len(spreads) > 1 else []


def _hacking(spreads: list[StepSpread]) -> list[Chart]:
    """Whether longer answers are better paid, and whether they became longer."""
    early, late = windows(spreads)
    sides = [(name, [point for one in some for point in one.points]) for name, some in ((EARLY, early), (LATE, late))]
    known = [(name, points) for name, points in sides if points]
    edges = common_bins(*([x for x, _ in points] for _, points in known))
    if edges is None:
        return []
    ties = ", ".join(f"{label} {number(_correlation(points))}" for (label, _), points in known)
    caption = f"correlation {ties}"
    different = {y for _, points in known for _, y in points}
    # Dots on two levels lie on each other; means along the length show what a cloud would hide.
    if len(different) <= MOST_LEVELS:
        trends = [(label, colour, _trend(points)) for (label, colour), points in known]
        first = trend_chart("Reward by length", [one for one in trends if one[2]], "tokens", caption)
        first = replace(first, unit="mean, with 95 % intervals")
    else:
        first = cloud(
            "Reward by length", {label: (colour, points) for (label, colour), points in known}, "tokens", caption
        )
    lengths = {label: (colour, [x for x, _ in points]) for (label, colour), points in known}
    return [first, histogram("Lengths", lengths, edges, "tokens")]


def _trend(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """Means in bins of like many values: (mean length, mean reward, the ends of its interval)."""
    ordered = sorted(points)
    bins = max(1, min(TREND_BINS, len(ordered) // LEAST_IN_BIN))
    # Bins of like many values, not of like width: lengths crowd below and have a long tail, whose bins would be of one
    # value.
    edges = [quantile([x for x, _ in ordered], index / bins) for index in range(1, bins)]
    by_bin: dict[int, list[tuple[float, float]]] = {}
    for x, y in ordered:
        by_bin.setdefault(sum(x > edge for edge in edges), []).append((x, y))
    found = []
    for some in by_bin.values():
        rewards = [y for _, y in some]
        # Equal lengths fall into one bin and may leave another short; an interval over two values would span the plot.
        if len(rewards) >= LEAST_IN_BIN:
            mean = average(rewards)
            found.append((fmean(x for x, _ in some), mean.value, mean.low, mean.high))
    return found


def _correlation(points: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's, or None where one of the two never varies."""
    if len(points) < 2:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    mean_x, mean_y = fmean(xs), fmean(ys)
    across = math.fsum((x - mean_x) * (y - mean_y) for x, y in points)
    spread = math.sqrt(math.fsum((x - mean_x) ** 2 for x in xs) * math.fsum((y - mean_y) ** 2 for y in ys))
    return across / spread if spread > 0 else None


def _prompts(spreads: list[StepSpread]) -> list[Chart]:
    """Pass rates of the prompts early and late; of rewards that never reach 1, their means."""
    early, late = windows(spreads)
    groups = [[group for one in some for group in one.groups.values() if group] for some in (early, late)]
    everything = [reward for side in groups for group in side for reward in group]
    if not everything:
        return []
    sizes = [len(group) for side in groups for group in side]
    # Only where 1 means right: of a reward model's scores no share is solved.
    verified = max(everything) >= SOLVED and len(set(everything)) <= MOST_LEVELS
    # By prompt: that half of all completions are right can mean every prompt half the time, or half of the prompts
    # always, and only the first leaves something to learn.
    rates = [[_rate(group) if verified else fmean(group) for group in side] for side in groups]
    edges = _rate_bins(round(median(sizes))) if verified else common_bins(*rates)
    if edges is None:
        return []
    sides = {name: (colour, side) for (name, colour), side in zip((EARLY, LATE), rates, strict=True)}
    title = "Prompts by pass rate" if verified else "Prompts by mean reward"
    chart = histogram(title, sides, edges, "share of the prompt's completions" if verified else "mean reward")
    if not verified:
        return [replace(chart, unit="share of prompts")]
    ends = [
        f"{name} {_share(side, 0.0)} none, {_share(side, 1.0)} all"
        for (name, _), side in zip((EARLY, LATE), rates, strict=True)
        if side
    ]
    return [replace(chart, unit="share of prompts", caption=f"solved by {'; '.join(ends)}")]


def _rate(group: Sequence[float]) -> float:
    return sum(reward >= SOLVED for reward in group) / len(group)


def _rate_bins(completions: int) -> Bins:
    """A bin for each pass rate that a group can have, as long as those are few."""
    number = min(max(completions, 1), 16)
    # Edges between the rates, so that none and all have bins of their own: those are the groups without a signal.
    return Bins(-0.5 / number, 1 + 0.5 / number, number + 1)


def _share(rates: Sequence[float], wanted: float) -> str:
    return number(sum(rate == wanted for rate in rates) / len(rates), "share")


# ---------------------------------------------------------------- samples


def _tables(stage: Stage) -> list[SampleTable]:
    sampled = stage.sampled
    assert sampled is not None
    return [
        SampleTable(
            "Held-out tasks over time",
            "tasks that it learned, lost, and never learned",
            sampled.held_out_columns,
            [_same_row(one) for one in sampled.held_out],
        ),
        SampleTable(
            "The same prompt early and late",
            "the best and the worst completion of its group",
            sampled.same_columns,
            [_same_row(one, with_kind=True, with_step=True) for one in sampled.same],
        ),
        SampleTable(
            "Best, worst and random",
            "of an early, a middle and a late step; posttrain samples shows more",
            [_column(step) for step in sampled.shown],
            _by_label(sampled.shown),
        ),
    ]


def _column(step: StepSamples) -> str:
    mean = f" · mean reward {number(step.reward)}" if step.reward is not None else ""
    return f"step {count(step.step)}{mean}"


def _same_row(one: SamePrompt, *, with_kind: bool = False, with_step: bool = False) -> SampleRow:
    cells = []
    for found in one.cells:
        own = found or []
        kinds = ("best", "worst") if with_kind and len(own) == 2 else ("",) * len(own)
        cells.append(
            [_cell(sample, kind, beside=True, step=with_step) for sample, kind in zip(own, kinds, strict=True)]
        )
    row = short_row(one.row)
    return SampleRow(shorten(one.prompt) or row, shorten(one.answer, 300), row if one.prompt else "", cells)


def _by_label(shown: Sequence[StepSamples]) -> list[SampleRow]:
    rows = []
    for label in LABELS:
        cells = [[_cell(one.sample, "") for one in step.shown if one.label == label] for step in shown]
        if any(cells):
            rows.append(SampleRow(label.capitalize(), "", "", cells))
    return rows


def _cell(one: Sample, kind: str, *, beside: bool = False, step: bool = False) -> SampleCell:
    figures = [
        (title, number(value))
        for title, value in (("advantage", one.advantage), ("log-prob", one.logprob))
        if value is not None
    ]
    # Where engine and trainer agree the ratio is 1 up to rounding, in every cell.
    if one.ratio is not None and abs(one.ratio.largest - 1) > 1e-3:
        figures.append(("trainer/sampler", number(one.ratio.mean)))
    if one.tokens is not None:
        figures.append(("tokens", count(one.tokens)))
    if step:
        figures.insert(0, ("step", count(one.step)))
    # A single part is the reward itself.
    parts = [(name, number(value)) for name, value in one.parts.items()] if len(one.parts) > 1 else []
    return SampleCell(
        kind=kind,
        prompt="" if beside else shorten(one.prompt, 600),
        wanted="" if beside else shorten(one.answer, 300),
        text=shorten(one.completion),
        reward=MISSING if one.reward is None else number(one.reward),
        good="" if one.reward is None else "up" if one.reward >= SOLVED else "down" if one.reward <= 0 else "",
        parts=parts,
        figures=figures,
        finish=FINISHES.get(one.finish, ""),
    )
