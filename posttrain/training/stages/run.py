"""One stage of any kind, from its first record to its last: a proven model folder, or rows for a later stage.

outcome = run_stage(StageContext(stage, start, folder, seed=0, progress=progress))

Of several processes, rank 0 begins the stage and writes its records; all of them train it, in lockstep. A stage that
makes something else than a model runs on rank 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from posttrain.config import TrainingStage, stage_yaml
from posttrain.models.adapters.kinds import trainable_parameters
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.tree.model import TreeModel
from posttrain.parallel.calls import OfMain, driven, everywhere
from posttrain.parallel.world import world
from posttrain.runs.heartbeat import Heartbeat
from posttrain.runs.records.stage import ParameterCounts, StageRecord, StartModel
from posttrain.training import checkpoint
from posttrain.training.checks.plan import say_checks
from posttrain.training.identity import require_unchanged
from posttrain.training.loop import Loop, how_it_ended
from posttrain.training.pausing import Paused
from posttrain.training.provenance import environment, now
from posttrain.training.stages.kind import OUTPUT_NAMES, Finished, Prepared, StageContext, TrainingKind
from posttrain.training.stages.prepare import prepare
from posttrain.training.stages.table import kind_of_stage, training_kind
from posttrain.training.tracking.tracking import Tracking


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trained stage: the model in memory, and the folder on its way to its name."""

    policy: TreeModel
    steps: int
    seconds: float
    finished: Finished


def run_stage(
    ctx: StageContext[Any],
    *,
    evaluate: Callable[[Any, Any], None] | None = None,
    at_rung: Callable[[int, Any, Any], None] | None = None,
) -> Outcome | None:
    """A whole stage of any kind, with its records; what it makes lies in the stage's folder.

    Args:
        evaluate: called with the trained model and its tokenizer, while the export is read back.
        at_rung: called with the steps taken, the model and its tokenizer where the stage pauses (`ctx.pause`).

    Returns:
        The trained model, still in memory; None of a kind that trains nothing.
    """
    kind = kind_of_stage(ctx.stage)
    ctx = replace(ctx, resumed=_begin_records(ctx))
    if isinstance(kind, TrainingKind):
        with _tracking(ctx):
            return everywhere(_train_stage, ctx, OfMain(evaluate), OfMain(at_rung))
    inputs = kind.inputs(ctx)
    require_unchanged(ctx.identity)
    counts = kind.make(ctx, inputs)
    ctx.folder.write_stage(data=counts, output=OUTPUT_NAMES[kind.outputs])
    return None


def _tracking(ctx: StageContext[TrainingStage]) -> Tracking:
    """The trackers of the stage; of none, nothing happens."""
    stage = ctx.stage
    return Tracking(
        stage.log.trackers,
        ctx.folder.path.parent,
        ctx.folder,
        {**stage.model_dump(mode="json", by_alias=True), "seed": ctx.seed, "split_seed": ctx.split_seed},
        say=ctx.progress.say,
        status=how_it_ended,
    )


def _begin_records(ctx: StageContext[Any]) -> StageRecord:
    """stage.json and config.yaml of a stage that begins or goes on; gives what stage.json said before."""
    folder = ctx.folder
    record = folder.stage() if folder.exists else StageRecord()
    # Nothing to go on from: lines of the attempt before would stand in this one's curves.
    if checkpoint.newest(folder.checkpoints) is None:
        folder.forget_logs()
        record = StageRecord()
    folder.write_config(stage_yaml(ctx.stage, seed=ctx.seed, split_seed=ctx.split_seed))
    folder.write_stage(
        name=folder.name,
        method=ctx.stage.method,
        status="running",
        started=record.started or now(),
        seed=ctx.seed,
        split_seed=ctx.split_seed,
        quick_identity=None if ctx.identity is None else ctx.identity.quick,
        contents=None if ctx.identity is None else ctx.identity.contents,
        environment=environment(),
        output=None,
        error=None,
        warnings=(),
    )
    return record


