"""All strategies: one literal row each. A new one is its record in `posttrain.config.strategies`, its file in
`strategies/`, and its row here; docs/inference.md has a line for each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from posttrain.config.strategies import (
    AdaptiveConsistency,
    BestOfN,
    DeepConf,
    EarlyStoppingConsistency,
    LikeliestAnswer,
    SelfConsistency,
    StrategySettings,
)
from posttrain.inference.solution import Solution
from posttrain.inference.solving import Solving
from posttrain.inference.strategies import (
    adaptive_consistency,
    best_of_n,
    deepconf,
    early_stopping_consistency,
    likeliest_answer,
    self_consistency,
)

Solve = Callable[[Solving, Any], Awaitable[Solution]]
"""(a prompt that is being solved, the strategy's settings) -> what was found. `SpendingEnded` may come through: the
caller then takes `solving.leading`."""

STRATEGIES: Mapping[type[StrategySettings], Solve] = {
    BestOfN: best_of_n.solve,
    SelfConsistency: self_consistency.solve,
    EarlyStoppingConsistency: early_stopping_consistency.solve,
    AdaptiveConsistency: adaptive_consistency.solve,
    DeepConf: deepconf.solve,
    LikeliestAnswer: likeliest_answer.solve,
}
"""What carries out each strategy."""
