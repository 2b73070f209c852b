"""Stages that train a policy on rows that are there before they begin: imitation, preferences, feedback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from posttrain.config.adapters import AdaLoRA
from posttrain.config.base import RowStage
from posttrain.models.adapters.kinds import adapter_dropout
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.reference import reference
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel
from posttrain.parallel.world import world
from posttrain.training.balance import balanced
from posttrain.training.checks import of_rows, preflight
from posttrain.training.checks.memory import explain_out_of_memory
from posttrain.training.checks.plan import enforce
from posttrain.training.objectives import objective_of
from posttrain.training.rank_allocation import schedule as rank_schedule
from posttrain.training.source import RowSource, Units
from posttrain.training.stages.kind import (
    Finished,
    Learning,
    Prepared,
    Proven,
    Sourced,
    StageContext,
    Subject,
    TrainingKind,
)
from posttrain.training.stages.mixing import order_of, with_sources
from posttrain.training.stages.policy import autocast_of, export_policy, load_policy
from posttrain.training.stages.reading import RowInputs, read_rows
from posttrain.training.stages.starts import Start
from posttrain.training.step import mismatched_of_run, require_two_rows
from posttrain.types import TokenTree


def row_inputs(ctx: StageContext[RowStage], start: Start) -> RowInputs:
    with ctx.doing("reading the rows"):
        inputs = read_rows(ctx, start, objective_of(ctx.stage))
    return with_steps(ctx, inputs)


def with_steps(ctx: StageContext[Any], inputs: RowInputs) -> RowInputs:
    """The inputs, if the objective and the adapter can do with the order of the rows: known once the rows are, and
    refused before a model is loaded. Of a mixture they tell what the order comes to."""
    stage = ctx.stage
    order = order_of(stage, inputs.rows, ctx.seed)
    require_two_rows(inputs.objective, order, len(inputs.held_out))
    given = ctx.start.adapter if isinstance(ctx.start, LoadedModel) and stage.OUTPUTS == "policy" else stage.adapter
    if isinstance(given, AdaLoRA):
        rank_schedule(given, order.steps)
    return with_sources(inputs, order)


def row_policy(ctx: StageContext[RowStage], inputs: RowInputs, device: torch.device) -> tuple[LoadedModel, TreeModel]:
    stage = ctx.stage
    loaded = load_policy(stage, ctx.start, device, ctx.seed, ctx.progress)
    return loaded, Policy(
        loaded.model,
        autocast=autocast_of(stage.compute.precision, device),
        dropout=keeps_dropout(ctx, inputs, loaded),
        activation_checkpointing=stage.compute.activation_checkpointing,
        offload_activations=stage.compute.offload_activations,
        sharding=loaded.sharding,
    )


def keeps_dropout(ctx: StageContext[Any], inputs: RowInputs, loaded: LoadedModel) -> bool:
    """Whether the adapter's dropout stays on: only where the loss compares the policy with nothing."""
    # Dropout draws another policy at each call: a log-ratio to the start would be noise at step 0.
    noisy = adapter_dropout(loaded.model) > 0
    imitates = inputs.objective.unit == "tokens" and not inputs.objective.needs_reference
    if noisy and not imitates:
        ctx.say("adapter.dropout is off: with it, policy and reference would differ at step 0")
    return noisy and imitates


def row_objective(ctx: StageContext[RowStage], inputs: RowInputs, policy: TreeModel) -> Learning:
    return Learning(balanced(inputs.objective, policy, ctx.stage))


def row_source(ctx: StageContext[RowStage], subject: Subject[RowInputs, Learning], proven: Proven) -> Sourced:
    rows, objective = subject.inputs, subject.learning.algorithm
    start: Any = None
    checks = proven.preflight
    if objective.needs_reference and ctx.proof_only:
        start = preflight.PolicyAsReference(subject.policy)
    elif objective.needs_reference:
        with explain_out_of_memory(checks.memory, "the reference's log-probs"):
            start = _reference(ctx, subject, proven.tokens_per_microbatch)
            # The proof before took the policy for its own reference; a cache that holds other numbers is found here.
            if ctx.stage.preflight.mode == "full":
                identical = preflight.check_identity(subject.policy, start, objective, rows.rows)
                checks = world().agreed(lambda: checks.with_check(identical))
                enforce(checks, ctx.stage, ctx.folder)
    noun = "pairs" if objective.unit == "pairs" else "rows"
    order = order_of(ctx.stage, rows.rows, ctx.seed)
    return Sourced(
        RowSource(rows.rows, order),
        checks,
        Units(order.arithmetic(noun), order.epoch_after),
        rows=rows.rows,
        held_out=rows.held_out,
        reference=start,
        reference_kind=None if start is None else start.kind,
    )


def finish_rows(ctx: StageContext[RowStage], prepared: Prepared[RowInputs], measured: None, steps: int) -> Finished:
    return Finished(export_policy(ctx, prepared, steps))


ROWS: TrainingKind[RowStage, RowInputs, Learning] = TrainingKind(
    outputs=RowStage.OUTPUTS,
    inputs=row_inputs,
    policy=row_policy,
    objective=row_objective,
    checks=of_rows.prove,
    source=row_source,
    finish=finish_rows,
)


# ---------------------------------------------------------------- the reference


def _reference(ctx: StageContext[Any], subject: Subject[RowInputs, Learning], budget: int) -> Any:
    """The start's log-probs of every tree that will be asked: rows, held-out rows, and other rows' completions."""
    stage, policy, inputs = ctx.stage, subject.policy, subject.inputs
    assert isinstance(policy, Policy)
    order = order_of(stage, inputs.rows, ctx.seed)
    others = mismatched_of_run(subject.learning.algorithm, order, inputs.rows, inputs.held_out, ctx.seed)
    with ctx.progress.phase(f"{ctx.folder.name}: reference log-probs", unit="tokens") as phase:

        def show(done: int, of: int) -> None:
            phase.total = of
            phase.advance(done - phase.done, tokens=int(done - phase.done))

        return reference(
            stage.reference_kind or "auto",
            policy,
            trees=_Joined(inputs.rows, inputs.held_out, *others),
            store=ctx.folder.path / "reference",
            tokens_per_microbatch=budget,
            passes=stage.epochs or order.steps * stage.rows_per_step / len(inputs.rows),
            progress=show,
        )


class _Joined(Sequence[TokenTree]):
    """Rows and held-out rows as one sequence; nothing is copied."""

    def __init__(self, *parts: Sequence[TokenTree]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, index: Any) -> Any:
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)