def _train_stage(
    ctx: StageContext[Any],
    asked: OfMain[Callable[[Any, Any], None]],
    at_rung: OfMain[Callable[[int, Any, Any], None]],
) -> Outcome:
    """Prepare, train, ask the suites while the export is read back, save; every rank of a job is here."""
    folder, kind, here = ctx.folder, training_kind(ctx.stage), world()
    # The pulse covers what may hang for hours: an engine, a reward, a step.
    pulse = Heartbeat(folder.path, ctx.progress, stall_after=ctx.stage.log.stall_after)
    with pulse if here.is_main else nullcontext():
        prepared = prepare(ctx)
        say_checks(prepared.preflight, folder.name, ctx.progress)
        folder.write_stage(**_facts(prepared))
        try:
            outcome = train(ctx, kind, prepared)
        except Paused as rung:
            step, look = rung.step, at_rung.value
            of_model = (prepared.work.policy.model, prepared.loaded.tokenizer)
            driven(lambda: None if look is None else look(step, *of_model), own=of_model)
            raise
    # The save is read back in another process meanwhile, which costs a suite's time nothing.
    pending, evaluate = outcome.finished.pending, asked.value
    model, tokenizer, in_parts = outcome.policy.model, prepared.loaded.tokenizer, outcome.policy.is_sharded
    try:
        if not in_parts:
            driven(lambda: None if evaluate is None else evaluate(model, tokenizer), own=(model, tokenizer))
        with ctx.doing("reading the saved model back"):
            saved = str(pending.wait())  # of each rank: what rank 0 found, all get
    except BaseException:
        # A folder that was not proven gets no name: the next stage would start from it.
        pending.discard()
        raise
    ctx.progress.say(saved)
    if in_parts and ctx.stage.keeps_output:
        # A model in parts samples nothing: the suites ask the folder, which each rank loads whole.
        driven(lambda: None if evaluate is None else evaluate(ctx.folder.model, None))
    for warning in outcome.finished.warnings:
        ctx.progress.say(f"WARNING: {folder.name}: {warning}")
    # Only now: readers take `output` as the promise that the model is there and was read back.
    folder.write_stage(
        output=OUTPUT_NAMES[kind.outputs] if ctx.stage.keeps_output else None,
        steps=outcome.steps,
        # It was trained in place and may be passed to the next call: the next stage's start is known by this hash.
        end_weights=weights_fingerprint(model) if isinstance(ctx.start, LoadedModel) else None,
    )
    return outcome


def train(ctx: StageContext[Any], kind: TrainingKind[Any, Any, Any], prepared: Prepared[Any]) -> Outcome:
    """Run the loop and begin the export; `outcome.finished.pending.wait()` gives the model folder its name."""
    started = time.monotonic()
    measured = kind.measure_start(ctx, prepared)
    loop = Loop(prepared.work, ctx.folder, ctx.progress, ctx.on_step, ctx.pause)
    ctx.folder.write_stage(arithmetic=loop.arithmetic())
    ctx.progress.say(loop.arithmetic())
    steps = loop.run()
    finished = kind.finish(ctx, prepared, measured, steps)
    return Outcome(prepared.work.policy, steps, time.monotonic() - started, finished)


def _facts(prepared: Prepared[Any]) -> dict[str, Any]:
    """What stage.json says once the stage has passed its preflight."""
    work, source = prepared.work, prepared.loaded.source
    counted = trainable_parameters(work.policy.model)
    return {
        "fingerprint": work.identity,
        "date": prepared.date,
        "environment": environment(work.policy.device),
        "start_model": StartModel(source.name, str(source.folder), prepared.start_weights),
        "data": prepared.inputs.counts,
        "parameters": ParameterCounts(counted.total, counted.trainable),
        "logprobs": work.policy.path,
        "reference": prepared.reference_kind,
        "objective": None if work.algorithm.name == work.stage.method else work.algorithm.name,
        "tokens_per_microbatch": work.tokens_per_microbatch,
    }
