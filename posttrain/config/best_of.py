"""The stage `best_of`: the policy's own best answers become demonstrations (rejection sampling for SFT).

- name: tried
  method: best_of
  data: tasks.jsonl
  samples: 8
  scorer: {kind: rewards, rewards: [{kind: math}]}
  keep: all_right
  least_score: 1.0
- {method: sft, data: {stage: tried}}
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from posttrain.config.attempts import AttemptSettings
from posttrain.config.base import MakingStage
from posttrain.config.settings import Gate
from posttrain.config.strategies.base import AnyScorer, LogProbScorer
from posttrain.config.values import Float, Int, refuse


class BestOf(AttemptSettings, MakingStage):
    """Answer each prompt several times and keep what a scorer finds good, to imitate it. Trains nothing."""

    method: Literal["best_of"] = "best_of"
    """Rejection sampling: `keep: best` is RAFT (Dong et al. 2023, arXiv:2304.06767), `keep: all_right` is RFT (Yuan et
    al. 2023, arXiv:2308.01825)."""
    scorer: AnyScorer
    """Who says how good an answer is: rewards (verifiers, a judge among them), a reward model, the log-prob, itself."""
    keep: Literal["best", "all_right"] = "best"
    """`best`: the answer of the highest score, of equal ones the first; `all_right`: every different answer whose score
    is at least `least_score`."""
    least_score: Float | None = None
    """From this score on an answer is right: others make no row, and pass@1 and pass@k of the round are told. null:
    nobody says what is right, and `best` keeps an answer of every prompt."""
    up_to: Int | None = Field(default=None, ge=1)
    """With `all_right`: most rows of one prompt, the highest scores first; null: all. Easy prompts have many right
    answers, and without a limit they are most of the rows."""
    distinct: Literal["equations", "text"] = "equations"
    """With `all_right`: which answers are the same one. `equations`: those with the same list of equations, as in RFT,
    or, where they hold none, the same text; `text`: those of the same text."""
    gate: Gate = "warn"
    """What findings of severity `error` in the rows that were made do, by the audit's cheap checks: `stop` the stage,
    `warn`, or `off`: no check runs."""

    @model_validator(mode="after")
    def _right_is_known(self) -> Self:
        if self.keep == "all_right" and self.least_score is None:
            raise refuse(
                "nothing says from which score on an answer is right",
                path=("least_score",),
                found="keep: all_right, without `least_score`",
                remedy="write `least_score: 1.0`, of rewards that are 0 or 1, or `keep: best`",
            )
        if self.keep == "best" and self.up_to is not None:
            raise refuse(
                "`keep: best` keeps one answer of a prompt",
                path=("up_to",),
                found=f"up_to: {self.up_to}",
                remedy="write `keep: all_right`, or leave `up_to` out",
            )
        if isinstance(self.scorer, LogProbScorer) and self.least_score is not None:
            raise refuse(
                "the model's own log-prob does not say which answers are right",
                path=("least_score",),
                found=f"least_score: {self.least_score:g}, scorer: logprob",
                remedy="leave `least_score` out, or write `scorer: {kind: rewards, rewards: [{kind: math}]}`",
            )
        return self
