"""Which settings a design tries: every combination of a grid, or draws at random (Bergstra and Bengio 2012, JMLR 13).

    grid((Choices("dpo.beta", (0.05, 0.1)),))                      # [{"dpo.beta": 0.05}, {"dpo.beta": 0.1}]
    at_random(axes, trials=20, seed=0)                             # 20 draws; the first 10 are those of trials=10

A setting is a dict by key without the seed: every setting is run with every seed.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from typing import Any

from posttrain.errors import ConfigError
from posttrain.sweeps.axes import SEED, Axis, Choices, Range, values_of

Settings = dict[str, Any]
DIGITS = 4
"""Of a number that is drawn: it stands in a table, and is typed again by who wants that run."""
MOST_TRIES = 1_000


def seeds_of(axes: Sequence[Axis], own: int) -> tuple[int, ...]:
    """The repeats of every setting; `own` is the recipe's seed, where none is varied."""
    axis = next((axis for axis in axes if axis.key == SEED), None)
    return axis.values if isinstance(axis, Choices) else (own,)


def without_seed(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    return tuple(axis for axis in axes if axis.key != SEED)


def grid(axes: Sequence[Axis]) -> list[Settings]:
    """Every combination; the last axis changes fastest. Without an axis one setting, the recipe's own.

    Raises:
        ConfigError: a range of numbers that cannot be written out.
    """
    tried = [axis.values if isinstance(axis, Choices) else values_of(axis) for axis in axes]
    return [dict(zip([axis.key for axis in axes], values, strict=True)) for values in itertools.product(*tried)]


def at_random(axes: Sequence[Axis], trials: int, seed: int) -> list[Settings]:
    """Independent draws, no two alike; more trials begin with the same ones, so that a sweep can grow.

    Raises:
        ConfigError: the axes have fewer different settings.
    """
    drawn: list[Settings] = []
    seen: set[str] = set()
    stream = random.Random(seed)
    tries = 0
    while len(drawn) < trials:
        settings = {axis.key: draw(axis, stream) for axis in axes}
        if (key := canonical(settings)) not in seen:
            seen.add(key)
            drawn.append(settings)
            tries = 0
        elif (tries := tries + 1) > MOST_TRIES:
            raise ConfigError(
                "there are fewer different settings than trials",
                found=f"{len(drawn)} settings, {trials} trials",
                remedy=f"write `--trials {len(drawn)}`, or `--design grid` to try each once",
            )
    return drawn


def draw(axis: Axis, stream: random.Random) -> Any:
    """A value: a choice, a number of the range, or of `log` one whose logarithm is uniform."""
    if isinstance(axis, Choices):
        return axis.values[stream.randrange(len(axis.values))]
    if axis.whole and not axis.log:
        return stream.randint(int(axis.low), int(axis.high))
    if axis.log:
        # Of whole numbers each end has the half step beyond it too, or the last would hardly ever be drawn.
        half = 0.5 if axis.whole else 0.0
        number = math.exp(
            stream.uniform(
                math.log(max(axis.low - half, 0.5)) if half else math.log(axis.low), math.log(axis.high + half)
            )
        )
    else:
        number = stream.uniform(axis.low, axis.high)
    return within(axis, number)


def within(axis: Range, number: float) -> float | int:
    """A drawn number as it is used: whole, or with as many digits as a table shows; never outside of its range."""
    if axis.whole:
        return min(max(round(number), int(axis.low)), int(axis.high))
    return min(max(float(f"{number:.{DIGITS}g}"), axis.low), axis.high)


def canonical(settings: Settings) -> str:
    """Equal for equal settings, whatever their order."""
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)
