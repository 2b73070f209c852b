"""Charts as geometry: what to draw and where, for the template `chart.jinja` to write as inline SVG.

A plot is a square of 1000 x 1000 units, y downwards, that the page stretches to the room there is; strokes do not
stretch with it, and labels are text beside it, placed in per cent. So a chart keeps its line widths and its letters on
a telephone and on paper, and no label is ever part of a picture that is scaled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.report.numbers import MINUS, Axis, axis, count, number, tick_labels, ticks
from posttrain.report.summaries import downsample, running_mean, segments
from posttrain.runs.read import Curve

BUCKETS = 200
"""A curve of more than twice as many steps is downsampled: two points for each bucket."""
LOG_RATIO = 30.0
"""A positive measurement whose largest value is this many times its median is drawn on a log scale."""
CORNER_ROOM = 8.0
"""Per cent of the plot that its first tick must leave free for the axis' name to stand beside it."""
ROUNDING = 1e-5
"""How far beyond its bounds a share may lie by arithmetic alone."""
MOST_DOTS = 60
"""A held-out curve of at most this many points shows each as a dot."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A label at `at` per cent of its edge, from the left or from the top."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Shape:
    """SVG path data; `colour` is a name of the palette, `look` a class of the style sheet."""

    d: str
    colour: str
    look: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight line across the plot: a zero, a chance level, a median. `at` in per cent."""

    at: float
    upright: bool
    label: str = ""
    colour: str = "ink-3"


@dataclass(frozen=True, slots=True)
class Note:
    """Text in the plot's right margin, `at` per cent from the top: a line's last value."""

    at: float
    label: str
    colour: str
    light: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend: Key("chosen", "chosen", look="area")."""

    label: str
    colour: str
    look: str = "line"


@dataclass(frozen=True, slots=True)
class Mark:
    """An alarm's place on the x axis: Mark(41.0, "1", "critical", "alarm 1, step 41: non_finite")."""

    at: float
    label: str
    severity: str
    title: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything the template needs for one plot."""

    title: str
    said: str
    """The plot in one sentence, for who cannot see it."""
    unit: str = ""
    help: str = ""
    """What is measured, at more length."""
    caption: str = ""
    paths: list[Shape] = field(default_factory=list)
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    x_title: str = ""
    rules: list[Rule] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    readout: dict[str, Any] | None = None
    """What the pointer reads: {"unit", "x": [low, high], "y": [low, high, log], "epochs_per_step", "series": [...]}."""
    rows: int = 0
    """Categories down the y axis; 0 for a numeric one. Gives the plot its height."""

    @property
    def label_width(self) -> int:
        """Characters that the y labels and what stands below them need; a minus sign is wider than a digit."""
        labels = [tick.label for tick in self.y_ticks] + ([self.x_title] if self.has_corner else [])
        return max((len(label) + (MINUS in label) for label in labels), default=0)

    @property
    def has_corner(self) -> bool:
        """Whether the x axis' name is short enough to stand left of its ticks; "reward" beside "−4" reads as one."""
        crowded = bool(self.x_ticks) and self.x_ticks[0].at < CORNER_ROOM and self.x_title != "step"
        return not self.rows and 0 < len(self.x_title) <= 6 and not crowded

    @property
    def note_width(self) -> int:
        return max((len(note.label) + (MINUS in note.label) for note in self.notes), default=0)


def joined(points: Iterable[tuple[float, float]]) -> str:
    """Path data through points of the unit square (y upwards): [(0, 0), (1, 1)] -> "M0 1000L1000 0"."""
    data = ""
    for x, y in points:
        data += f"{'L' if data else 'M'}{_unit(x)} {_unit(1 - y)}"
    return data


def dots(points: Iterable[tuple[float, float]]) -> str:
    """Strokes of no length, which round line caps turn into discs that keep their shape when the plot is stretched."""
    return "".join(f"M{_unit(x)} {_unit(1 - y)}h0" for x, y in points)


def rectangle(left: float, bottom: float, right: float, top: float) -> str:
    return f"M{_unit(left)} {_unit(1 - bottom)}V{_unit(1 - top)}H{_unit(right)}V{_unit(1 - bottom)}Z"


def _unit(share: float) -> str:
    return f"{1000 * share:.1f}".removesuffix(".0")


def x_axis_ticks(scale: Axis, unit: str = "", aim: int = 4) -> list[Tick]:
    values = ticks(scale, aim)
    return [Tick(100 * scale.place(v), text) for v, text in zip(values, tick_labels(values, unit), strict=True)]


def y_axis_ticks(scale: Axis, unit: str = "", aim: int = 4) -> list[Tick]:
    values = ticks(scale, aim)
    labels = tick_labels(values, unit, log=scale.log)
    return [Tick(100 - 100 * scale.place(value), label) for value, label in zip(values, labels, strict=True)]


