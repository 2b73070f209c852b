"""All strategies: one literal row each. A new one is its record in `posttrain.config.strategies`, its file in
`strategies/`, and its row here; docs/inference.md has a line for each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from posttrain.config.strategies import (
    DVTS,
    MCTS,
    AdaptiveConsistency,
    BestOfN,
    BudgetForcing,
    ChainOfThought,
    CritiqueBy,
    DeepConf,
    EarlyStoppingConsistency,
    FewShot,
    GraphOfThoughts,
    LikeliestAnswer,
    ParticleFilter,
    PRMBeam,
    Retrieval,
    SelfConsistency,
    SelfRefine,
    SelfVerification,
    StrategySettings,
    TreeOfThoughts,
)
from posttrain.inference.solution import Solution
from posttrain.inference.solving import Solving
from posttrain.inference.strategies import (
    adaptive_consistency,
    best_of_n,
    budget_forcing,
    chain_of_thought,
    critique_by,
    deepconf,
    dvts,
    early_stopping_consistency,
    few_shot,
    graph_of_thoughts,
    likeliest_answer,
    mcts,
    particle_filter,
    prm_beam,
    retrieval,
    self_consistency,
    self_refine,
    self_verification,
    tree_of_thoughts,
)

Solve = Callable[[Solving, Any], Awaitable[Solution]]
"""(a prompt that is being solved, the strategy's settings) -> what was found. `SpendingEnded` may come through: the
caller then takes `solving.leading`."""


async def carry_out(solving: Solving, settings: StrategySettings) -> Solution:
    """Any strategy, for those that wrap another one: they cannot import the table that they stand in."""
    return await STRATEGIES[type(settings)](solving, settings)


STRATEGIES: Mapping[type[StrategySettings], Solve] = {
    BestOfN: best_of_n.solve,
    SelfConsistency: self_consistency.solve,
    EarlyStoppingConsistency: early_stopping_consistency.solve,
    AdaptiveConsistency: adaptive_consistency.solve,
    DeepConf: deepconf.solve,
    LikeliestAnswer: likeliest_answer.solve,
    PRMBeam: prm_beam.solve,
    DVTS: dvts.solve,
    ParticleFilter: particle_filter.solve,
    MCTS: mcts.solve,
    TreeOfThoughts: tree_of_thoughts.solve,
    GraphOfThoughts: graph_of_thoughts.solve,
    ChainOfThought: chain_of_thought.solve,
    BudgetForcing: budget_forcing.solve,
    SelfRefine: self_refine.solve,
    CritiqueBy: critique_by.solve,
    SelfVerification: self_verification.solve,
    FewShot: partial(few_shot.solve, carry_out=carry_out),
    Retrieval: partial(retrieval.solve, carry_out=carry_out),
}
"""What carries out each strategy."""
