"""All strategies: one literal row each. A new one is its record in `posttrain.config.strategies`, its file in
`strategies/`, and its row here; docs/inference.md has a line for each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from posttrain.config.strategies import (
    BestOfN,
    BudgetForcing,
    ChainOfThought,
    CritiqueBy,
    FewShot,
    Retrieval,
    SelfRefine,
    SelfVerification,
    StrategySettings,
)
from posttrain.inference.solution import Solution
from posttrain.inference.solving import Solving
from posttrain.inference.strategies import (
    best_of_n,
    budget_forcing,
    chain_of_thought,
    critique_by,
    few_shot,
    retrieval,
    self_refine,
    self_verification,
)

Solve = Callable[[Solving, Any], Awaitable[Solution]]
"""(a prompt that is being solved, the strategy's settings) -> what was found. `SpendingEnded` may come through: the
caller then takes `solving.leading`."""


async def carry_out(solving: Solving, settings: StrategySettings) -> Solution:
    """Any strategy, for those that wrap another one: they cannot import the table that they stand in."""
    return await STRATEGIES[type(settings)](solving, settings)


STRATEGIES: Mapping[type[StrategySettings], Solve] = {
    BestOfN: best_of_n.solve,
    ChainOfThought: chain_of_thought.solve,
    BudgetForcing: budget_forcing.solve,
    SelfRefine: self_refine.solve,
    CritiqueBy: critique_by.solve,
    SelfVerification: self_verification.solve,
    FewShot: partial(few_shot.solve, carry_out=carry_out),
    Retrieval: partial(retrieval.solve, carry_out=carry_out),
}
"""What carries out each strategy."""