def spread_labels(notes: Sequence[Note], gap: float = 11.0) -> list[Note]:
    """Move labels apart until they are `gap` per cent from each other, in their order, and inside the plot."""
    placed: list[Note] = []
    for note in sorted(notes, key=lambda note: note.at):
        at = max(note.at, placed[-1].at + gap) if placed else max(note.at, 3.0)
        # Downwards first, which may push the last ones out of the plot; the second pass takes them back from the
        # bottom.
        placed.append(replace(note, at=at))
    limit = 97.0
    for index in range(len(placed) - 1, -1, -1):
        placed[index] = replace(placed[index], at=min(placed[index].at, limit))
        limit = placed[index].at - gap
    return placed


# ---------------------------------------------------------------- curves over steps


@dataclass(frozen=True, slots=True)
class Line:
    """A curve to draw: Line("chosen", "chosen", curve, held_out=True)."""

    name: str
    """What it measures; "" where the chart has a single measurement."""
    colour: str
    curve: Curve
    held_out: bool = False

    @property
    def label(self) -> str:
        return f"{self.name} {'held-out' if self.held_out else 'train'}".strip()


@dataclass(frozen=True, slots=True)
class LineStyle:
    """How a line chart is to be read."""

    unit: str = ""
    zero: bool = False
    """Zero belongs into the picture, as a rule."""
    bounds: tuple[float, float] | None = None
    """The whole range of a share."""
    chance: float | None = None
    positive: bool = False
    """May go to a log scale when spikes would flatten the rest."""
    exact: bool = False
    """Has no noise to smooth."""


def line_chart(
    title: str, lines: Sequence[Line], style: LineStyle, span: int = 1, epochs_per_step: float | None = None
) -> Chart:
    """Train and held-out over steps: every value faint, the mean of `span` of them on top, gaps as gaps.

    Lines without any finite value are left out; the chart of nothing says so in its caption.
    """
    drawn = [line for line in lines if any(value is not None for value in line.curve.values)]
    steps = [step for line in lines for step in line.curve.steps]
    across = _step_axis(steps)
    up = _value_axis(drawn, style)
    paths: list[Shape] = []
    notes: list[Note] = []
    for line in drawn:
        # Held-out values are few and each a mean of many rows already; the schedule's learning rate has no noise at
        # all.
        own_span = 1 if line.held_out or style.exact else span
        paths += _paths(line, across, up, own_span)
        notes.append(_last_value(line, up, style.unit, own_span))
    rules = [Rule(100 - 100 * up.place(0.0), False)] if style.zero and up.low < 0 < up.high else []
    if style.chance is not None and up.low < style.chance < up.high:
        rules.append(Rule(100 - 100 * up.place(style.chance), False, "chance"))
    return Chart(
        title=title,
        said=_said(title, drawn, style.unit),
        caption=_caption(lines, up.log),
        # The means are drawn last: the faint values of one line must not cover the mean of another.
        paths=sorted(paths, key=lambda path: path.look.startswith("main")),
        x_ticks=_step_ticks(across, steps),
        y_ticks=y_axis_ticks(up, style.unit) if drawn else [],
        x_title="step",
        rules=rules,
        notes=spread_labels(notes),
        keys=_keys(drawn),
        readout=_readout(drawn, across, up, style.unit, epochs_per_step) if drawn else None,
    )


def _step_axis(steps: Sequence[float]) -> Axis:
    if not steps:
        return Axis(0.0, 1.0)
    low, high = min(steps), max(steps)
    # A run of one step has no span; its dot stands in the middle.
    return Axis(low - 0.5, high + 0.5) if low == high else Axis(low, high)


def _step_ticks(across: Axis, steps: Sequence[float]) -> list[Tick]:
    if len(set(steps)) == 1:
        return [Tick(50.0, count(steps[0]))]
    values = [value for value in ticks(across, aim=5) if value == int(value)]
    return [Tick(100 * across.place(v), text) for v, text in zip(values, tick_labels(values), strict=True)]


