"""A strategy inside another one: both spend from one prompt's limit, and their nodes are one tree."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from posttrain.config.strategies import StrategySettings
from posttrain.config.strategies.context import ContextStrategy
from posttrain.inference.solution import Solution
from posttrain.inference.solving import Solving

CarryOut = Callable[[Solving, StrategySettings], Awaitable[Solution]]
"""Runs any strategy on a prompt: the table's own, given to those that wrap others."""


async def answered(solving: Solving, settings: ContextStrategy, carry_out: CarryOut) -> Solution:
    """The answer to `solving.prompt`, which holds by now what stands before the question."""
    if settings.then is None:
        [answer] = await solving.sample(1)
        return solving.solution(answer)
    solving.draw_as(settings.then.sampling)
    return await carry_out(solving, settings.then)
