"""Numbers as people read them: values with units, durations, sizes, and axis ticks.

The minus sign is U+2212 and a missing value is an en dash, everywhere in the report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

MISSING = "–"
MINUS = "−"
NARROW_SPACE = "\u202f"
HARD_SPACE = "\u00a0"


def number(value: float | None, unit: str = "") -> str:
    """A value with three or four digits that matter: number(0.69315) is "0.693", number(0.9375, "share") "93.8 %".

    unit: "share" multiplies by 100; "" and everything else is written as it is, without the unit's name.
    """
    # One sign for both: a measurement that was not finite is as absent as one that was not made.
    if value is None or not math.isfinite(value):
        return MISSING
    if unit == "share":
        return f"{_signed(f'{100 * value:.1f}')}{NARROW_SPACE}%"
    size = abs(value)
    if size == 0:
        return "0"
    # Fixed decimals would show a learning rate of 1e-5 as 0.000.
    if size < 1e-3 or size >= 1e7:
        return _signed(f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace(".0e", "e"))
    if size >= 1000 or (value == int(value) and size >= 100):
        return _signed(f"{value:,.0f}".replace(",", NARROW_SPACE))
    decimals = 3 if size < 1 else 2 if size < 10 else 1
    return _signed(f"{value:.{decimals}f}")


def interval(low: float | None, high: float | None, unit: str = "") -> str:
    """interval(0.87, 0.98, "share") is "87.0 to 98.0 %"; empty where a bound is missing."""
    if low is None or high is None:
        return ""
    first, second = number(low, unit), number(high, unit)
    if unit == "share":
        # One unit for both bounds, after the second: "87.0 to 98.0 %".
        first = first.removesuffix(f"{NARROW_SPACE}%")
    return f"{first} to {second}"


def difference(value: float, unit: str = "") -> str:
    """A signed change: difference(0.88, "share") is "+88.0 points" (percentage points)."""
    # Percentage points: "+5 %" of a share of 20 % could be read as 21 %.
    if unit == "share":
        return f"{'+' if value >= 0 else MINUS}{abs(100 * value):.1f} points"
    return f"+{number(value)}" if value >= 0 else number(value)


def count(value: float | None) -> str:
    """A whole number with its thousands apart: count(28430) is "28 430"."""
    if value is None or not math.isfinite(value):
        return MISSING
    return _signed(f"{value:,.0f}".replace(",", NARROW_SPACE))


def short_count(value: float | None) -> str:
    """Parameters and tokens: short_count(134_515_008) is "134.5 M"."""
    if value is None or not math.isfinite(value):
        return MISSING
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.1f}{NARROW_SPACE}{letter}"
    return count(value)


def duration(seconds: float | None) -> str:
    """duration(112.4) is "1 min 52 s"; a number and its unit stay on one line."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f}{HARD_SPACE}s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}{HARD_SPACE}h {minutes}{HARD_SPACE}min"
    return f"{minutes}{HARD_SPACE}min {rest}{HARD_SPACE}s" if minutes else f"{rest}{HARD_SPACE}s"


def size(number_of_bytes: float | None) -> str:
    """Decimal units, as disks and the memory estimate count: size(155_000_000) is "155 MB"."""
    if number_of_bytes is None or not math.isfinite(number_of_bytes):
        return MISSING
    for unit_bytes, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number_of_bytes) >= unit_bytes:
            scaled = number_of_bytes / unit_bytes
            return f"{scaled:.{0 if scaled >= 100 else 1}f}{HARD_SPACE}{name}"
    return f"{number_of_bytes:.0f}{HARD_SPACE}B"


def _signed(text: str) -> str:
    if text.startswith("-"):
        # What rounds to zero has no sign: "−0.000" would look like a fall.
        return text[1:] if not any(c in "123456789" for c in text) else MINUS + text[1:]
    return text


# ---------------------------------------------------------------- axes


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to the fraction of an edge: Axis(0.0, 2.0).place(0.5) is 0.25."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        if self.log:
            span = math.log(self.high) - math.log(self.low)
            # Clamped below: of 0 there is no logarithm, and a value at the edge says more than a gap.
            return (math.log(max(value, self.low)) - math.log(self.low)) / span
        return (value - self.low) / (self.high - self.low)


def axis(low: float, high: float, *, log: bool = False, room: float = 0.04) -> Axis:
    """An axis that holds [low, high] with a little `room` (a share of the span) at both ends; never of zero span."""
    if log:
        # At least 5 %: with low equal to high the span of the logs, which `place` divides by, would be 0.
        factor = max((high / low) ** room, 1.05)
        return Axis(low / factor, high * factor, log=True)
    span = high - low
    # Below this the span is rounding noise of the values themselves; drawn to scale it would look like movement.
    if span <= 1e-9 * max(abs(low), abs(high), 1e-30):
        span = max(abs(low) * 0.5, 1e-6 if low else 1.0)
        return Axis(low - span / 2, high + span / 2)
    return Axis(low - room * span, high + room * span)


def ticks(scale: Axis, aim: int = 4) -> list[float]:
    """Round values inside the axis, about `aim` of them; on a log axis powers of ten, with 2 and 5 where few fit."""
    if scale.log:
        return _log_ticks(scale)
    rough = (scale.high - scale.low) / aim
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((power * factor for factor in (1, 2, 2.5, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    # A tick at the very edge, which is a whole multiple but for rounding, must not be lost.
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    decimals = max(12, 4 - math.floor(math.log10(step)))  # a step of 1e-13 must not round to one of 0
    # From whole multiples, since adding steps up adds their rounding up; + 0.0 makes 0 of -0.
    return [round(index * step, decimals) + 0.0 for index in range(first, last + 1)]


def _log_ticks(scale: Axis) -> list[float]:
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    whole = [10.0**power for power in powers if scale.low <= 10.0**power <= scale.high]
    # Three powers of ten are the least by which an axis can be seen to be logarithmic; below, 2 and 5 come between.
    if len(whole) >= 3:
        return whole[:: math.ceil(len(whole) / 5)]
    fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    fine = [value for value in fine if scale.low <= value <= scale.high]
    return fine or ticks(Axis(scale.low, scale.high))


def tick_labels(values: list[float], unit: str = "", *, log: bool = False) -> list[str]:
    """Labels with one number of decimals for the whole axis: [0.0, 0.25, 0.5] -> "0.00", "0.25", "0.50"."""
    if not values:
        return []
    if log:
        return [number(value) if value < 1e-3 else f"{value:g}" for value in values]
    if unit == "share":
        return [f"{_signed(text)}{NARROW_SPACE}%" for text in _even([100 * value for value in values])]
    largest = max(abs(value) for value in values)
    even = [_signed(text) for text in _even(values)]
    if not largest or 1e-3 <= largest < 1e4:
        return even
    # Only if they stay different: two ticks under one label would make the axis unreadable.
    short = [_thousands(value) if 1e4 <= largest < 1e7 else number(value) for value in values]
    return short if len(set(short)) == len(values) else even


def _even(values: list[float]) -> list[str]:
    gaps = [abs(second - first) for first, second in pairwise(values)]
    # As many decimals as tell the ticks apart exactly, and no more: 0.25 is not "0.2".
    exact = 1e-4 * min(gaps, default=abs(values[0]) or 1.0)
    for decimals in range(10):
        if all(abs(round(value, decimals) - value) <= exact for value in values):
            return [f"{value:.{decimals}f}" for value in values]
    return [f"{value:.3g}" for value in values]


def _thousands(value: float) -> str:
    scaled = f"{value / 1000:.1f}".removesuffix(".0")
    return f"{_signed(scaled)}k" if value else "0"