def _value_axis(drawn: Sequence[Line], style: LineStyle) -> Axis:
    values = sorted(value for line in drawn for value in line.curve.values if value is not None)
    if not values:
        return Axis(0.0, 1.0)
    # The whole range while every value is within it: an accuracy that went from 0.81 to 0.82 must look like what it is.
    if style.bounds and style.bounds[0] - ROUNDING <= values[0] and values[-1] <= style.bounds[1] + ROUNDING:
        return axis(*style.bounds)
    low, high = (min(values[0], 0.0), max(values[-1], 0.0)) if style.zero else (values[0], values[-1])
    # Against the median, which the spikes themselves hardly move; at the mean they would vanish into what they raised.
    median = values[len(values) // 2]
    if style.positive and values[0] > 0 and high > LOG_RATIO * median:
        return axis(low, high, log=True)
    return axis(low, high, room=0.06)


def _paths(line: Line, across: Axis, up: Axis, span: int) -> list[Shape]:
    raw = _outline(line.curve.steps, line.curve.values, across, up)
    if line.held_out:
        found = [Shape(raw, line.colour, "main held-out")]
        # Dots say where it was measured: between two of them the dashes are a guess.
        if len(line.curve.steps) <= MOST_DOTS:
            found.append(Shape(dots(_points(line, across, up)), line.colour, "main dot"))
        return found
    if span == 1:
        return [Shape(raw, line.colour, "main")]
    smooth = _smooth(line.curve.values, span, up.log)
    return [
        Shape(raw, line.colour, "raw"),
        Shape(_outline(line.curve.steps, smooth, across, up), line.colour, "main"),
    ]


def _smooth(values: Sequence[float | None], span: int, log: bool) -> list[float | None]:
    """The running mean as it looks straight on this axis: of the logarithms, where the axis is one of logarithms."""
    if not log:
        return running_mean(values, span)
    logs = running_mean([None if value is None else math.log(value) for value in values], span)
    return [None if value is None else math.exp(value) for value in logs]


def _outline(steps: Sequence[float], values: Sequence[float | None], across: Axis, up: Axis) -> str:
    """Path data, broken at gaps; a value that stands alone between gaps becomes a dot."""
    kept = downsample(values, BUCKETS)
    thinned = [values[index] for index in kept]
    data = ""
    for first, last in segments(thinned):
        points = [
            (across.place(steps[index]), up.place(value))
            for index, value in zip(kept[first:last], thinned[first:last], strict=True)
            if value is not None
        ]
        # A path through one point has no length and would not be drawn: a lone value between two gaps would be lost.
        data += joined(points) if len(points) > 1 else dots(points)
    return data


def _points(line: Line, across: Axis, up: Axis) -> list[tuple[float, float]]:
    pairs = zip(line.curve.steps, line.curve.values, strict=True)
    return [(across.place(step), up.place(value)) for step, value in pairs if value is not None]


def _last_value(line: Line, up: Axis, unit: str, span: int) -> Note:
    """The value at the line's right end, as it is drawn."""
    # The number beside a line's end has to be where the line ends, so it is the smoothed one.
    values = _smooth(line.curve.values, span, up.log) if span > 1 else line.curve.values
    last = next(value for value in reversed(values) if value is not None)
    return Note(100 - 100 * up.place(last), number(last, unit), line.colour, light=line.held_out)


def _keys(drawn: Sequence[Line]) -> list[Key]:
    """The colours; that held-out is dashed with dots holds for all curves, and the page says it above them."""
    names = {line.colour: line.name for line in drawn if line.name}
    return [Key(name, colour) for colour, name in names.items()]


def _caption(lines: Sequence[Line], log: bool) -> str:
    parts = []
    if log:
        parts.append("log scale, mean of the logs")
    gaps = [step for line in lines for step, v in zip(line.curve.steps, line.curve.values, strict=True) if v is None]
    if gaps:
        places = len(set(gaps))
        parts.append(f"not finite at {places} step{'s' if places > 1 else ''} (first: {count(min(gaps))})")
    return "; ".join(parts)


def _said(title: str, drawn: Sequence[Line], unit: str) -> str:
    sentences = []
    for line in drawn:
        known = [(s, v) for s, v in zip(line.curve.steps, line.curve.values, strict=True) if v is not None]
        (first_step, first), (last_step, last) = known[0], known[-1]
        sentences.append(
            f"{line.label} from {number(first, unit)} at step {count(first_step)} "
            f"to {number(last, unit)} at step {count(last_step)}"
        )
    return f"{title}: {'; '.join(sentences) or 'no finite value'}."


def _readout(drawn: Sequence[Line], across: Axis, up: Axis, unit: str, epochs_per_step: float | None) -> dict[str, Any]:
    series = []
    for line in drawn:
        # Without the gaps: the pointer goes to the nearest step that has a value, and says which that was.
        kept = [i for i in downsample(line.curve.values, BUCKETS) if line.curve.values[i] is not None]
        series.append(
            {
                "label": line.label,
                "colour": line.colour,
                "x": [_short(line.curve.steps[index]) for index in kept],
                "y": [_short(line.curve.values[index]) for index in kept],
            }
        )
    return {
        "unit": unit,
        "x": [across.low, across.high],
        "y": [_short(up.low), _short(up.high), up.log],
        "epochs_per_step": _short(epochs_per_step),
        "series": series,
    }


def _short(value: float | None) -> float | int | None:
    """Five digits are enough to read a chart, and keep the page small."""
    if value is None:
        return None
    rounded = float(f"{value:.5g}")
    # A step is a whole number and keeps all of its digits: 1234567 must not be read out as 1234600.
    return int(value) if value == int(value) and abs(value) < 1e9 else rounded
