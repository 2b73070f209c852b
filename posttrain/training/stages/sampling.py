"""Stages that train on what their policy samples: the engine, the loss, the learner, and the checks before step 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from posttrain.config.online import GKD, RFT, OnlineDPO, OnlineStage, PPOStage, SamplingStage
from posttrain.losses.pairwise import PAIRWISE
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.reference import reference
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.value import value_head, value_model
from posttrain.parallel.world import world
from posttrain.rewards import Rubric, resolve
from posttrain.runs.records.stage import StageRecord
from posttrain.training.balance import balanced
from posttrain.training.checks import of_rollouts
from posttrain.training.checks.sampler import same_arithmetic
from posttrain.training.objectives import kl_weight, objective_of
from posttrain.training.order import stream_seed
from posttrain.training.rl import engines
from posttrain.training.rl.async_source import AsyncSource
from posttrain.training.rl.critic import RATE_FACTOR, Critic, SharedCritic, Valuer
from posttrain.training.rl.curriculum import Curriculum
from posttrain.training.rl.examiner import Examiner
from posttrain.training.rl.learners import (
    Distillation,
    Imitation,
    Learner,
    Pairs,
    PolicyGradient,
    SampledReference,
)
from posttrain.training.rl.main_engine import sampler_of_job
from posttrain.training.rl.queue_files import forget_queue
from posttrain.training.rl.served import Surroundings
from posttrain.training.rl.source import OnlineSource, Setup, sample
from posttrain.training.rl.teacher import advantage_teacher, compared_with
from posttrain.training.stages.kind import (
    Finished,
    Prepared,
    Proven,
    Sourced,
    StageContext,
    Subject,
    TrainingKind,
    row_of_type,
)
from posttrain.training.stages.policy import autocast_of, export_policy, load_policy
from posttrain.training.stages.sampling_end import conclude
from posttrain.training.stages.sampling_inputs import RolloutLearning, SamplingInputs, read_tasks
from posttrain.training.stages.starts import Start

Sampling = StageContext[SamplingStage]
Sampled = Subject[SamplingInputs, RolloutLearning]


def sampling_inputs(ctx: Sampling, start: Start) -> SamplingInputs:
    with ctx.doing("reading the tasks"):
        return read_tasks(ctx, start)


def sampling_policy(ctx: Sampling, inputs: SamplingInputs, device: torch.device) -> tuple[LoadedModel, TreeModel]:
    stage = ctx.stage
    loaded = load_policy(stage, ctx.start, device, ctx.seed, ctx.progress)
    return loaded, Policy(
        loaded.model,
        autocast=autocast_of(stage.compute.precision, device),
        activation_checkpointing=stage.compute.activation_checkpointing,
        offload_activations=stage.compute.offload_activations,
        sharding=loaded.sharding,
    )


def sampling_objective(ctx: Sampling, inputs: SamplingInputs, policy: TreeModel) -> RolloutLearning:
    """Starts the engine and loads a teacher, so that the checks see what will train."""
    stage, tasks = ctx.stage, inputs.tasks
    assert isinstance(policy, Policy)
    with ctx.doing("loading the engine"):
        around = Surroundings(ctx.folder.path, inputs.encoder.tokenizer, ctx.start, ctx.say)
        prompt, decode = tasks.train[0].ids, inputs.encoder.tokens.decode
        sampler = sampler_of_job(
            stage, policy, lambda whole: engines.start(stage, whole, prompt, tasks.longest, decode, around)
        )
    weight = kl_weight(stage)
    against = compared_with(stage, policy, ctx.progress)
    head = value_head(policy) if stage.shares_value_backbone else None
    objective = balanced(objective_of(stage, weight, against, head), policy, stage)
    return RolloutLearning(objective, sampler, weight, against, head)


def sampling_checks(ctx: Sampling, subject: Sampled) -> Proven:
    sampler = subject.learning.sampler
    try:
        with ctx.progress.phase(f"{ctx.folder.name}: preflight", unit="checks"):
            proven = of_rollouts.prove(ctx, subject)
    except BaseException:
        sampler.close()  # servers of the stage's own would stay as long as a program that goes on after the error
        raise
    # Between proof and training the card is the trainer's; `check_recipe` trains nothing and gives it back.
    (sampler.close if ctx.proof_only else sampler.release)()
    return proven


def sampling_source(ctx: Sampling, subject: Sampled, proven: Proven) -> Sourced:
    if ctx.proof_only:
        return Sourced(None, proven.preflight)
    stage, policy, learning = ctx.stage, subject.policy, subject.learning
    assert isinstance(policy, Policy)
    # Never the cached kind, which has to know its rows: the copy, or the model without its adapter.
    start: Any = reference("auto", policy) if stage.needs_reference else None
    if learning.against is not None and start is not None:
        learning.against.other = start  # until now the policy was its own reference
    learner = row_of_type(LEARNERS, stage)(
        ctx, subject, _Given(proven, start, advantage_teacher(stage, policy, ctx.progress))
    )
    source = SOURCES[stage.rollout.mode](_setup(ctx, subject, learner))
    return Sourced(
        source,
        proven.preflight,
        source.units,
        source.hooks,
        reference=start if learning.algorithm.needs_reference else None,
        reference_kind=None if start is None else start.kind,
    )


def finish_sampling(ctx: Sampling, prepared: Prepared[SamplingInputs], measured: None, steps: int) -> Finished:
    # The export first: reading it back takes longer than the conclusion, and runs beside it.
    pending = export_policy(ctx, prepared, steps)
    if world().is_main:  # the run folder is its own
        forget_queue(ctx.folder.path)
    return Finished(pending, world().agreed(lambda: conclude(ctx.folder)))


def keeps_the_same(stage: SamplingStage, record: StageRecord) -> bool:
    """Whether the stage ended with the weights that are asked for now: the best or the last."""
    return record.examine_keep in (None, stage.examine.keep)


SAMPLING: TrainingKind[SamplingStage, SamplingInputs, RolloutLearning] = TrainingKind(
    outputs=SamplingStage.OUTPUTS,
    inputs=sampling_inputs,
    policy=sampling_policy,
    objective=sampling_objective,
    checks=sampling_checks,
    source=sampling_source,
    finish=finish_sampling,
    ends_as_asked=keeps_the_same,
)


# ---------------------------------------------------------------- what learns from rollouts


@dataclass(frozen=True, slots=True)
class _Given:
    """What the checks and the reference left for a learner."""

    proven: Proven
    start: SampledReference | None
    teacher: SampledReference | None


def _policy_gradient(
    ctx: StageContext[OnlineStage], subject: Sampled, given: _Given, critic: Valuer | None = None
) -> Learner:
    policy = subject.policy
    assert isinstance(policy, Policy)
    return PolicyGradient(
        ctx.stage,
        policy,
        subject.learning.weight,
        given.proven.tokens_per_microbatch,
        given.start,
        critic,
        given.teacher,
        engine_is_trainer=same_arithmetic(policy, given.proven.preflight),
    )


def _actor_critic(ctx: StageContext[PPOStage], subject: Sampled, given: _Given) -> Learner:
    return _policy_gradient(ctx, subject, given, _critic(ctx, subject, given))


def _pairs(ctx: StageContext[OnlineDPO], subject: Sampled, given: _Given) -> Learner:
    return Pairs(ctx.stage.least_margin, annotated=PAIRWISE[ctx.stage.objective].needs_margins)


def _imitation(ctx: StageContext[RFT], subject: Sampled, given: _Given) -> Learner:
    return Imitation(ctx.stage.least_reward, ctx.stage.most_per_prompt)


def _distillation(ctx: StageContext[GKD], subject: Sampled, given: _Given) -> Learner:
    return Distillation(given.proven.tokens_per_microbatch)


LEARNERS: Mapping[type[SamplingStage], Callable[[StageContext[Any], Sampled, _Given], Learner]] = {
    OnlineStage: _policy_gradient,
    PPOStage: _actor_critic,
    OnlineDPO: _pairs,
    RFT: _imitation,
    GKD: _distillation,
}
"""What becomes of scored completions, by the type of the settings; the nearest row counts."""


SOURCES: Mapping[str, type[OnlineSource]] = {"sync": OnlineSource, "async": AsyncSource}
"""Where a step's groups come from, by `rollout.mode`."""


