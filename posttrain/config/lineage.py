"""Which stage starts from which: the last policy before it, or the one that `starts_from` names.

started_from(stages, stages[3])     # the stage whose policy it starts from; None: the recipe's model
ancestors(stages, stages[3])        # all policies that it goes back to, the oldest first
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.config.base import StageSettings
from posttrain.config.values import refuse
from posttrain.errors import unknown

START = "start"
"""The recipe's model, as suites and the run folder call it."""


def started_from(stages: Sequence[StageSettings], stage: StageSettings) -> StageSettings | None:
    """The stage whose policy this one starts from; None for the recipe's model."""
    before = [other for other in _before(stages, stage) if other.OUTPUTS == "policy"]
    if stage.starts_from is None:
        return before[-1] if before else None
    return next((other for other in before if other.name == stage.starts_from), None)


def ancestors(stages: Sequence[StageSettings], stage: StageSettings) -> list[StageSettings]:
    """The policies that a stage goes back to, the oldest first; itself is none of them."""
    found: list[StageSettings] = []
    above = started_from(stages, stage)
    while above is not None:
        found.insert(0, above)
        above = started_from(stages, above)
    return found


def check_starts(stages: Sequence[StageSettings]) -> None:
    """Raises the validation error of the first stage that starts from what is no earlier policy."""
    for index, stage in enumerate(stages):
        name = stage.starts_from
        known = [other.name for other in stages[:index] if other.OUTPUTS == "policy"]
        if name is None or name == START or name in known:
            continue
        refusal = unknown("stage", name, [START, *known])
        raise refuse(
            f"`{stage.name}` starts from `{name}`, and no earlier stage of that name makes a policy",
            path=("stages", index, "starts_from"),
            found=name,
            expected=refusal.expected,
            remedy=refusal.remedy,
        )


def _before(stages: Sequence[StageSettings], stage: StageSettings) -> Sequence[StageSettings]:
    # By name: the pipeline asks with copies whose data are resolved already.
    names = [other.name for other in stages]
    return stages[: names.index(stage.name)]
