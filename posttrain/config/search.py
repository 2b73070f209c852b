"""The stage `search`: what a strategy of test-time compute finds becomes rows that a later stage trains on.

- {name: found, method: search, data: tasks.jsonl, strategy: {kind: best_of_n, n: 8, scorer: {stage: reward}}}
- {method: sft, data: {stage: found}}
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from posttrain.config.base import MakingStage
from posttrain.config.strategies import AnyStrategy
from posttrain.config.strategies.base import AnyScorer, LogProbScorer, ScorerSettings
from posttrain.config.values import Float, refuse


class Search(MakingStage):
    """Answer prompts with a strategy of test-time compute, and keep what it found as rows. Trains nothing."""

    method: Literal["search"] = "search"
    """Spend compute on each prompt and keep what comes of it."""
    strategy: AnyStrategy
    """How an answer is found."""
    rows: Literal["winners", "pairs", "steps"] = "winners"
    """What is kept: `winners`, the answers as demonstrations; `pairs`, the best and the worst answer to each prompt as
    a comparison; `steps`, the steps of a search, each labelled by the answers that go on from it."""
    scorer: AnyScorer | None = Field(default=None)
    """Who judges the answers for that; null: the strategy's own scorer."""
    least_score: Float | None = None
    """Winners with a lower score make no row. For `steps`: the score from which on an answer is right."""

    @property
    def judge(self) -> ScorerSettings | None:
        """Who judges the answers, if anybody does."""
        return self.scorer or next(iter(self.strategy.scorers), None)

    @model_validator(mode="after")
    def _somebody_judges(self) -> Self:
        if self.judge is None and (self.rows != "winners" or self.least_score is not None):
            what = "`least_score` is" if self.rows == "winners" else f"`rows: {self.rows}` are"
            raise refuse(
                f"{what} by the scores of the answers, and nobody scores them",
                path=("scorer",),
                found=f"strategy: {self.strategy.label}, without a scorer",
                expected="a scorer, of this stage or of its strategy",
                remedy="write `scorer: {kind: rewards, rewards: [{kind: math}]}`, or `scorer: {stage: NAME}`",
            )
        if self.rows == "steps" and self.least_score is None:
            raise refuse(
                "nothing says from which score on an answer is right",
                path=("least_score",),
                remedy="write `least_score: 1.0`, of rewards that are 0 or 1",
            )
        if self.rows == "pairs" and self.least_score is not None:
            raise refuse(
                "pairs are made of the best and the worst score, whatever these are",
                path=("least_score",),
                found=f"least_score: {self.least_score:g}",
                remedy="leave `least_score` out",
            )
        if isinstance(self.scorer, LogProbScorer) and self.rows == "steps":
            raise refuse(
                "the model's own log-prob does not say which answers are right",
                path=("scorer",),
                remedy="write `scorer: {kind: rewards, rewards: [{kind: math}]}`",
            )
        return self
