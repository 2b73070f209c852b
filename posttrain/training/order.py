"""Which rows a step trains on: a pure function of the seed and the step, so that resuming needs no state.

Each epoch is its own permutation of the rows. A step takes `rows_per_step` of them; the last step of an epoch takes
what is left, and the loss divides by what is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Literal, Protocol

import numpy as np

from posttrain.errors import ConfigError

Purpose = Literal[
    "order", "split", "dropout", "adapter", "sampling", "evaluation", "mismatch", "curriculum", "filter", "mixture"
]
_PURPOSES: tuple[Purpose, ...] = (
    "order",
    "split",
    "dropout",
    "adapter",
    "sampling",
    "evaluation",
    "mismatch",
    "curriculum",
    "filter",
    "mixture",
)


def stream(seed: int, purpose: Purpose, *index: int) -> np.random.Generator:
    """The random stream of one purpose and index.

    Streams of different purposes never overlap, nor do those of different indices, but for one trap: an index is the
    same with zeros behind it. A purpose's indices must therefore all have the same length, or lead with another number.
    """
    return np.random.default_rng([seed, _PURPOSES.index(purpose), *index])


def stream_seed(seed: int, purpose: Purpose, *index: int) -> int:
    """A seed for a generator that is not numpy's: 63 bits from the purpose's stream."""
    return int(stream(seed, purpose, *index).integers(0, 2**63 - 1))


class Order(Protocol):
    """Which rows a step takes; `RowOrder` for one source, those of `mixed_order` for several."""

    @property
    def rows(self) -> int:
        """Rows of an epoch; of a mixture with shares, of the whole run."""
        ...

    @property
    def rows_per_step(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def smallest_step(self) -> int:
        """Rows of the smallest step of the run."""
        ...

    def epoch_after(self, step: int) -> float: ...

    def at(self, step: int) -> list[int]:
        """Row indices of step `step`, counted from 0."""
        ...

    def arithmetic(self, row: str, trees_per_row: str = "") -> str: ...


@dataclass(frozen=True, slots=True)
class RowOrder:
    """RowOrder(rows=1000, rows_per_step=32, steps=94, seed=0): three epochs of 32 steps, cut to 94."""

    rows: int
    rows_per_step: int
    steps: int
    seed: int

    @classmethod
    def plan(cls, rows: int, rows_per_step: int, *, epochs: float | None, steps: int | None, seed: int) -> RowOrder:
        """The order whose number of steps comes from `epochs` (a fraction is allowed) or `steps`.

        Raises:
            ConfigError: fewer than one step.
        """
        per_epoch = ceil(rows / rows_per_step)
        total = steps if steps is not None else round(per_epoch * (1.0 if epochs is None else epochs))
        if total < 1:
            raise ConfigError(
                "the stage would take no step",
                found=f"epochs: {epochs} of {rows:,} rows at rows_per_step: {rows_per_step}",
                remedy="raise `epochs`, lower `rows_per_step`, or give `steps`",
            )
        return cls(rows, rows_per_step, total, seed)

    @property
    def steps_per_epoch(self) -> int:
        return ceil(self.rows / self.rows_per_step)

    @property
    def smallest_step(self) -> int:
        """The last step of an epoch has what is left over: 33 rows at 32 a step leave a single one."""
        last = self.rows - (self.steps_per_epoch - 1) * self.rows_per_step
        return last if self.steps >= self.steps_per_epoch else self.rows_per_step

    @property
    def epochs(self) -> float:
        return self.epoch_after(self.steps)

    def epoch_after(self, step: int) -> float:
        """Epochs completed after `step` steps: 1.5 is half-way through the second."""
        whole, within = divmod(step, self.steps_per_epoch)
        return whole + min(1.0, within * self.rows_per_step / self.rows)

    def at(self, step: int) -> list[int]:
        """Row indices of step `step`, counted from 0."""
        epoch, within = divmod(step, self.steps_per_epoch)
        # Drawn for the epoch, not from the one before: step 10,000 costs no more than step 1 after a resume.
        order = _permutation(self.seed, epoch, self.rows)
        return order[within * self.rows_per_step : (within + 1) * self.rows_per_step].tolist()

    def arithmetic(self, row: str, trees_per_row: str = "") -> str:
        """One line in the user's units.

        1,000 pairs, 32 a step: 32 steps an epoch (the last of 8), 3 epochs, 96 steps in all
        """
        last = self.rows - (self.steps_per_epoch - 1) * self.rows_per_step
        partial = "" if last == self.rows_per_step else f" (the last of {last})"
        return (
            f"{self.rows:,} {row}{trees_per_row}, {self.rows_per_step} a step: {self.steps_per_epoch:,} steps an epoch"
            f"{partial}, {self.epochs:.3g} epochs, {self.steps:,} steps in all"
        )


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, rows: int) -> np.ndarray:
    return stream(seed, "order", epoch).permutation(rows)
