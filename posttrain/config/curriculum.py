"""Which tasks an online stage asks more often: `curriculum`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from posttrain.config.values import Float, Settings


class PassRateCurriculum(Settings):
    """Tasks are drawn by how often the policy passes them: more of those near `aim`, few that it always or never does.

    A task that it always passes, or never, teaches nothing by comparison. With the aim at 0.5 the weight goes with the
    variance of success p (1 - p): "learnability" (Foster et al. 2025, arXiv:2502.12272).
    """

    kind: Literal["pass_rate"] = "pass_rate"
    """By the measured pass rate."""
    aim: Float = Field(default=0.5, gt=0, lt=1)
    """The pass rate that is drawn most."""
    pass_at: Float = 1.0
    """The reward from which on a completion passes."""
    # Never 0: a task that is no longer drawn is no longer measured, and would stay hopeless for ever.
    floor: Float = Field(default=0.1, gt=0, le=1)
    """Share of the draws that goes to all tasks alike: what no task falls below, however hard it looks."""
    half_life: Float = Field(default=50.0, gt=0)
    """Steps after which an observation counts half: the policy has changed, and what was hopeless may be no more."""
    prior: Float = Field(default=1.0, gt=0)
    """Completions that a task is taken to have been asked before any, passed at the rate `aim`: unseen tasks are drawn
    as the best ones."""


def _by_name(value: Any) -> Any:
    """`curriculum: pass_rate` for `curriculum: {kind: pass_rate}`; a group without `kind` is one, too."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "pass_rate", **value} if isinstance(value, dict) else value


CurriculumSettings = Annotated[PassRateCurriculum, BeforeValidator(_by_name)]