def _critic(ctx: StageContext[PPOStage], subject: Sampled, given: _Given) -> Valuer:
    stage, policy, head = ctx.stage, subject.policy, subject.learning.value_head
    assert isinstance(policy, Policy)
    rate = stage.value_learning_rate or RATE_FACTOR * stage.learning_rate
    updates = subject.inputs.order.steps * stage.updates_per_rollout
    if head is not None:
        return SharedCritic(policy, head, stage.optimizer, learning_rate=rate, schedule=stage.schedule, updates=updates)
    return Critic(
        value_model(policy, train_backbone=stage.value_backbone == "train", seed=stream_seed(ctx.seed, "adapter", 1)),
        stage.optimizer,
        learning_rate=rate,
        schedule=stage.schedule,
        updates=updates,
        clip=stage.parameters["value_clip"],
        tokens_per_microbatch=given.proven.tokens_per_microbatch,
    )


def _setup(ctx: Sampling, subject: Sampled, learner: Learner) -> Setup:
    stage, inputs, sampler = ctx.stage, subject.inputs, subject.learning.sampler
    # A stricter judge than the reward tells learning from hacking it.
    own = [resolve(spec, folder=stage.modules) for spec in stage.examine.rewards]
    examiner = Examiner(
        stage,
        inputs.tasks.held_out,
        partial(sample, sampler.engine, inputs.encoder),
        Rubric(own) if own else inputs.rubric,
        subject.policy.model,
        ctx.folder,
        ctx.progress,
        stage.distribution(inputs.encoder.stop_ids, stream_seed(ctx.seed, "evaluation"), examine=True),
    )
    curriculum = None
    if stage.curriculum is not None:
        curriculum = Curriculum(stage.curriculum, len(inputs.tasks.train), stage.prompts_per_step, ctx.seed)
    return Setup(
        stage,
        sampler,
        inputs.encoder,
        inputs.rubric,
        learner,
        inputs.tasks.train,
        inputs.order,
        ctx.seed,
        ctx.folder,
        ctx.progress,
        examiner,
        curriculum,
    )
