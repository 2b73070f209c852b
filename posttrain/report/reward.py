"""A reward model's section: how well it orders held-out pairs, against its untrained head, and what it falls for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from posttrain.report.charts import Chart
from posttrain.report.distributions import (
    box_chart,
    cloud,
    common_bins,
    histogram,
    interval_chart,
    reliability_chart,
)
from posttrain.report.numbers import count, difference, interval, number
from posttrain.runs.read import Stage
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.reward import BucketAccuracy, Calibration, LengthFigures, RewardEvaluation

HEADS = ("trained", "untrained")
SIDES = ("chosen", "rejected")
FIGURES = (
    ("accuracy", "accuracy", "share", "of held-out pairs; ties count half"),
    ("margin", "margin", "", "chosen minus rejected"),
    ("mean", "mean reward", "", "of both sides"),
    ("std", "standard deviation", "", "of all rewards"),
    ("confidence", "confidence", "share", "mean of sigmoid(|margin|)"),
)
PROBES = {
    "empty": ("Empty", "no text at all"),
    "repeated": ("Repeated", "the chosen answer, three times"),
    "off_topic": ("Off topic", "another prompt's chosen answer"),
    "refusal": ("Refusal", "“I'm sorry, but I can't help with that.”"),
}
MOST_CATEGORIES = 12
SHOULD_WIN = 0.8
"""Share of prompts whose chosen answer should beat a probe; the same that the evaluation's findings ask for."""


@dataclass(frozen=True, slots=True)
class FigureRow:
    """FigureRow("accuracy", "of held-out pairs", ("78.3 %", "66.4 to 86.9 %"), ("50.0 %", "37.7 to 62.3 %"))"""

    title: str
    help: str
    trained: tuple[str, str]
    untrained: tuple[str, str]


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """One probe; `kind` is good, bad or plain, and says whether the chosen answers beat it as they should."""

    title: str
    help: str
    kind: str
    below: str
    below_interval: str
    mean: str
    gap: str


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """AgreementRow("untrained head", "61.3 %", "50.1 to 71.4 %", "0.21", "0.14")"""

    other: str
    same_order: str
    interval: str
    spearman: str
    kendall: str


@dataclass(frozen=True, slots=True)
class RewardView:
    """The section as the template lays it out."""

    pairs: str
    has_untrained: bool
    figures: list[FigureRow]
    said: list[str]
    cards: list[list[Chart]]
    probes: list[ProbeRow]
    agreement: list[AgreementRow]


def reward_view(stage: Stage) -> RewardView | None:
    """The section, or None for a stage that trained no reward model."""
    record = stage.reward
    if record is None and not stage.reward_scores:
        return None
    record = record or RewardEvaluation.from_json({})
    cards = [_histograms(stage), _boxes(stage), _differences(stage), _reliability(record.calibration)]
    cards += [
        _by_bucket(record.by_length, "Accuracy by length", "chosen side, tokens"),
        _lengths(stage, record.length),
        _by_bucket(record.by_category, "Accuracy by category", "the largest first"),
    ]
    return RewardView(
        pairs=count(record.pairs or len(stage.reward_scores)),
        has_untrained=bool(record.untrained),
        figures=list(_figures(record)),
        said=list(_said(record)),
        cards=[card for card in cards if card],
        probes=list(_probes(record)),
        agreement=list(_agreement(record)),
    )


# ---------------------------------------------------------------- figures and words


def _figures(record: RewardEvaluation) -> Iterator[FigureRow]:
    untrained = record.untrained or {}
    for key, title, unit, help in FIGURES:
        # Confidence is sigmoid(|margin|) only where rewards are log-odds; of a regression it would be a number without
        # a meaning.
        if key == "confidence" and record.calibration is None:
            continue
        if key in record.trained:
            yield FigureRow(title, help, figure_cell(record.trained[key], unit), figure_cell(untrained.get(key), unit))


def figure_cell(figure: Figure | None, unit: str) -> tuple[str, str]:
    """A figure and its interval, as a table shows them."""
    if figure is None:
        return number(None), ""
    return number(figure.value, unit), interval(figure.low, figure.high, unit)


def _said(record: RewardEvaluation) -> Iterator[str]:
    gain = record.gain
    if gain is not None and gain.low is not None and gain.high is not None:
        low, high = difference(gain.low, "share").removesuffix(" points"), difference(gain.high, "share")
        clear = "" if gain.low > 0 or gain.high < 0 else ": no clear change"
        yield (
            f"Accuracy against the untrained head, over the same pairs: {difference(gain.value, 'share')} "
            f"({low} to {high}){clear}."
        )
    preferred = record.length.longer_preferred if record.length else None
    chosen = record.length.longer_chosen if record.length else None
    if preferred is not None and chosen is not None:
        yield (
            f"It prefers the longer answer in {number(preferred.value, 'share')} of the pairs; the people who chose "
            f"did so in {number(chosen.value, 'share')}."
        )


