"""The recent past of a run's metrics, bounded in memory, and the statistics that the alarms' checks need.

Standard library only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Point = tuple[int, float]

START = 10
"""First values kept of each metric: what "since the start" compares with."""
RECENT = 50
"""Last values kept of each metric; no window may be longer."""


class History:
    """The first `START` and the last `RECENT` finite values of each watched metric, with their steps.

    Held-out metrics are kept under "held_out/<name>".
    """

    def __init__(self, watched: Iterable[str]):
        self.watched = frozenset(watched)
        self._start: dict[str, list[Point]] = {}
        self._recent: dict[str, list[Point]] = {}
        self._seen: dict[str, int] = {}

    def add(self, step: int, values: Mapping[str, float], split: str) -> None:
        for name, value in values.items():
            key = name if split == "train" else f"{split}/{name}"
            # A mean over nothing is NaN: an absent measurement, not a value. Non-finite losses never come here.
            if key not in self.watched or not math.isfinite(value):
                continue
            start, recent = self._start.setdefault(key, []), self._recent.setdefault(key, [])
            # Kept apart for good: the recent values have forgotten the start after RECENT steps.
            if len(start) < START:
                start.append((step, float(value)))
            recent.append((step, float(value)))
            del recent[:-RECENT]
            # The two lists are bounded; whether they overlap (`change`) and whether a metric exists at all is read from
            # the count.
            self._seen[key] = self._seen.get(key, 0) + 1

    def start(self, name: str, size: int) -> list[float]:
        """The first `size` values, or fewer if there are not that many."""
        return [value for _, value in self._start.get(name, [])[:size]]

    def first(self, name: str) -> Point:
        """The first value of all with its step; there must be one."""
        return self._start[name][0]

    def recent(self, name: str, size: int) -> list[float]:
        """The last `size` values, or fewer if there are not that many."""
        return [value for _, value in self._recent.get(name, [])[-size:]]

    def points(self, name: str) -> list[Point]:
        """The last values with their steps, oldest first."""
        return list(self._recent.get(name, []))

    def newest(self, name: str) -> Point | None:
        """The last value with its step."""
        recent = self._recent.get(name)
        return (recent[-1][0], recent[-1][1]) if recent else None

    def at(self, name: str, step: int) -> float | None:
        """The newest value, if it is of that step."""
        newest = self.newest(name)
        # A metric that this step did not measure must not be answered with an earlier step's value.
        return newest[1] if newest is not None and newest[0] == step else None

    def seen(self, name: str) -> int:
        """How many values of a metric there have been."""
        return self._seen.get(name, 0)

    def step_before(self, name: str, size: int) -> int:
        """The step just before the last `size` values of a metric: where a window that looks bad began."""
        return self._recent[name][-size:][0][0] - 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "start": {name: [list(point) for point in points] for name, points in sorted(self._start.items())},
            "recent": {name: [list(point) for point in points] for name, points in sorted(self._recent.items())},
            "seen": dict(sorted(self._seen.items())),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start = {name: [(step, value) for step, value in points] for name, points in state["start"].items()}
        self._recent = {name: [(step, value) for step, value in points] for name, points in state["recent"].items()}
        self._seen = dict(state["seen"])


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def noise(values: Sequence[float], *sizes: int) -> float:
    """Standard error of a mean of `size` such values, or of a difference of means of two sizes.

    The spread is taken from successive differences (von Neumann 1941), so that a trend does not count as noise.
    """
    if len(values) < 2:
        return 0.0
    # E (x' - x)^2 is twice the variance where values are independent; a slow trend adds only the square of its slope.
    squares = [(after - before) ** 2 for before, after in itertools.pairwise(values)]
    return math.sqrt(mean(squares) / 2 * sum(1 / size for size in sizes))


@dataclass(frozen=True, slots=True)
class Change:
    """How far a metric has moved: Change(before=0.42, now=0.61, error=0.02)."""

    before: float
    """Mean of the first `START` values."""
    now: float
    """Mean of the last `window` values."""
    error: float
    """Standard error of their difference."""

    @property
    def rise(self) -> float:
        return self.now - self.before

    def rises(self, least: float, sigmas: float) -> bool:
        """By more than `least`, and by more than noise."""
        return self.rise > max(least, sigmas * self.error)

    def falls(self, least: float, sigmas: float) -> bool:
        return -self.rise > max(least, sigmas * self.error)


def change(
    history: History, name: str, window: int, transform: Callable[[float], float] | None = None
) -> Change | None:
    """The first values of a metric against the last `window`; None while they overlap."""
    # While they overlap, a value would be in both means and cancel itself.
    if history.seen(name) < START + window:
        return None
    of = transform or float
    # The noise is that of the recent values for both means: ten first ones are too few for an estimate of their own.
    first, recent = [of(v) for v in history.start(name, START)], [of(v) for v in history.recent(name, RECENT)]
    return Change(mean(first), mean(recent[-window:]), noise(recent, START, window))
