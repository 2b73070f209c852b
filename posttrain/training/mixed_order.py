"""Which rows of which source a step trains on: a function of the seed and the step, as `RowOrder` is for one source.

order = MixedOrder.plan(parts, offsets, rows_per_step=32, draws=3200, epoch="total", seed=0)
order.at(3)                 # 32 places in the sources' rows, laid one after the other

Whose turn it is says `posttrain.data.mixture`. Each source walks through its own permutation, another one for each of
its epochs, drawn from the seed and the source's name: neither the order of the sources nor the shares of the others
change in which order a source's own rows come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from math import ceil
from typing import Literal

import numpy as np

from posttrain.data.mixture import Part, Stretch, place_of, plan, taken_before
from posttrain.errors import ConfigError
from posttrain.training.order import RowOrder, stream

EpochOf = Literal["total", "first_exhausted", "all_exhausted"]
SHOWN_STRETCHES = 4
"""Of a curriculum, in the line of the batch; the others are counted."""


@dataclass(frozen=True, slots=True)
class MixedOrder:
    """Sources with shares: every step but the last of the run has its full number of rows."""

    parts: tuple[Part, ...]
    """By name, so that equal turns fall alike however the sources are listed."""
    offsets: tuple[int, ...]
    """Where the rows of each part begin."""
    rows: int
    """That are drawn in the whole run."""
    rows_per_step: int
    epoch: float
    """Rows of one epoch of the mixture."""
    seed: int
    stretches: tuple[Stretch, ...]

    @classmethod
    def plan(
        cls,
        parts: Sequence[Part],
        offsets: Sequence[int],
        *,
        rows_per_step: int,
        draws: int,
        epoch: EpochOf,
        seed: int,
    ) -> MixedOrder:
        """The order of a run of so many draws (`planned_draws`).

        Args:
            parts: in the order in which their rows are laid.
            epoch: how many rows an epoch has; see `posttrain.config.Data`.

        Raises:
            ConfigError: no source is on at some step.
        """
        placed = sorted(zip(parts, offsets, strict=True), key=lambda pair: pair[0].name)
        parts = tuple(part for part, _ in placed)
        stretches = plan(parts, rows_per_step, draws)
        size = _epoch_rows(parts, epoch)
        return cls(parts, tuple(offset for _, offset in placed), draws, rows_per_step, size, seed, stretches)

    @property
    def steps(self) -> int:
        return ceil(self.rows / self.rows_per_step)

    @property
    def smallest_step(self) -> int:
        """Rows of the last step, which takes what is left."""
        return self.rows - (self.steps - 1) * self.rows_per_step

    def epoch_after(self, step: int) -> float:
        """Epochs of the mixture after `step` steps."""
        return min(step * self.rows_per_step, self.rows) / self.epoch

    def at(self, step: int) -> list[int]:
        """Places of the rows of step `step`, counted from 0: of the first source by name, then of the next."""
        first = step * self.rows_per_step
        before = taken_before(self.stretches, first)
        after = taken_before(self.stretches, min(first + self.rows_per_step, self.rows))
        places: list[int] = []
        for part, offset, start, end in zip(self.parts, self.offsets, before, after, strict=True):
            places += [offset + _row_of(self.seed, part, number) for number in range(start, end)]
        return places

    @property
    def taken(self) -> Mapping[str, int]:
        """Rows of the whole run, by source."""
        names = [part.name for part in self.parts]
        return dict(zip(names, taken_before(self.stretches, self.rows), strict=True))

    @property
    def epochs_of(self) -> Mapping[str, float]:
        """How often the run goes through each source: {"maths": 2.1, "chat": 0.8}."""
        return {part.name: self.taken[part.name] / part.size for part in self.parts}

    def seen_share(self, name: str) -> float:
        """Share of a source's rows that the run comes to."""
        part = next(part for part in self.parts if part.name == name)
        return min(1.0, self.taken[name] / part.size)

    def arithmetic(self, row: str, trees_per_row: str = "") -> str:
        """One line in the user's units.

        1,400 rows of 2 sources, 32 a step: chat 10.7, maths 21.3; 44 steps in all; chat 1.17 epochs, maths 0.93
        """
        total = sum(part.rows for part in self.parts)
        turns = [self._turn(stretch) for stretch in self.stretches[:SHOWN_STRETCHES]]
        if hidden := len(self.stretches) - len(turns):
            turns.append(f"{hidden} more changes")
        epochs = ", ".join(f"{name} {times:.3g}" for name, times in self.epochs_of.items())
        return (
            f"{total:,} {row} of {len(self.parts)} sources{trees_per_row}, {self.rows_per_step} a step: "
            f"{'; '.join(turns)}; {self.steps:,} steps in all; epochs of each: {epochs}"
        )

    def _turn(self, stretch: Stretch) -> str:
        shares = ", ".join(
            f"{part.name} {share * self.rows_per_step:.3g}"
            for part, share in zip(self.parts, stretch.shares, strict=True)
            if share
        )
        return shares if not stretch.first else f"from step {stretch.first // self.rows_per_step + 1} {shares}"