def _probes(record: RewardEvaluation) -> Iterator[ProbeRow]:
    for name in sorted(record.probes, key=lambda name: list(PROBES).index(name) if name in PROBES else len(PROBES)):
        figures = record.probes[name]
        below, mean, gap = figures.below_chosen, figures.mean, figures.gap
        if below is None:
            continue
        title, help = PROBES.get(name, (name.replace("_", " "), ""))
        kind = "plain"
        if figures.judged:
            high = below.high if below.high is not None else below.value
            # Bad only if the whole interval is: on a few dozen prompts a model that is good enough may fall short by
            # chance.
            kind = "good" if below.value >= SHOULD_WIN else "bad" if high < SHOULD_WIN else "warn"
        yield ProbeRow(
            title,
            help,
            kind,
            *figure_cell(below, "share"),
            number(mean.value if mean else None),
            number(gap.value if gap else None),
        )


def _agreement(record: RewardEvaluation) -> Iterator[AgreementRow]:
    for name, figures in record.agreement.items():
        if figures.same_order is not None:
            other = "untrained head" if name == "untrained" else name
            said = (number(figure.value if figure else None) for figure in (figures.spearman, figures.kendall))
            yield AgreementRow(other, *figure_cell(figures.same_order, "share"), *said)


# ---------------------------------------------------------------- pictures


def _values(stage: Stage, head: str, side: str) -> list[float]:
    return [value for pair in stage.reward_scores if (value := pair.reward(head, side)) is not None]


def _histograms(stage: Stage) -> list[Chart]:
    """Each head on its own bins: their scales differ, often tenfold."""
    charts = []
    for head in HEADS:
        values = {side: _values(stage, head, side) for side in SIDES}
        edges = common_bins(*values.values())
        if edges is not None:
            groups = {side: (side, values[side]) for side in SIDES}
            charts.append(histogram(f"Rewards, {head} head", groups, edges, "reward"))
    return charts


def _boxes(stage: Stage) -> list[Chart]:
    groups = [(f"{side}, {head}", side, _values(stage, head, side)) for head in HEADS for side in SIDES]
    chart = box_chart("Rewards, side by side", groups, "reward")
    return [chart] if chart.paths else []


def _differences(stage: Stage) -> list[Chart]:
    charts = []
    for head in HEADS:
        margins = [
            chosen - rejected
            for pair in stage.reward_scores
            if (chosen := pair.reward(head, "chosen")) is not None
            and (rejected := pair.reward(head, "rejected")) is not None
        ]
        edges = common_bins(margins)
        if edges is None:
            continue
        chart = histogram(f"Differences, {head} head", {"margin": ("accent", margins)}, edges, "chosen minus rejected")
        above = number(sum(margin > 0 for margin in margins) / len(margins), "share")
        charts.append(replace(chart, caption=f"{chart.caption}; above zero: {above}"))
    return charts


def _by_bucket(buckets: Sequence[BucketAccuracy], title: str, subtitle: str) -> list[Chart]:
    rows = [
        (f"{bucket.label} · {count(bucket.accuracy.n)}", bucket.accuracy)
        for bucket in buckets[:MOST_CATEGORIES]
        if bucket.accuracy is not None
    ]
    if not rows:
        return []
    # Against a coin: the buckets are parts of one set, and none of them is the start of the others.
    chart = interval_chart(title, rows, "share", subtitle, chance=0.5)
    return [replace(chart, caption="dotted: guessing; the last number of a label counts its pairs")]


def _reliability(calibration: Calibration | None) -> list[Chart]:
    points = [
        (bin.confidence, bin.accuracy)
        for bin in (calibration.bins if calibration else ())
        if bin.confidence is not None and bin.accuracy is not None
    ]
    if calibration is None or not points:
        return []
    caption = f"ECE {number(calibration.ece, 'share')}"
    if calibration.by_chance is not None and calibration.by_chance.mean is not None:
        caption += f"; by chance alone {number(calibration.by_chance.mean, 'share')}"
    return [replace(reliability_chart("Reliability", points, caption), unit="share that is right, by confidence")]


def _lengths(stage: Stage, length: LengthFigures | None) -> list[Chart]:
    groups: dict[str, tuple[str, list[tuple[float, float]]]] = {}
    for side in SIDES:
        points = [
            (float(tokens), reward)
            for pair in stage.reward_scores
            if (tokens := pair.tokens(side)) is not None and (reward := pair.reward("trained", side)) is not None
        ]
        groups[side] = (side, points)
    if not any(points for _, points in groups.values()):
        return []
    rho = length.correlation if length is not None else None
    caption = f"rank correlation {number(rho.value)} ({interval(rho.low, rho.high)})" if rho is not None else ""
    return [cloud("Reward and length", groups, "tokens of the answer", caption)]
