"""The tokens of a micro-batch and the memory of a step, from one measured row; and what becomes of all checks.

budget, memory = plan_step(stage, policy, working, largest, live_reference=False, resumed=None)
enforce(preflight, stage, folder)           # preflight.json, and the error that a failed check is
"""

from __future__ import annotations

from posttrain.config import TrainingStage
from posttrain.models.tree.model import TreeModel
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.stage import StageRecord
from posttrain.training.checks.memory import MemoryPlan, Working, fitting_microbatch, plan
from posttrain.training.checks.preflight import Check, Preflight, check_weights
from posttrain.types import TokenTree


def plan_step(
    stage: TrainingStage,
    policy: TreeModel,
    working: Working,
    largest: TokenTree,
    *,
    live_reference: bool,
    resumed: StageRecord | None,
    program: int = 0,
    wanted: int = 0,
) -> tuple[int, MemoryPlan]:
    """How many tokens a micro-batch has, and what a step of such micro-batches needs.

    Args:
        working: measured on short rows of this run.
        largest: the largest tree that may come; a tree is never cut, whatever the budget is.
        live_reference: the reference is a second copy of the weights.
        resumed: stage.json of the attempt that this one goes on from: another budget would round differently.
        program: bytes of the process before the model was loaded.
        wanted: tokens up to which a larger micro-batch is of use, where there is memory for them.
    """
    asked = stage.compute.tokens_per_microbatch
    if asked == "auto" and resumed is not None:
        asked = resumed.tokens_per_microbatch or "auto"
    if asked != "auto":
        budget = int(asked)
    else:
        budget = fitting_microbatch(
            policy,
            working.per_token,
            largest_tree=largest.num_tokens,
            live_reference=live_reference,
            largest=largest,
            wanted=wanted,
            working=working,
        )
    memory = plan(
        policy,
        tokens_per_microbatch=max(budget, largest.num_tokens),
        activation_bytes_per_token=working.per_token,
        live_reference=live_reference,
        largest=largest,
        working=working,
        program=program,
    )
    return budget, memory


def fixed_memory(policy: TreeModel) -> MemoryPlan:
    """What is known of the memory before anything has been measured: all but activations."""
    return plan(policy, tokens_per_microbatch=0, activation_bytes_per_token=0, live_reference=False)


# ---------------------------------------------------------------- what becomes of checks


def prove_weights(stage: TrainingStage, policy: TreeModel, folder: StageFolder) -> Check:
    """The first check, before anything is computed with the weights; stops there if one is NaN.

    Raises:
        PreflightError: naming the parameters, where the stage says that a failed check stops it.
    """
    check = check_weights(policy.model)
    if check.status == "fail":
        enforce(Preflight((check,), ()), stage, folder)
    return check


def enforce(proven: Preflight, stage: TrainingStage, folder: StageFolder) -> None:
    """Write preflight.json, and then stop at a check that failed, if the stage says so.

    Raises:
        PreflightError: naming every failed check.
    """
    folder.write(proven.record())
    if stage.preflight.on_failure == "stop":
        proven.require()


def say_checks(proven: Preflight, stage: str, progress: Progress) -> None:
    """A line for each check, and the remedy of those that did not pass."""
    marks = {"pass": "ok  ", "warn": "warn", "fail": "FAIL"}
    for check in proven.checks:
        progress.say(f"{stage}: {marks[check.status]} {check.title}: {check.detail}")
        if check.status != "pass" and check.remedy:
            progress.say(f"{stage}:      {check.remedy}")
