"""What a long list of numbers says, without losing what matters in it: downsampling that keeps spikes, running means
that respect gaps, histograms, quartiles. Standard library only, but for `quantile`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from posttrain.intervals import quantile


def downsample(values: Sequence[float | None], buckets: int) -> list[int]:
    """Indices to draw: first, last, and of each bucket the smallest, the largest and one gap.

    A list of up to 2 x `buckets` values is kept whole. A single spike and a single gap therefore survive any length.
    """
    total = len(values)
    # Every value of a list this short has its own place in the plot; thinning it would save nothing.
    if total <= 2 * buckets:
        return list(range(total))
    kept = {0, total - 1}
    for bucket in range(buckets):
        inside = range(bucket * total // buckets, (bucket + 1) * total // buckets)
        finite = [(value, index) for index in inside if (value := values[index]) is not None]
        if finite:
            # Extremes, not means: the spike that an alarm points at has to be in the picture.
            kept |= {min(finite)[1], max(finite)[1]}
        gap = next((index for index in inside if values[index] is None), None)
        if gap is not None:
            # A step that was not finite is news, and a line drawn across it would hide it.
            kept.add(gap)
    return sorted(kept)


def window(total: int) -> int:
    """The odd number of steps that a running mean spans: about a 25th of the run; 1 (no smoothing) below 40 steps."""
    return 1 if total < 40 else 2 * max(1, total // 50) + 1


def running_mean(values: Sequence[float | None], span: int) -> list[float | None]:
    """Centred mean over `span` values (odd), cut at the ends and at gaps: it never looks across a missing value."""
    half = span // 2
    smooth: list[float | None] = [None] * len(values)
    for first, last in segments(values):
        run = [value for value in values[first:last] if value is not None]
        sums = [0.0]
        for value in run:
            # Prefix sums, so that a run of a hundred thousand steps costs one pass whatever the span.
            sums.append(sums[-1] + value)
        for index in range(len(run)):
            low, high = max(0, index - half), min(len(run), index + half + 1)
            smooth[first + index] = (sums[high] - sums[low]) / (high - low)
    return smooth


def segments(values: Sequence[float | None]) -> list[tuple[int, int]]:
    """Runs without a gap, as half-open ranges: [1, 2, None, 3] -> [(0, 2), (3, 4)]."""
    found = []
    first = None
    for index, value in enumerate(values):
        if value is None and first is not None:
            found.append((first, index))
            first = None
        elif value is not None and first is None:
            first = index
    return [*found, (first, len(values))] if first is not None else found


def head_and_tail(values: Sequence[float | None]) -> tuple[float, float] | None:
    """Means over the first and the last tenth (at least one value each) of the finite values; None below two."""
    finite = [value for value in values if value is not None]
    if len(finite) < 2:
        return None
    # A tenth, not one value: single steps are noise, and words are made of this ("loss 0.69 → 0.41").
    span = max(1, len(finite) // 10)
    return fmean(finite[:span]), fmean(finite[-span:])


# ---------------------------------------------------------------- distributions


@dataclass(frozen=True, slots=True)
class Bins:
    """Equal bins over [low, high]: Bins(0.0, 10.0, 5)."""

    low: float
    high: float
    number: int

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.number

    def shares(self, values: Sequence[float]) -> list[float]:
        """The share of `values` in each bin."""
        counts = [0] * self.number
        for value in values:
            # The largest value lies on the last edge and belongs into the last bin; what is beyond either end is
            # counted there too.
            counts[min(self.number - 1, max(0, int((value - self.low) / self.width)))] += 1
        return [count / len(values) for count in counts] if values else [0.0] * self.number


def bins(values: Sequence[float], most: int = 32) -> Bins:
    """Bins by the Freedman-Diaconis rule, 8 to `most` of them; whole numbers get edges between whole numbers."""
    low, high = min(values), max(values)
    whole = all(value == int(value) for value in values)
    if low == high:
        reach = max(0.5, abs(low) * 0.05) if whole else max(abs(low) * 0.05, 1e-3)
        return Bins(low - reach, high + reach, 9)
    spread = quantile(sorted(values), 0.75) - quantile(sorted(values), 0.25)
    # Freedman and Diaconis 1981: a width of 2 IQR / n^(1/3). Without a spread of the middle half there is none to take.
    by_rule = (high - low) / (2 * spread / len(values) ** (1 / 3)) if spread else 12
    number = int(min(most, max(8, by_rule)))
    if not whole:
        return Bins(low, high, number)
    # A whole number of values in each bin: with 2 in one and 3 in the next, flat data would show a comb.
    step = max(1, math.ceil((high - low + 1) / number))
    number = math.ceil((high - low + 1) / step)
    return Bins(low - 0.5, low - 0.5 + number * step, number)


@dataclass(frozen=True, slots=True)
class Box:
    """Tukey's box: quartiles, whiskers to the furthest value within 1.5 quartile distances, the values beyond."""

    low: float
    first: float
    median: float
    third: float
    high: float
    outliers: list[float]


def box(values: Sequence[float]) -> Box:
    """box([1, 2, 3, 4, 100]) has the box 2 to 4, median 3, whiskers 1 to 4 and the outlier 100."""
    ordered = sorted(values)
    first, median, third = (quantile(ordered, share) for share in (0.25, 0.5, 0.75))
    reach = 1.5 * (third - first)
    inside = [value for value in ordered if first - reach <= value <= third + reach]
    outside = [value for value in ordered if not first - reach <= value <= third + reach]
    # Quartiles are interpolated and may lie beyond the furthest value that is inside; no whisker ends within its box.
    return Box(min(inside[0], first), first, median, third, max(inside[-1], third), outside)
