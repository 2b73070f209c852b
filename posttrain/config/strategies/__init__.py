"""Strategies of test-time compute, as a recipe and a program write them; `posttrain.inference` carries them out.

    {kind: best_of_n, n: 16, scorer: runs/mine/reward/model}
    pt.BestOfN(n=16, scorer="runs/mine/reward/model")

base.py        what all have; scorers; when two answers are the same
sampling.py    whole answers, and a choice among them
search.py      answers built step by step
reasoning.py   what the model is asked beside the question: to think, to check, to revise
context.py     what stands before the question: examples, documents
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from posttrain.config.strategies import context
from posttrain.config.strategies.base import StrategySettings
from posttrain.config.strategies.context import FewShot, Retrieval
from posttrain.config.strategies.reasoning import (
    BudgetForcing,
    ChainOfThought,
    CritiqueBy,
    SelfRefine,
    SelfVerification,
)
from posttrain.config.strategies.sampling import (
    AdaptiveConsistency,
    BestOfN,
    DeepConf,
    EarlyStoppingConsistency,
    LikeliestAnswer,
    SelfConsistency,
)
from posttrain.config.strategies.search import (
    DVTS,
    MCTS,
    GraphOfThoughts,
    ParticleFilter,
    PRMBeam,
    TreeOfThoughts,
)
from posttrain.config.values import Settings
from posttrain.errors import unknown

PREFIX_TOKENS = 32_768
"""Tokens whose keys and values an engine keeps for continuations: a search goes on from what it has just drawn."""

STRATEGY_KINDS: Mapping[str, type[StrategySettings]] = {
    "best_of_n": BestOfN,
    "self_consistency": SelfConsistency,
    "early_stopping_consistency": EarlyStoppingConsistency,
    "adaptive_consistency": AdaptiveConsistency,
    "deepconf": DeepConf,
    "likeliest_answer": LikeliestAnswer,
    "prm_beam": PRMBeam,
    "dvts": DVTS,
    "particle_filter": ParticleFilter,
    "mcts": MCTS,
    "tree_of_thoughts": TreeOfThoughts,
    "graph_of_thoughts": GraphOfThoughts,
    "chain_of_thought": ChainOfThought,
    "budget_forcing": BudgetForcing,
    "self_refine": SelfRefine,
    "critique_by": CritiqueBy,
    "self_verification": SelfVerification,
    "few_shot": FewShot,
    "retrieval": Retrieval,
}
"""Every strategy by its kind; what each does is `posttrain.inference.table.STRATEGIES`."""

AnyStrategy = Annotated[
    # one kind a line, as in STRATEGY_KINDS
    BestOfN
    | SelfConsistency
    | EarlyStoppingConsistency
    | AdaptiveConsistency
    | DeepConf
    | LikeliestAnswer
    | PRMBeam
    | DVTS
    | ParticleFilter
    | MCTS
    | TreeOfThoughts
    | GraphOfThoughts
    | ChainOfThought
    | BudgetForcing
    | SelfRefine
    | CritiqueBy
    | SelfVerification
    | FewShot
    | Retrieval,
    Field(discriminator="kind"),
]
"""Every kind of strategy that a recipe may have."""

# `then` is one of the union that its own record is a part of, and which is complete only here. Pydantic looks names up
# in the record's module when it first builds it; `model_rebuild` would build it for recipes without strategies too.
vars(context)["AnyStrategy"] = AnyStrategy


def strategy_of(value: Any) -> StrategySettings:
    """A strategy: itself, by its kind's name, or from the keys that a recipe would have.

    strategy_of(BestOfN(n=4, scorer="logprob")); strategy_of({"kind": "best_of_n", "n": 4, "scorer": "logprob"})

    Raises:
        ConfigError: it is none of these, or has a value that there is not.
        UnknownKeyError: a kind or a key that there is not.
    """
    from posttrain.arguments import wrong_argument

    if isinstance(value, StrategySettings):
        return value
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, Mapping):
        options = {str(key): part for key, part in value.items()}
        kind = options.get("kind")
        if not isinstance(kind, str) or kind not in STRATEGY_KINDS:
            raise unknown("strategy", kind, STRATEGY_KINDS, example='{"kind": "best_of_n", "n": 16}')
        return STRATEGY_KINDS[kind](**options)
    raise wrong_argument(
        "strategy",
        value,
        expected="a strategy, the name of a kind, or a recipe's entry",
        remedy='write `pt.BestOfN(n=16, scorer="logprob")`, or `{"kind": "best_of_n", "n": 16, "scorer": "logprob"}`',
    )


__all__ = [
    "DVTS",
    "MCTS",
    "STRATEGY_KINDS",
    "AdaptiveConsistency",
    "AnyStrategy",
    "BestOfN",
    "BudgetForcing",
    "ChainOfThought",
    "CritiqueBy",
    "DeepConf",
    "EarlyStoppingConsistency",
    "FewShot",
    "GraphOfThoughts",
    "LikeliestAnswer",
    "PRMBeam",
    "ParticleFilter",
    "Retrieval",
    "SelfConsistency",
    "SelfRefine",
    "SelfVerification",
    "Settings",
    "StrategySettings",
    "TreeOfThoughts",
    "strategy_of",
]
