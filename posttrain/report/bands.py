"""Pictures over steps of more than one number a step: quantile bands, layers that add up, scores with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.intervals import quantile
from posttrain.report.charts import Chart, Key, Note, Rule, Shape, Tick, dots, joined, x_axis_ticks, y_axis_ticks
from posttrain.report.numbers import HARD_SPACE, Axis, axis, count, interval, number, tick_labels, ticks
from posttrain.runs.records.evaluation import Figure

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
NAMES = ("5 % below", "25 % below", "median", "75 % below", "95 % below")
MOST_LEVELS = 6
"""Rewards of at most this many different values are drawn as shares of each: bands of a coin are always full."""
LEVEL_COLOURS = ("ink-3", "rejected", "second", "chosen", "good", "accent")
"""From the least value to the largest."""
MOST_WHISKERS = 60


def band_chart(title: str, steps: Sequence[int], values: Sequence[Sequence[float]], unit: str = "") -> Chart:
    """The middle half, the middle nine tenths and the median of each step's values.

    values: by step, at least one each: band_chart("Lengths", [1, 2], [[3, 5, 9], [4, 4, 8]]).
    """
    # A step in which nothing was judged has no quantiles; it is no gap of the run.
    known = [(step, sorted(some)) for step, some in zip(steps, values, strict=True) if some]
    if not known:
        return Chart(title=title, unit=unit, said=f"{title}: no values.")
    read = [step for step, _ in known]
    levels = [[quantile(some, share) for _, some in known] for share in SHARES]
    # From the 5 % to the 95 % line: one freak completion must not flatten the bands of all.
    across, up = steps_axis(read), axis(min(levels[0]), max(levels[-1]), room=0.06)
    low, first, median, third, high = (
        [(across.place(step), up.place(value)) for step, value in zip(read, level, strict=True)] for level in levels
    )
    series: list[Series] = [(name, "accent", read, level) for name, level in zip(NAMES, levels, strict=True)]
    start, end = levels[2][0], levels[2][-1]
    return Chart(
        title=title,
        unit=unit,
        said=f"{title}: median {number(start)} at step {read[0]}, {number(end)} at step {read[-1]}.",
        caption="line: median; inner band: middle half; outer: middle 90 %",
        paths=[
            Shape(_between(low, high), "accent", "band"),
            Shape(_between(first, third), "accent", "band"),
            # A path through a single point has no length, and nothing of it would be drawn.
            Shape(joined(median) if len(median) > 1 else dots(median), "accent", "main"),
        ],
        x_ticks=step_ticks(across),
        y_ticks=y_axis_ticks(up),
        x_title="step",
        notes=[Note(100 - 100 * up.place(end), number(end), "accent")],
        # From the highest line down, so that the numbers stand above each other as the lines do.
        readout=_readout(across, up, "", series[::-1]),
    )


def level_chart(title: str, steps: Sequence[int], values: Sequence[Sequence[float]], unit: str = "") -> Chart:
    """Shares of the completions that have each of few values, as layers that fill the plot.

    level_chart("Rewards", [1, 2], [[0, 0, 1, 1], [0, 1, 1, 1]])
    """
    known = [(step, some) for step, some in zip(steps, values, strict=True) if some]
    levels = sorted({value for _, some in known for value in some})
    few = LEVEL_COLOURS if len(levels) > 2 else (LEVEL_COLOURS[0], LEVEL_COLOURS[-1])
    # The best is teal and the worst grey, however many lie between.
    colours = [*few[: len(levels) - 1], few[-1]] if levels else []
    layers = [
        (f"{number(level)}", colour, [sum(value == level for value in some) / len(some) for _, some in known])
        for level, colour in zip(levels, colours, strict=True)
    ]
    return layer_chart(title, [step for step, _ in known], layers[::-1], "share", unit, full=1.0, look="level")


def layer_chart(
    title: str,
    steps: Sequence[int],
    layers: Sequence[tuple[str, str, Sequence[float]]],
    unit: str = "",
    subtitle: str = "",
    full: float | None = None,
    look: str = "layer",
) -> Chart:
    """Layers on top of each other, the first at the bottom: what a step's seconds went to.

    Args:
        layers: (label, colour, one value a step, at least 0).
        full: what the layers add up to, where that is known.
        look: of the style sheet; "level" is fainter than "layer".
    """
    across = steps_axis(steps)
    sums = [0.0] * len(steps)
    stacked = []
    for _, colour, values in layers:
        below, sums = sums, [one + value for one, value in zip(sums, values, strict=True)]
        stacked.append((colour, below, sums))
    # From 0 always: layers are read by their heights, and a cut base would falsify all of them.
    up = Axis(0.0, full or 1.06 * max([*sums, 1e-9]))
    paths = []
    for colour, below, above in stacked:
        line = [(across.place(step), up.place(value)) for step, value in zip(steps, above, strict=True)]
        base = [(across.place(step), up.place(value)) for step, value in zip(steps, below, strict=True)]
        paths.append(Shape(_between(base, line), colour, look))
    readout = None
    if steps and layers:
        readout = _readout(across, up, unit, [(label, colour, steps, values) for label, colour, values in layers][::-1])
        for series, (_, _, above) in zip(readout["series"], reversed(stacked), strict=True):
            series["at"] = [_short(value) for value in above]  # the dot stands on the layer's upper edge
    totals = {label: sum(values) for label, _, values in layers}
    whole = sum(totals.values()) or 1.0
    said = ", ".join(f"{label} {number(total / whole, 'share')}" for label, total in totals.items())
    return Chart(
        title=title,
        unit=subtitle,
        said=f"{title}: over all steps {said or 'nothing'}.",
        paths=paths,
        x_ticks=step_ticks(across),
        y_ticks=y_axis_ticks(up, unit),
        x_title="step",
        keys=[Key(label, colour, look) for label, colour, _ in layers],
        readout=readout,
    )


def score_chart(title: str, scores: Sequence[tuple[int, Figure]], best: int | None, unit: str = "") -> Chart:
    """A score at some steps with its 95 % interval; the first one is ruled, and the best is marked."""
    bounds = [bound for _, score in scores for bound in (score.value, score.low, score.high) if bound is not None]
    across = steps_axis([step for step, _ in scores])
    up = (
        axis(0.0, 1.0, room=0.02)
        if unit == "share"
        else axis(min(bounds), max(bounds), room=0.08)
        if bounds
        else Axis(0, 1)
    )
    places = [(across.place(step), up.place(score.value)) for step, score in scores]
    # More whiskers than this are a solid block; the dots are all kept.
    every = -(-len(scores) // MOST_WHISKERS) if scores else 1
    spans = "".join(
        joined([(across.place(step), up.place(score.low)), (across.place(step), up.place(score.high))])
        for step, score in scores[::every]
        if score.low is not None and score.high is not None
    )
    last = (
        # A ring is wider than a dot, and would touch the label beside it.
        f"{HARD_SPACE if scores and scores[-1][0] == best else ''}{number(scores[-1][1].value, unit) if scores else ''}"
    )
    marked = [place for place, (step, _) in zip(places, scores, strict=True) if step == best]
    said = "; ".join(
        f"step {step} {number(score.value, unit)} ({interval(score.low, score.high, unit)})" for step, score in scores
    )
    return Chart(
        title=title,
        said=f"{title}: {said or 'no values'}.",
        unit="with 95 % intervals",
        caption=f"dotted: at step {count(scores[0][0])}; ring: the best" if len(scores) > 1 else "",
        paths=[
            Shape(spans, "accent", "interval"),
            Shape(joined(places), "accent", "main"),
            Shape(dots(places), "accent", "main dot"),
            # A ring of two discs: strokes do not stretch with the plot, while a circle would become an ellipse.
            Shape(dots(marked), "accent", "ring"),
            Shape(dots(marked), "surface", "ring-hole"),
        ],
        x_ticks=step_ticks(across),
        y_ticks=y_axis_ticks(up, unit),
        x_title="step",
        # What the stage began with is what every later score has to beat.
        rules=[Rule(100 - 100 * up.place(scores[0][1].value), False)] if len(scores) > 1 else [],
        notes=[Note(100 - 100 * up.place(scores[-1][1].value), last, "accent")] if scores else [],
        readout=_readout(across, up, unit, _score_series(scores)) if scores else None,
    )


def trend_chart(
    title: str,
    groups: Sequence[tuple[str, str, Sequence[tuple[float, float, float, float]]]],
    x_title: str,
    caption: str = "",
) -> Chart:
    """Means with their 95 % intervals along a measure: (x, mean, low, high) of each bin, one line a group."""
    points = [point for _, _, some in groups for point in some]
    bounds = [bound for _, _, low, high in points for bound in (low, high)]
    across = axis(min(x for x, *_ in points), max(x for x, *_ in points)) if points else Axis(0.0, 1.0)
    up = axis(min(bounds), max(bounds), room=0.06) if bounds else Axis(0.0, 1.0)
    paths = []
    for _, colour, some in groups:
        places = [(across.place(x), up.place(mean)) for x, mean, _, _ in some]
        spans = "".join(
            joined([(across.place(x), up.place(low)), (across.place(x), up.place(high))]) for x, _, low, high in some
        )
        paths += [
            Shape(spans, colour, "span"),
            Shape(joined(places), colour, "main"),
            Shape(dots(places), colour, "main dot"),
        ]
    return Chart(
        title=title,
        said=f"{title}. {caption}",
        caption=caption,
        paths=paths,
        x_ticks=x_axis_ticks(across),
        y_ticks=y_axis_ticks(up),
        x_title=x_title,
        keys=[Key(label, colour) for label, colour, _ in groups],
    )


# ---------------------------------------------------------------- small parts


def steps_axis(steps: Sequence[int]) -> Axis:
    if not steps:
        return Axis(0.0, 1.0)
    low, high = float(min(steps)), float(max(steps))
    return Axis(low - 0.5, high + 0.5) if low == high else Axis(low, high)


def step_ticks(across: Axis) -> list[Tick]:
    # There is no step 2.5.
    values = [value for value in ticks(across, aim=5) if value == int(value)]
    return [Tick(100 * across.place(v), text) for v, text in zip(values, tick_labels(values), strict=True)]


def _between(below: Sequence[tuple[float, float]], above: Sequence[tuple[float, float]]) -> str:
    """The area between two lines; of a single step a thin one, so that it can be seen."""
    if len(above) == 1:
        (x, low), (_, high) = below[0], above[0]
        below, above = [(x - 0.04, low), (x + 0.04, low)], [(x - 0.04, high), (x + 0.04, high)]
    return f"{joined([*above, *reversed(below)])}Z" if above else ""


Series = tuple[str, str, Sequence[int], Sequence[float]]
"""(label, colour, steps, values)"""


def _readout(across: Axis, up: Axis, unit: str, series: Sequence[Series]) -> dict[str, Any]:
    """What the pointer reads; see `posttrain.report.charts.Chart.readout`."""
    return {
        "unit": unit,
        "x": [across.low, across.high],
        "y": [up.low, up.high, False],
        "epochs_per_step": None,
        "series": [
            {"label": label, "colour": colour, "x": list(steps), "y": [_short(value) for value in values]}
            for label, colour, steps, values in series
        ],
    }


def _score_series(scores: Sequence[tuple[int, Figure]]) -> list[Series]:
    highs = [(step, score.high) for step, score in scores if score.high is not None]
    lows = [(step, score.low) for step, score in scores if score.low is not None]
    found: list[Series] = [("score", "accent", [step for step, _ in scores], [score.value for _, score in scores])]
    # An interval is missing where only a mean was written; the score is read out all the same.
    for label, some in (("up to", highs), ("from", lows)):
        if some:
            found.append((label, "ink-3", [step for step, _ in some], [value for _, value in some]))
    return found


def _short(value: float) -> float:
    return float(f"{value:.5g}")
