"""Strategies that draw whole answers and choose among them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from posttrain.config.strategies.base import AnswerEquality, AnyScorer, StrategySettings, require_different_draws
from posttrain.config.values import Int


class BestOfN(StrategySettings):
    """The answer with the highest score among n."""

    kind: Literal["best_of_n"] = "best_of_n"
    """`best_of_n`: n answers, the best by a scorer."""
    n: Int = Field(default=16, ge=1)
    """Answers drawn."""
    scorer: AnyScorer
    """Who says how good an answer is."""
    choose: Literal["best", "weighted"] = "best"
    """`best`: the highest score; `weighted`: the answer whose equals have the highest sum of scores."""
    answers: AnswerEquality = AnswerEquality()
    """When two answers are one, for `weighted`."""

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        require_different_draws(self, self.n, "n")
        return self
