"""All strategies: one literal row each. A new one is its record in `posttrain.config.strategies`, its file in
`strategies/`, and its row here; docs/inference.md has a line for each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from posttrain.config.strategies import (
    BestOfN,
    Dvts,
    GraphOfThoughts,
    Mcts,
    ParticleFilter,
    PrmBeam,
    StrategySettings,
    TreeOfThoughts,
)
from posttrain.inference.solution import Solution
from posttrain.inference.solving import Solving
from posttrain.inference.strategies import (
    best_of_n,
    dvts,
    graph_of_thoughts,
    mcts,
    particle_filter,
    prm_beam,
    tree_of_thoughts,
)

Solve = Callable[[Solving, Any], Awaitable[Solution]]
"""(a prompt that is being solved, the strategy's settings) -> what was found. `SpendingEnded` may come through: the
caller then takes `solving.leading`."""

STRATEGIES: Mapping[type[StrategySettings], Solve] = {
    BestOfN: best_of_n.solve,
    PrmBeam: prm_beam.solve,
    Dvts: dvts.solve,
    ParticleFilter: particle_filter.solve,
    Mcts: mcts.solve,
    TreeOfThoughts: tree_of_thoughts.solve,
    GraphOfThoughts: graph_of_thoughts.solve,
}
"""What carries out each strategy."""