@dataclass(frozen=True, slots=True)
class PooledOrder:
    """Sources as one pool: RowOrder over all their rows, each as often as its source's `repeat` says.

    Without `repeat` it is bit for bit the order of the same files as a list of paths.
    """

    parts: tuple[Part, ...]
    offsets: tuple[int, ...]
    order: RowOrder

    @property
    def rows(self) -> int:
        return self.order.rows

    @property
    def rows_per_step(self) -> int:
        return self.order.rows_per_step

    @property
    def steps(self) -> int:
        return self.order.steps

    @property
    def smallest_step(self) -> int:
        return self.order.smallest_step

    def epoch_after(self, step: int) -> float:
        return self.order.epoch_after(step)

    def at(self, step: int) -> list[int]:
        return [self._place(place) for place in self.order.at(step)]

    @property
    def taken(self) -> Mapping[str, int]:
        """Rows of the whole run, by source, in whole epochs and the expected share of the last."""
        return {part.name: round(self.order.epochs * part.size) for part in self.parts}

    @property
    def epochs_of(self) -> Mapping[str, float]:
        return {part.name: self.order.epochs for part in self.parts}

    def seen_share(self, name: str) -> float:
        return min(1.0, self.order.epochs)

    def arithmetic(self, row: str, trees_per_row: str = "") -> str:
        step = min(self.rows_per_step, self.rows)
        shares = ", ".join(f"{part.name} {step * part.size / self.rows:.3g}" for part in self.parts)
        return f"{self.order.arithmetic(row, trees_per_row)}; on average a step holds {shares}"

    def _place(self, place: int) -> int:
        for part, offset in zip(self.parts, self.offsets, strict=True):
            if place < part.size:
                return offset + place % part.rows
            place -= part.size
        raise IndexError(place)


def planned_draws(
    parts: Sequence[Part], rows_per_step: int, *, epochs: float | None, steps: int | None, epoch: EpochOf
) -> int:
    """Rows that a run of so many steps, or epochs of the mixture, draws.

    Raises:
        ConfigError: there would be none.
    """
    if steps is not None:
        return steps * rows_per_step
    times = 1.0 if epochs is None else epochs
    if epoch == "total":
        # A source that is used up earlier gives no more than that: the others do not fill its place.
        draws = round(sum(min(times * part.size, part.most or times * part.size) for part in parts))
    else:
        draws = round(times * _epoch_rows(parts, epoch))
    if draws < 1:
        raise ConfigError(
            "the stage would take no step",
            found=f"epochs: {times:g} of {sum(part.size for part in parts):,} rows",
            remedy="raise `epochs`, or give `steps`",
        )
    return draws


def _epoch_rows(parts: Sequence[Part], epoch: EpochOf) -> float:
    """Rows of one epoch: of all sources together, or until the first, or each of them, was gone through once."""
    if epoch == "total":
        return sum(part.size for part in parts)
    total = sum(part.share for part in parts)
    shares = [part.share / total for part in parts]
    ends = [place_of(shares, place, part.size) for place, part in enumerate(parts)]
    return min(ends) if epoch == "first_exhausted" else max(ends)


def _row_of(seed: int, part: Part, number: int) -> int:
    """The row of draw `number` of a source, in its own rows."""
    times, place = divmod(number, part.size)
    return int(_permutation(seed, part.name, times, part.size)[place]) % part.rows


# As many as two epochs of sixteen sources: a step that goes from one epoch of a source to the next needs both.
@lru_cache(maxsize=32)
def _permutation(seed: int, name: str, times: int, size: int) -> np.ndarray:
    # Two words of fixed length, since a stream takes an index for the same with zeros behind it.
    digest = sha256(name.encode()).digest()
    words = (int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big"))
    return stream(seed, "mixture", times + 1, *words).permutation(size)
