"""A reward model's section: how well it orders held-out pairs, against its untrained head, and what it falls for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

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
from posttrain.runs.read import Score, Stage
from posttrain.runs.tolerant import as_list, as_mapping, as_number, as_text

HEADS = {"trained": "", "untrained": "untrained_"}
"""Each head, and how its keys begin in a line of reward_scores.jsonl."""
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
    if not record and not stage.reward_scores:
        return None
    cards = [_histograms(stage), _boxes(stage), _differences(stage), _reliability(record)]
    cards += [*_by_bucket(record, "by_length"), _lengths(stage, record), *_by_bucket(record, "by_category")]
    return RewardView(
        pairs=count(as_number(record.get("pairs")) or len(stage.reward_scores)),
        has_untrained=bool(as_mapping(record.get("untrained"))),
        figures=list(_figures(record)),
        said=list(_said(record)),
        cards=[card for card in cards if card],
        probes=list(_probes(record)),
        agreement=list(_agreement(record)),
    )


def score_of(value: object) -> Score | None:
    """A figure with its interval, as the evaluation wrote it."""
    record = as_mapping(value)
    figure = as_number(record.get("value"))
    if figure is None:
        return None
    n = as_number(record.get("n"))
    return Score(figure, as_number(record.get("low")), as_number(record.get("high")), None if n is None else int(n))


# ---------------------------------------------------------------- figures and words


def _figures(record: dict[str, Any]) -> Iterator[FigureRow]:
    trained, untrained = as_mapping(record.get("trained")), as_mapping(record.get("untrained"))
    for key, title, unit, help in FIGURES:
        if key == "confidence" and not as_mapping(record.get("calibration")):
            continue
        own = score_of(trained.get(key))
        if own is not None:
            yield FigureRow(title, help, _cell(own, unit), _cell(score_of(untrained.get(key)), unit))


def _cell(score: Score | None, unit: str) -> tuple[str, str]:
    if score is None:
        return number(None), ""
    return number(score.value, unit), interval(score.low, score.high, unit)


def _said(record: dict[str, Any]) -> Iterator[str]:
    gain = score_of(record.get("gain"))
    if gain is not None and gain.low is not None and gain.high is not None:
        low, high = difference(gain.low, "share").removesuffix(" points"), difference(gain.high, "share")
        clear = "" if gain.low > 0 or gain.high < 0 else ": no clear change"
        yield (
            f"Accuracy against the untrained head, over the same pairs: {difference(gain.value, 'share')} "
            f"({low} to {high}){clear}."
        )
    length = as_mapping(record.get("length"))
    preferred, chosen = score_of(length.get("longer_preferred")), score_of(length.get("longer_chosen"))
    if preferred is not None and chosen is not None:
        yield (
            f"It prefers the longer answer in {number(preferred.value, 'share')} of the pairs; the people who chose "
            f"did so in {number(chosen.value, 'share')}."
        )


def _probes(record: dict[str, Any]) -> Iterator[ProbeRow]:
    known = as_mapping(record.get("probes"))
    for name in sorted(known, key=lambda name: list(PROBES).index(name) if name in PROBES else len(PROBES)):
        figures = as_mapping(known[name])
        below, mean, gap = (score_of(figures.get(key)) for key in ("below_chosen", "mean", "gap"))
        if below is None:
            continue
        title, help = PROBES.get(name, (name.replace("_", " "), ""))
        kind = "plain"
        if figures.get("judged") is True:
            high = below.high if below.high is not None else below.value
            kind = "good" if below.value >= SHOULD_WIN else "bad" if high < SHOULD_WIN else "warn"
        yield ProbeRow(
            title,
            help,
            kind,
            *_cell(below, "share"),
            number(mean.value if mean else None),
            number(gap.value if gap else None),
        )


def _agreement(record: dict[str, Any]) -> Iterator[AgreementRow]:
    for name, figures in as_mapping(record.get("agreement")).items():
        same, rho, tau = (score_of(as_mapping(figures).get(key)) for key in ("same_order", "spearman", "kendall"))
        if same is not None:
            other = "untrained head" if name == "untrained" else name
            said = (number(one.value if one else None) for one in (rho, tau))
            yield AgreementRow(other, *_cell(same, "share"), *said)


# ---------------------------------------------------------------- pictures


def _values(stage: Stage, head: str, side: str) -> list[float]:
    key = f"{HEADS[head]}{side}"
    return [value for line in stage.reward_scores if (value := as_number(line.get(key))) is not None]


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
    for head, prefix in HEADS.items():
        margins = [
            chosen - rejected
            for line in stage.reward_scores
            if (chosen := as_number(line.get(f"{prefix}chosen"))) is not None
            and (rejected := as_number(line.get(f"{prefix}rejected"))) is not None
        ]
        edges = common_bins(margins)
        if edges is None:
            continue
        chart = histogram(f"Differences, {head} head", {"margin": ("accent", margins)}, edges, "chosen minus rejected")
        above = number(sum(margin > 0 for margin in margins) / len(margins), "share")
        charts.append(replace(chart, caption=f"{chart.caption}; above zero: {above}"))
    return charts


BUCKETS = {
    "by_length": ("Accuracy by length", "chosen side, tokens"),
    "by_category": ("Accuracy by category", "the largest first"),
}


def _by_bucket(record: dict[str, Any], key: str) -> Iterator[list[Chart]]:
    title, subtitle = BUCKETS[key]
    rows = []
    for line in map(as_mapping, as_list(record.get(key))[:MOST_CATEGORIES]):
        score = score_of(line.get("accuracy"))
        if score is not None:
            rows.append((f"{as_text(line.get('label'))} · {count(score.n)}", score))
    if rows:
        chart = interval_chart(title, rows, "share", subtitle, chance=0.5)
        yield [replace(chart, caption="dotted: guessing; the last number of a label counts its pairs")]


def _reliability(record: dict[str, Any]) -> list[Chart]:
    calibration = as_mapping(record.get("calibration"))
    points = []
    for line in map(as_mapping, as_list(calibration.get("bins"))):
        sure, right = as_number(line.get("confidence")), score_of(line.get("accuracy"))
        if sure is not None and right is not None:
            points.append((sure, right))
    if not points:
        return []
    chance = as_mapping(calibration.get("by_chance"))
    error, by_chance = as_number(calibration.get("ece")), as_number(chance.get("mean"))
    caption = f"ECE {number(error, 'share')}"
    if by_chance is not None:
        caption += f"; by chance alone {number(by_chance, 'share')}"
    return [replace(reliability_chart("Reliability", points, caption), unit="share that is right, by confidence")]


def _lengths(stage: Stage, record: dict[str, Any]) -> list[Chart]:
    groups: dict[str, tuple[str, list[tuple[float, float]]]] = {}
    for side in SIDES:
        points = [
            (tokens, reward)
            for line in stage.reward_scores
            if (tokens := as_number(line.get(f"tokens_{side}"))) is not None
            and (reward := as_number(line.get(side))) is not None
        ]
        groups[side] = (side, points)
    if not any(points for _, points in groups.values()):
        return []
    rho = score_of(as_mapping(record.get("length")).get("correlation"))
    caption = ""
    if rho is not None:
        caption = f"rank correlation {number(rho.value)} ({interval(rho.low, rho.high)})"
    return [cloud("Reward and length", groups, "tokens of the answer", caption)]
