"""Training that pauses at a rung: the steps until there, a checkpoint, and a suite that says whether it is worth more.

    pause = Pause("dpo", share=1 / 9, suite="sums")
    pause.step(90)                       # 10
    run_within(recipe, Within(pause=pause))      # raises Paused after step 10; without the pause it goes on from there

A pause is an interruption that was planned: the steps that follow it are those of a run that never paused, bit for bit
on CPU, since the learning rate's schedule is of all steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from posttrain.errors import TrainingError
from posttrain.runs.folder import StageFolder

RUNGS = "rungs"
"""Folder of a stage: what its model was asked at rungs, `rungs/step-00000030/evaluation.json`."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Where a stage is to pause, and what its model is asked there: Pause("dpo", share=1 / 9, suite="sums")."""

    stage: str
    share: float
    """Of the stage's steps, above 0 and below 1."""
    suite: str

    def step(self, steps: int) -> int:
        """After which it pauses: of 90 steps a ninth is 10; always at least one, and before the last."""
        # 1/9 of 90 is 10.000000000000002 in floating point, and must not become 11.
        return min(max(1, math.ceil(self.share * steps - 1e-9)), max(1, steps - 1))


class Paused(TrainingError):
    """The stage reached its rung; its checkpoint is written, and it goes on from there when it is run again."""

    def __init__(self, problem: str, *, step: int, steps: int, remedy: str, **details: Any):
        self.step = step
        """Steps taken."""
        self.steps = steps
        """That the stage has."""
        super().__init__(problem, remedy=remedy, **details)


def paused(stage: StageFolder, step: int, steps: int) -> Paused:
    return Paused(
        f"paused after step {step} of {steps}, with a checkpoint",
        where=stage.path,
        step=step,
        steps=steps,
        remedy="run the same command again to go on",
    )


def rung_folder(stage: StageFolder, step: int) -> StageFolder:
    return StageFolder(stage.path / RUNGS / f"step-{step:08d}")
