"""Pictures of many values at once: histograms, boxes, scatter plots, and figures with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from posttrain.intervals import quantile
from posttrain.report.charts import (
    Chart,
    Key,
    Note,
    Rule,
    Shape,
    Tick,
    dots,
    joined,
    rectangle,
    x_axis_ticks,
    y_axis_ticks,
)
from posttrain.report.numbers import Axis, axis, count, interval, number
from posttrain.report.summaries import Bins, bins, box, downsample
from posttrain.runs.records.evaluation import Figure

MOST_OUTLIERS = 40
MOST_POINTS = 600


def histogram(title: str, groups: Mapping[str, tuple[str, Sequence[float]]], edges: Bins, x_title: str = "") -> Chart:
    """Shares of each group over the same bins: histogram("Rewards", {"chosen": ("chosen", [...])}, bins(all)).

    groups: label -> (palette colour, values); groups without values are left out. Medians are drawn as rules.
    """
    known = {label: (colour, values) for label, (colour, values) in groups.items() if values}
    shares = {label: edges.shares(values) for label, (_, values) in known.items()}
    tallest = max((max(share) for share in shares.values()), default=1.0)
    across, up = Axis(edges.low, edges.high), Axis(0.0, tallest * 1.08)
    paths, rules = [], []
    for label, (colour, values) in known.items():
        # Area and outline apart: the areas shine through each other, and every outline lies on top of all of them.
        outline = _steps(shares[label], up)
        paths.append(Shape(f"{outline}L1000 1000L0 1000Z", colour, "area"))
        paths.append(Shape(outline, colour, "outline"))
        median = quantile(sorted(values), 0.5)
        rules.append(Rule(100 * across.place(median), True, colour=colour))
    medians = "median " + ", ".join(f"{label} {_median(values)}" for label, (_, values) in known.items())
    return Chart(
        title=title,
        said=f"{title}: {medians if known else 'no values'}.",
        caption=medians if known else "",
        paths=sorted(paths, key=lambda path: path.look == "outline"),
        x_ticks=x_axis_ticks(across),
        y_ticks=y_axis_ticks(up, "share", aim=3),
        x_title=x_title,
        rules=rules,
        keys=[Key(label, colour, "area") for label, (colour, _) in known.items()] if len(known) > 1 else [],
    )


def _median(values: Sequence[float]) -> str:
    return number(quantile(sorted(values), 0.5))


def _steps(shares: Sequence[float], up: Axis) -> str:
    points = []
    for index, share in enumerate(shares):
        points += [(index / len(shares), up.place(share)), ((index + 1) / len(shares), up.place(share))]
    return joined(points)


def common_bins(*groups: Sequence[float]) -> Bins | None:
    """One set of bins for several groups, so that their pictures can be compared; None if all are empty."""
    everything = [value for group in groups for value in group]
    # Two histograms on bins of their own would differ by the bins where the values are alike.
    return bins(everything) if everything else None


def box_chart(title: str, groups: Sequence[tuple[str, str, Sequence[float]]], x_title: str = "") -> Chart:
    """Tukey boxes, one row a group: box_chart("Rewards", [("chosen, end", "chosen", [...])])."""
    known = [(label, colour, values) for label, colour, values in groups if values]
    everything = [value for _, _, values in known for value in values]
    across = axis(min(everything), max(everything)) if everything else Axis(0.0, 1.0)
    row = 1 / max(1, len(known))
    paths, labels, said = [], [], []
    for index, (label, colour, values) in enumerate(known):
        middle = 1 - (index + 0.5) * row
        paths += _box(values, colour, across, middle, 0.27 * row)
        labels.append(Tick(100 * (index + 0.5) * row, label))
        said.append(f"{label} median {_median(values)}")
    return Chart(
        title=title,
        said=f"{title}: {'; '.join(said) or 'no values'}.",
        caption="box: middle half; whiskers: within 1.5 boxes" if known else "",
        paths=paths,
        x_ticks=x_axis_ticks(across),
        y_ticks=labels,
        x_title=x_title,
        rules=[Rule(100 * across.place(0.0), True)] if across.low < 0 < across.high else [],
        rows=max(1, len(known)),
    )


def _box(values: Sequence[float], colour: str, across: Axis, middle: float, half: float) -> list[Shape]:
    found = box(values)
    low, first, median, third, high = (
        across.place(value) for value in (found.low, found.first, found.median, found.third, found.high)
    )
    cap = half * 0.5
    whiskers = "".join(
        joined(points)
        for points in (
            [(low, middle), (first, middle)],
            [(third, middle), (high, middle)],
            [(low, middle - cap), (low, middle + cap)],
            [(high, middle - cap), (high, middle + cap)],
        )
    )
    # Of sorted values a downsampling keeps the furthest: those are what an outlier is shown for.
    shown = [found.outliers[index] for index in downsample(found.outliers, MOST_OUTLIERS // 2)]
    return [
        Shape(rectangle(first, middle - half, third, middle + half), colour, "box"),
        Shape(whiskers, colour, "whisker"),
        Shape(joined([(median, middle - half), (median, middle + half)]), colour, "median"),
        Shape(dots((across.place(value), middle) for value in shown), colour, "outlier"),
    ]


def scatter(title: str, points: Sequence[tuple[float, float]], unit: str) -> Chart:
    """One dot a pair, with both zeros ruled; of more than 600 points every n-th is drawn, and the caption says so."""
    # Every n-th and no random choice, so that the same folder gives the same bytes.
    every = -(-len(points) // MOST_POINTS) if points else 1
    shown = points[::every]
    # Both zeros are always in the picture: what it says is which quadrant the pairs lie in.
    across = _around_zero([x for x, _ in points])
    up = _around_zero([y for _, y in points])
    caption = f"one dot is one pair; {count(len(points))} pairs"
    if every > 1:
        caption += f", {count(len(shown))} of them drawn"
    better = sum(x > y for x, y in points)
    return Chart(
        title=title,
        said=f"{title}: in {better} of {len(points)} pairs the chosen answer gained more than the rejected one.",
        unit=unit,
        caption=caption,
        paths=[Shape(dots((across.place(x), up.place(y)) for x, y in shown), "accent", "cloud")],
        x_ticks=x_axis_ticks(across),
        y_ticks=y_axis_ticks(up),
        rules=[Rule(100 * across.place(0.0), True), Rule(100 - 100 * up.place(0.0), False)],
    )


def cloud(
    title: str, groups: Mapping[str, tuple[str, Sequence[tuple[float, float]]]], x_title: str, caption: str = ""
) -> Chart:
    """One dot a value, coloured by group: cloud("Rewards", {"chosen": ("chosen", [(12, 0.4), ...])}, "tokens")."""
    known = {label: (colour, points) for label, (colour, points) in groups.items() if points}
    everything = [point for _, points in known.values() for point in points]
    # One thinning for all groups, or the smaller of two would look as large as the other.
    every = -(-len(everything) // MOST_POINTS) if everything else 1
    across = axis(min(x for x, _ in everything), max(x for x, _ in everything)) if everything else Axis(0.0, 1.0)
    up = axis(min(y for _, y in everything), max(y for _, y in everything), room=0.06) if everything else Axis(0.0, 1.0)
    if every > 1:
        caption = f"{caption}; every {count(every)}th dot" if caption else f"every {count(every)}th dot"
    paths = [
        Shape(dots((across.place(x), up.place(y)) for x, y in points[::every]), colour, "cloud")
        for colour, points in known.values()
    ]
    return Chart(
        title=title,
        said=f"{title}: {count(len(everything))} values. {caption}",
        caption=caption,
        paths=paths,
        x_ticks=x_axis_ticks(across),
        y_ticks=y_axis_ticks(up),
        x_title=x_title,
        rules=[Rule(100 - 100 * up.place(0.0), False)] if up.low < 0 < up.high else [],
        keys=[Key(label, colour, "area") for label, (colour, _) in known.items()] if len(known) > 1 else [],
    )


def reliability_chart(title: str, points: Sequence[tuple[float, Figure]], caption: str = "") -> Chart:
    """Confidence across, accuracy up, each with its 95 % interval; on the diagonal the two are the same.

    points: (mean confidence, accuracy) of verdicts of like confidence, from the least sure to the surest.
    """
    bounds = [score.low if score.low is not None else score.value for _, score in points]
    # A verdict's confidence is sigmoid(|margin|), which is never below one half.
    across, up = axis(0.5, 1.0, room=0.03), axis(min([0.5, *bounds]), 1.0, room=0.04)
    places = [(across.place(sure), up.place(score.value)) for sure, score in points]
    spans = "".join(
        joined([(across.place(sure), up.place(score.low)), (across.place(sure), up.place(score.high))])
        for sure, score in points
        if score.low is not None and score.high is not None
    )
    said = "; ".join(f"{number(sure, 'share')} sure, {number(score.value, 'share')} right" for sure, score in points)
    return Chart(
        title=title,
        said=f"{title}: {said or 'no values'}.",
        caption=caption,
        paths=[
            Shape(
                joined([(across.place(0.5), up.place(0.5)), (across.place(1.0), up.place(1.0))]), "ink-3", "diagonal"
            ),
            Shape(spans, "accent", "span"),
            Shape(joined(places), "accent", "main"),
            Shape(dots(places), "accent", "main dot"),
        ]
        if points
        else [],
        x_ticks=x_axis_ticks(across, "share"),
        y_ticks=y_axis_ticks(up, "share"),
        x_title="confidence of the verdict",
    )


def _around_zero(values: Sequence[float]) -> Axis:
    return axis(min([0.0, *values]), max([0.0, *values]), room=0.08)


def interval_chart(
    title: str,
    scores: Sequence[tuple[str, Figure]],
    unit: str,
    subtitle: str = "",
    limit: float | None = None,
    chance: float | None = None,
) -> Chart:
    """A figure at the start and after each stage, with its 95 % interval: one row each, the value beside it.

    limit: how far from zero a change may go; both limits are ruled then, and the start's figure otherwise.
    chance: what guessing would give; it is ruled, and the rows are parts of one whole and not start and stages.
    """
    # Divergence makes figures that are not finite: they are named, and have no place.
    bounds = [bound for _, score in scores for bound in _finite(score.value, score.low, score.high)]
    if not bounds:
        across, ruled = axis(0.0, 1.0), []
    elif limit is not None:
        across = axis(min(-limit, *bounds), max(limit, *bounds), room=0.1)
        ruled = [-limit, 0.0, limit]
    else:
        # A share that can leave 0 to 1 is a change (of perplexity, say), and has no whole to be shown against.
        whole = unit == "share" and min(bounds) >= 0 and max(bounds) <= 1
        across = axis(0.0, 1.0) if whole else axis(min(bounds), max(bounds), room=0.1)
        ruled = [chance] if chance is not None else _finite(scores[0][1].value) if len(scores) > 1 else []
    row = 1 / len(scores)
    paths, labels, notes = [], [], []
    for index, (label, score) in enumerate(scores):
        middle = 1 - (index + 0.5) * row
        # The first row is the start, and grey as everywhere; buckets of one whole have no start among them.
        colour = "ink-3" if index == 0 and chance is None else "accent"
        if len(reach := _finite(score.low, score.high)) == 2:
            ends = [(across.place(bound), middle) for bound in reach]
            paths.append(Shape(joined(ends), colour, "interval"))
        if _finite(score.value):
            paths.append(Shape(dots([(across.place(score.value), middle)]), colour, "figure"))
        labels.append(Tick(100 * (index + 0.5) * row, label))
        notes.append(Note(100 * (index + 0.5) * row, number(score.value, unit), "ink"))
    said = "; ".join(
        f"{label} {number(score.value, unit)}"
        + (f" (95 % interval {interval(score.low, score.high, unit)})" if score.low is not None else "")
        for label, score in scores
    )
    return Chart(
        title=title,
        unit=subtitle,
        said=f"{title}: {said}.",
        paths=paths,
        x_ticks=x_axis_ticks(across, unit, aim=3) if bounds else [],
        y_ticks=labels,
        rules=[Rule(100 * across.place(value), True) for value in ruled],
        notes=notes,
        rows=len(scores),
    )


def _finite(*values: float | None) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
