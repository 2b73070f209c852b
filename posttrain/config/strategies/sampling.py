"""Strategies that draw whole answers and choose among them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from posttrain.config.strategies.base import (
    AnswerEquality,
    AnyScorer,
    StrategySettings,
    require_different_draws,
)
from posttrain.config.values import Float, Int, refuse


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


# ---------------------------------------------------------------- votes


class VotingStrategy(StrategySettings):
    """A strategy that draws up to n answers, which then vote."""

    n: Int = Field(default=16, ge=1)
    """Most answers drawn."""
    answers: AnswerEquality = AnswerEquality()
    """When two answers are one vote; an answer that ends on nothing has none."""
    text: Literal["first", "likeliest"] = "first"
    """Which of those that gave the winning answer: the first, or the one of the highest mean log-prob."""

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        require_different_draws(self, self.n, "n")
        return self


class SelfConsistency(VotingStrategy):
    """The answer that most of n agree on."""

    kind: Literal["self_consistency"] = "self_consistency"
    """`self_consistency`: n answers, the majority."""


class EarlyStoppingConsistency(VotingStrategy):
    """Self-consistency in windows, until all answers of one agree."""

    kind: Literal["early_stopping_consistency"] = "early_stopping_consistency"
    """`early_stopping_consistency`: self-consistency that stops when a window agrees (ESC)."""
    n: Int = Field(default=40, ge=1)
    """Most answers drawn; a multiple of `window`."""
    window: Int = Field(default=5, ge=2)
    """Answers drawn at a time; sampling stops when all of them are the same."""

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.n % self.window:
            fitting = max(self.n // self.window, 1) * self.window
            raise refuse(
                "the windows do not part the answers evenly",
                path=("window",),
                found=f"n: {self.n}, window: {self.window}",
                expected="`n` as a multiple of `window`",
                remedy=f"write `n: {fitting}`",
            )
        return self


class AdaptiveConsistency(VotingStrategy):
    """Self-consistency answer by answer, until the majority is unlikely to change."""

    kind: Literal["adaptive_consistency"] = "adaptive_consistency"
    """`adaptive_consistency`: self-consistency that stops by a Beta criterion."""
    n: Int = Field(default=40, ge=1)
    """Most answers drawn."""
    threshold: Float = Field(default=0.95, gt=0.5, lt=1)
    """Stop where the leading answer is ahead of the second in the long run with this probability."""
    at_once: Int = Field(default=1, ge=1)
    """Answers drawn between two looks at the votes: more are faster, and may draw some too many."""
