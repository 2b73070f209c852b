"""The proofs of a stage before step 1, on a few of its own rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from posttrain.config.base import RowStage
from posttrain.data.mixed_rows import spread
from posttrain.data.reward_encode import RewardEncoder
from posttrain.models.tree.model import TreeModel
from posttrain.training.balance import check_router
from posttrain.training.checks import gradient, preflight
from posttrain.training.checks.memory import Working, activation_bytes_per_token, working_memory
from posttrain.training.checks.own import check_own
from posttrain.training.checks.plan import plan_step
from posttrain.training.checks.preflight import Check
from posttrain.training.objectives import Algorithm
from posttrain.training.stages.kind import Learning, Proven, StageContext, Subject
from posttrain.training.stages.reading import RowInputs
from posttrain.types import TokenTree

MEASURED_TOKENS = 192
"""Of the row on which the memory of a token is measured; `working_memory` takes as many of it as fill a chunk of the
projection onto the vocabulary."""

StartCheck = Callable[[TreeModel, Algorithm, Sequence[TokenTree]], Check]
"""A check of where the loss begins, for objectives without a reference to begin at."""


def prove(
    ctx: StageContext[Any], subject: Subject[RowInputs, Learning], check_start: StartCheck | None = None
) -> Proven:
    """All checks, on a few rows, with the policy as its own reference; and the tokens of a micro-batch."""
    with ctx.progress.phase(f"{ctx.folder.name}: preflight", unit="checks") as phase:
        stage, policy, rows = ctx.stage, subject.policy, subject.inputs.rows
        mode = stage.preflight.mode
        checks = [subject.finite, *(_data_checks(stage, subject.inputs) if mode != "off" else ())]
        phase.advance(len(checks))
        measured = preflight.shortened(preflight.probes(rows)[0], MEASURED_TOKENS)
        if mode == "full":
            checks += _model_checks(stage, subject, check_start)
            # After the path is chosen: a padded step takes other memory than a tree's.
            working = working_memory(policy, [measured])
        else:
            checks += _few_model_checks(stage, subject, mode)
            working = Working(activation_bytes_per_token(policy, measured))
        budget, memory = plan_step(
            stage,
            policy,
            working,
            rows[int(preflight.lengths(rows).argmax())],
            live_reference=stage.reference_kind == "live",
            resumed=ctx.resumed,
            program=subject.program_bytes,
        )
        checks.append(preflight.check_memory(memory))
    shown = preflight.decoded_rows(_first(rows), subject.inputs.encoder)
    return Proven(preflight.Preflight(tuple(checks), shown, memory), budget)


def _data_checks(stage: RowStage, inputs: RowInputs) -> list[Check]:
    first = _first(inputs.rows)
    encoding = stage.encoding  # type: ignore[attr-defined]
    counts = inputs.counts
    ends = inputs.encoder.end_ids if isinstance(inputs.encoder, RewardEncoder) else inputs.encoder.stop_ids
    return [
        preflight.check_data(
            counts.kept or 0,
            counts.dropped,
            counts.truncated_by_reason,
            counts.tokens or 0,
            counts.trained_tokens or 0,
        ),
        preflight.check_stop_token(first, ends, wanted=encoding.stop_token == "train"),
        preflight.check_bos(first, inputs.encoder.tokens.bos_id),
        *inputs.proofs,
        *inputs.findings,
    ]


def _model_checks(
    stage: RowStage, subject: Subject[RowInputs, Learning], check_start: StartCheck | None
) -> list[Check]:
    """The order matters: noise would read as a wrong path, a wrong path as a leak, a leak as another reference."""
    policy, objective, rows = subject.policy, subject.learning.algorithm, subject.inputs.rows
    itself = preflight.PolicyAsReference(policy) if objective.needs_reference else None
    checks = []
    with policy.without_dropout():  # noise may be wanted in training; here calls are compared
        checks.append(preflight.check_repeat(policy, rows))
        checks.append(preflight.choose_path(policy, rows, stage.compute.logprobs))
        checks.append(preflight.check_leak(policy, rows))
        if objective.own:
            checks.append(check_own(policy, objective, rows))
        if itself is not None:
            checks.append(preflight.check_identity(policy, itself, objective, rows))
        if check_start is not None:
            checks.append(check_start(policy, objective, rows))
        checks.append(gradient.check_gradient(policy, itself, objective, rows, dead_layers=stage.preflight.dead_layers))
    router = check_router(objective, policy)
    return checks if router is None else [*checks, router]


def _few_model_checks(
    stage: RowStage, subject: Subject[RowInputs, Learning], mode: Literal["fast", "off"]
) -> list[Check]:
    """What costs two passes of the shortest rows: their path, and whether the objective has a gradient at all."""
    policy, objective, rows = subject.policy, subject.learning.algorithm, subject.inputs.rows
    said = preflight.check_mode(mode)
    if mode == "off":
        preflight.set_path(policy, stage.compute.logprobs)
        return [said]
    short = preflight.probes(rows)
    itself = preflight.PolicyAsReference(policy) if objective.needs_reference else None
    with policy.without_dropout():
        return [
            preflight.choose_path(policy, short, stage.compute.logprobs),
            *([check_own(policy, objective, rows)] if objective.own else []),
            gradient.check_gradient(policy, itself, objective, short, dead_layers=stage.preflight.dead_layers),
            said,
        ]


def _first(rows: Sequence[TokenTree]) -> list[TokenTree]:
    return [rows[place] for place in spread(rows, preflight.SEARCHED_TREES)]
