"""Whose turn it is among several sources of rows: a plan that is made once, and counts that are a function of the draw.

    parts = (Part("chat", rows=400, share=1.0), Part("maths", rows=1000, share=2.0))
    stretches = plan(parts, rows_per_step=32, draws=3200)     # one: both are on all the time
    taken_before(stretches, 32)                               # (11, 21): what the first step takes of each

Turns follow the divisor method of Webster and Sainte-Laguë: draw number c of a source whose share is p has its place at
(c + 1/2) / p, and the sources' places are merged. That is a sequence (no draw is ever taken back when there are more,
as rounding by largest remainders would: the Alabama paradox), every source stays within 1/2 + p S / 2 draws of its
share among S sources after any number of draws, and the count after k draws is found without walking through them.
Random draws would stray by the root of k, and a resumed run would have to repeat them.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from posttrain.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Part:
    """One source: Part("maths", rows=1000, share=2.0, repeat=1, epochs=3.0, begin=0, end=100)."""

    name: str
    rows: int
    share: float
    """Of the draws, beside the shares of the others that are on; any positive number."""
    repeat: int = 1
    """How often each row stands in an epoch of the source."""
    epochs: float | None = None
    """Epochs of the source after which it is used up; None: never."""
    begin: int = 0
    """The step, counted from 0, from which it is on."""
    end: int | None = None
    """The step from which it is off; None: never."""

    @property
    def size(self) -> int:
        """Draws of one epoch of the source."""
        return self.rows * self.repeat

    @property
    def most(self) -> int | None:
        """Draws of the whole run, at most."""
        # A cap that rounds to nothing would be a source that is named and never read.
        return None if self.epochs is None else max(1, round(self.epochs * self.size))

    def is_on(self, step: int) -> bool:
        return self.begin <= step and (self.end is None or step < self.end)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Draws between which the shares stay as they are: Stretch(0, 3200, (1/3, 2/3), before=(0, 0))."""

    first: int
    end: int
    shares: tuple[float, ...]
    """Of each source, 1 in all; 0: it is off, or used up."""
    before: tuple[int, ...]
    """Draws of each source before the stretch."""


def plan(parts: Sequence[Part], rows_per_step: int, draws: int) -> tuple[Stretch, ...]:
    """The run's stretches; a new one begins where a source is switched on or off, or is used up.

    Raises:
        ConfigError: no source is on at some step.
    """
    stretches: list[Stretch] = []
    at, before = 0, [0] * len(parts)
    while at < draws:
        step = at // rows_per_step
        on = [
            part.is_on(step) and (part.most is None or taken < part.most)
            for part, taken in zip(parts, before, strict=True)
        ]
        if not any(on):
            raise _nothing_on(parts, before, step)
        total = sum(part.share for part, is_on in zip(parts, on, strict=True) if is_on)
        shares = tuple(part.share / total if is_on else 0.0 for part, is_on in zip(parts, on, strict=True))
        ends = [draws]
        for place, part in enumerate(parts):
            # A switch is due at the beginning of a step; the rest of the one under way keeps its shares.
            ends += [edge * rows_per_step for edge in (part.begin, part.end) if edge is not None and edge > step]
            if part.most is not None and shares[place]:
                ends.append(at + place_of(shares, place, part.most - before[place]))
        end = min(ends)
        stretches.append(Stretch(at, end, shares, tuple(before)))
        before = [taken + more for taken, more in zip(before, drawn(shares, end - at), strict=True)]
        at = end
    return tuple(stretches)


def taken_before(stretches: Sequence[Stretch], draw: int) -> tuple[int, ...]:
    """How many of the first `draw` draws are of each source."""
    stretch = next((one for one in stretches if draw <= one.end), stretches[-1])
    inside = drawn(stretch.shares, draw - stretch.first)
    return tuple(before + more for before, more in zip(stretch.before, inside, strict=True))


def drawn(shares: Sequence[float], draws: int) -> tuple[int, ...]:
    """How many of the first `draws` draws are of each source: drawn((1/3, 2/3), 32) is (11, 21).

    Args:
        shares: 1 in all; equal places go to the source that stands first.
    """
    on = [place for place, share in enumerate(shares) if share > 0]
    counts = [0] * len(shares)
    # The threshold that `draws` draws lie below is at least draws - S/2, so each count is at least this; the few draws
    # that are left are handed out one by one. That costs the same for the first step and the millionth.
    for place in on:
        counts[place] = max(0, floor(draws * shares[place] - shares[place] * len(on) / 2 - 2))
    waiting = [(_place(counts[place], shares[place]), place) for place in on]
    heapq.heapify(waiting)
    for _ in range(draws - sum(counts)):
        _, place = waiting[0]
        counts[place] += 1
        heapq.heapreplace(waiting, (_place(counts[place], shares[place]), place))
    return tuple(counts)


def place_of(shares: Sequence[float], source: int, number: int) -> int:
    """After how many draws the source has had `number` of them: place_of((1/3, 2/3), 0, 1) is 2."""
    last = (_place(number - 1, shares[source]), source)
    total = 0
    for place, share in enumerate(shares):
        if share <= 0:
            continue
        count = max(0, floor(last[0] * share + 0.5))
        # The estimate is off by one where a product was rounded; the places themselves decide.
        while (_place(count, share), place) <= last:
            count += 1
        while count and (_place(count - 1, share), place) > last:
            count -= 1
        total += count
    return total


def _place(number: int, share: float) -> float:
    """Where draw `number` of a source stands, counted from 0."""
    return (number + 0.5) / share


def _nothing_on(parts: Sequence[Part], taken: Sequence[int], step: int) -> ConfigError:
    used_up = [
        part.name for part, count in zip(parts, taken, strict=True) if part.most is not None and count >= part.most
    ]
    off = [part.name for part in parts if not part.is_on(step) and part.name not in used_up]
    said = [f"used up: {', '.join(used_up)}"] if used_up else []
    said += [f"off: {', '.join(off)}"] if off else []
    return ConfigError(
        f"no source of the mixture is on at step {step + 1}",
        where="data.sources",
        found="; ".join(said),
        expected="a source that is on at every step of the run",
        remedy="raise a source's `epochs`, widen its `from` and `until`, or give the stage fewer `steps`",
    )
