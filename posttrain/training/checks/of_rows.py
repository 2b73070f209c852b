"""The proofs of a stage before step 1, on a few of its own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain.config import PreferenceStage, TrainingStage
from posttrain.data.reward_encode import RewardEncoder
from posttrain.models.tree.heads import ScoreModel
from posttrain.models.tree.model import TreeModel
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.balance import check_router
from posttrain.training.checks import preflight
from posttrain.training.checks.memory import MemoryPlan, Working, fitting_microbatch, plan, working_memory
from posttrain.training.objectives import Algorithm
from posttrain.training.stages import reward
from posttrain.training.stages.rows import Inputs
from posttrain.types import TokenTree

MEASURED_TOKENS = 192
"""Of the row on which the memory of a token is measured; `working_memory` takes as many of it as fill a chunk of the
projection onto the vocabulary."""


def prove(
    stage: TrainingStage,
    policy: TreeModel,
    objective: Algorithm,
    inputs: Inputs,
    folder: StageFolder,
    resumed: dict[str, Any] | None,
    progress: Progress,
    program: int = 0,
) -> tuple[preflight.Preflight, int]:
    """All checks, on a few rows, with the policy as its own reference; and the tokens of a micro-batch.

    program: bytes of the process before the model was loaded.
    """
    rows = inputs.rows
    proof = preflight.Itself(policy) if objective.needs_reference else None
    live = isinstance(stage, PreferenceStage) and stage.reference_kind == "live"
    with progress.phase(f"{folder.name}: preflight", unit="checks") as phase:
        checks = _data_checks(stage, inputs)
        phase.advance(len(checks) + 1)
        with policy.without_dropout():  # noise may be wanted in training; here calls are compared
            checks.append(preflight.check_repeat(policy, rows))
            checks.append(preflight.choose_path(policy, rows, stage.compute.logprobs))
            checks.append(preflight.check_leak(policy, rows))
            if proof is not None:
                checks.append(preflight.check_identity(policy, proof, objective, rows))
            if isinstance(policy, ScoreModel):
                checks.append(reward.check_start(policy, objective, rows))
            checks.append(
                preflight.check_gradient(policy, proof, objective, rows, dead_layers=stage.preflight.dead_layers)
            )
        if (router := check_router(objective, policy)) is not None:
            checks.append(router)
        working = working_memory(policy, [preflight.shortened(preflight.probes(rows)[0], MEASURED_TOKENS)])
        largest = rows[int(preflight.lengths(rows).argmax())]
        budget = _budget(stage, policy, largest, working, live, resumed)
        memory = plan(
            policy,
            tokens_per_microbatch=max(budget, largest.num_tokens),  # a tree is never cut
            activation_bytes_per_token=working.per_token,
            live_reference=live,
            largest=largest,
            working=working,
            program=program,
        )
        checks.append(preflight.check_memory(memory))
    return preflight.Preflight(tuple(checks), preflight.decoded_rows(_first(rows), inputs.encoder), memory), budget


def prove_weights(stage: TrainingStage, policy: TreeModel, folder: StageFolder) -> preflight.Check:
    """The first check, before anything is computed with the weights; stops there if one is NaN.

    Raises:
        PreflightError: naming the parameters, where the stage says that a failed check stops it.
    """
    check = preflight.check_weights(policy.model)
    if check.status == "fail":
        stand(preflight.Preflight((check,), ()), stage, folder)
    return check


def stand(proven: preflight.Preflight, stage: TrainingStage, folder: StageFolder) -> None:
    """Write the checks down, and stop at one that failed if the stage says so."""
    folder.write_preflight(proven.record())
    if stage.preflight.on_failure == "stop":
        proven.require()


def fixed(policy: TreeModel) -> MemoryPlan:
    """What is known of the memory before anything has been measured."""
    return plan(policy, tokens_per_microbatch=0, activation_bytes_per_token=0, live_reference=False)


def show(proven: preflight.Preflight, stage: str, progress: Progress) -> None:
    marks = {"pass": "ok  ", "warn": "warn", "fail": "FAIL"}
    for check in proven.checks:
        progress.say(f"{stage}: {marks[check.status]} {check.title}: {check.detail}")
        if check.status != "pass" and check.remedy:
            progress.say(f"{stage}:      {check.remedy}")


def _data_checks(stage: TrainingStage, inputs: Inputs) -> list[preflight.Check]:
    first = _first(inputs.rows)
    encoding = stage.encoding  # type: ignore[attr-defined]
    counts = inputs.counts
    ends = inputs.encoder.end_ids if isinstance(inputs.encoder, RewardEncoder) else inputs.encoder.stop_ids
    return [
        preflight.check_data(
            counts["kept"], counts["dropped"], counts["truncated"], counts["tokens"], counts["trained_tokens"]
        ),
        preflight.check_stop_token(first, ends, wanted=encoding.stop_token == "train"),
        preflight.check_bos(first, inputs.encoder.tokens.bos_id),
        *inputs.proofs,
        *inputs.findings,
    ]


def _first(rows: Sequence[TokenTree]) -> list[TokenTree]:
    return [rows[index] for index in range(min(preflight.SEARCHED_TREES, len(rows)))]


def _budget(
    stage: TrainingStage,
    policy: TreeModel,
    largest: TokenTree,
    working: Working,
    live: bool,
    resumed: dict[str, Any] | None,
) -> int:
    asked = stage.compute.tokens_per_microbatch
    if asked != "auto":
        return int(asked)
    if resumed and resumed.get("tokens_per_microbatch"):
        return int(resumed["tokens_per_microbatch"])
    return fitting_microbatch(
        policy,
        working.per_token,
        largest_tree=largest.num_tokens,
        live_reference=live,
        largest=largest,
        working=working,
    )
