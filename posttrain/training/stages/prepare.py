"""Everything before a stage's step 1, for every kind that trains: read, load, prove, and only then what is dear.

prepared = prepare(ctx)         # StageContext -> Prepared
prepared.work                   # what the loop trains with
"""

from __future__ import annotations

from typing import Any

from posttrain.config import TrainingStage, stage_fingerprint
from posttrain.models.devices import device_of
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.tree.model import TreeModel
from posttrain.parallel.world import world
from posttrain.training.checks.memory import explain_out_of_memory, program_bytes
from posttrain.training.checks.plan import enforce, fixed_memory, prove_weights
from posttrain.training.identity import require_unchanged
from posttrain.training.stages.kind import Prepared, Proven, StageContext, Subject
from posttrain.training.stages.speech import run_date
from posttrain.training.stages.starts import resolve_start
from posttrain.training.stages.table import training_kind
from posttrain.training.work import Work


def prepare(ctx: StageContext[TrainingStage]) -> Prepared[Any]:
    """Everything before step 1.

    Raises:
        ConfigError: the stage does not fit its start.
        DataError, EncodingError: before a model is loaded.
        PreflightError: a check failed and `preflight.on_failure` is `stop`; preflight.json is written all the same.
    """
    stage, folder = ctx.stage, ctx.folder
    kind, device = training_kind(stage), device_of(stage.compute.device)
    with world().together("looking at the start model"):
        start = resolve_start(stage, ctx.start, device)
    ctx.say(*start.notes)
    inputs = kind.inputs(ctx, start)
    world().agreed(lambda: require_unchanged(ctx.identity))

    # Asked before the model is there; afterwards it would count the model's own bytes as the program's.
    program = program_bytes(device, ctx.start.model if isinstance(ctx.start, LoadedModel) else None)
    with ctx.doing("loading the model"):
        loaded, policy = kind.policy(ctx, inputs, device)
    with ctx.doing("looking through the weights"):
        finite = prove_weights(stage, policy, folder)
        # Of the weights as they are now: a model from Python may have been trained since it was loaded.
        start_weights = weights_fingerprint(policy.model)
    identity = stage_fingerprint(
        stage, data=inputs.fingerprints, start_model=start_weights, seed=ctx.seed, split_seed=ctx.split_seed
    )

    subject = Subject(inputs, loaded, policy, kind.objective(ctx, inputs, policy), finite, program)
    with explain_out_of_memory(fixed_memory(policy), "the checks before step 1"):
        proven = _of_all(policy, kind.checks(ctx, subject))
    enforce(proven.preflight, stage, folder)
    sourced = kind.source(ctx, subject, proven)

    work = Work(
        stage=stage,
        algorithm=subject.learning.algorithm,
        policy=policy,
        reference=sourced.reference,
        rows=sourced.rows,
        held_out=sourced.held_out,
        decoder=inputs.encoder,
        tokens_per_microbatch=proven.tokens_per_microbatch,
        memory=proven.preflight.memory,
        seed=ctx.seed,
        identity=identity,
        adapter=loaded.adapter,
        source=sourced.source,
        hooks=sourced.hooks,
        units=sourced.units,
    )
    return Prepared(
        work,
        loaded,
        sourced.preflight,
        inputs,
        start_weights,
        sourced.reference_kind,
        start.merge,
        world().agreed(lambda: run_date(folder)),
    )


def _of_all(policy: TreeModel, proven: Proven) -> Proven:
    """The checks as rank 0 has made them, and what every rank can do: machines differ, and a rank that took another
    path, cut its rows otherwise or stopped alone would train another model."""
    here = world()
    if here.is_alone:
        return proven
    tokens = min(here.gather(proven.tokens_per_microbatch))
    preflight, path = here.agreed(lambda: (proven.preflight, policy.path))
    if policy.path != path:
        policy.path = path
    return Proven(preflight, tokens)
