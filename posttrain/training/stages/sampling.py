"""An online stage before step 1: its tasks, its rewards, what it learns with, and the checks."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.config import stage_fingerprint
from posttrain.config.online import GKD, RFT, OnlineDPO, OnlineStage, PPOStage, SamplingStage
from posttrain.data.encode import FINDINGS, CountedPrompts, Encoder
from posttrain.errors import ConfigError
from posttrain.losses.distillation import distillation_loss
from posttrain.losses.kl import AdaptiveKL
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.policy import policy_loss
from posttrain.losses.value import value_loss
from posttrain.models.devices import device_of
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.models.reference import reference
from posttrain.models.tree.divergence import Against, Distributions
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.value import value_head, value_model
from posttrain.rewards import Rubric, Scorer, resolve
from posttrain.rewards.scorer import Asking, RewardFunction
from posttrain.rollout.engine import Engine
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.balance import balanced
from posttrain.training.checks.memory import program_bytes
from posttrain.training.checks.of_rollouts import check_gold, prove
from posttrain.training.checks.of_rows import prove_weights
from posttrain.training.checks.sampler import same_arithmetic
from posttrain.training.loop import Work
from posttrain.training.objectives import Algorithm, algorithm
from posttrain.training.order import stream_seed
from posttrain.training.rl import engines
from posttrain.training.rl.critic import RATE_FACTOR, Critic, SharedCritic, Valuer
from posttrain.training.rl.curriculum import Curriculum
from posttrain.training.rl.examiner import Examiner
from posttrain.training.rl.learners import (
    Distillation,
    Imitation,
    KLWeight,
    Learner,
    Pairs,
    PolicyGradient,
    SampledReference,
)
from posttrain.training.rl.source import OnlineSource, Setup, sample
from posttrain.training.rl.tasks import TaskOrder, Tasks, TaskSet, load_tasks
from posttrain.training.source import Hooks
from posttrain.training.stages.prepared import Prepared, autocast_of, load_policy
from posttrain.training.stages.rows import Inputs
from posttrain.training.stages.speech import date_without_effect, prompts_of, run_date, spoken_apart, stage_encoding
from posttrain.training.stages.starts import settle
from posttrain.types import Batch, Count, LossOutput, Task, TokenLogprobs


def prepare_online(
    stage: SamplingStage,
    start: str | Path | LoadedModel,
    folder: StageFolder,
    seed: int,
    progress: Progress,
    examples: Tasks | None,
    resumed: dict[str, Any] | None,
    proof_only: bool,
    rewards: Sequence[RewardFunction],
) -> Prepared:
    """See `posttrain.training.stages.run.prepare`."""
    device = device_of(stage.compute.device)
    settled = settle(stage, start, device)
    for note in settled.notes:
        progress.say(f"{folder.name}: {note}")
    spoken, contradictions = stage_encoding(stage, settled.speech, run_date(folder))
    encoder = Encoder(settled.tokenizer, spoken)
    teacher = vars(stage).get("teacher")  # a key of the methods that have one
    idle = date_without_effect(stage, encoder)
    for line in (*contradictions, *encoder.notes, *idle, *spoken_apart(teacher, encoder)):
        progress.say(f"{folder.name}: {line}")
    rubric = rubric_of_stage(stage, rewards)
    counted = CountedPrompts(encoder)
    tasks = load_tasks(
        stage.data,
        stage.held_out,
        examples,
        counted,
        folder=folder.path,
        longest=_longest_prompt(stage, settled.positions),
        seed=seed,
    )
    for note in tasks.counts["notes"]:
        progress.say(f"{folder.name}: {note}")
    counted.require_written()
    for finding, number in sorted(counted.findings.items()):
        progress.say(f"{folder.name}: {number:,} prompts: {FINDINGS[finding]}")
    order = TaskOrder.plan(len(tasks.train), stage.prompts_per_step, epochs=stage.epochs, steps=stage.steps, seed=seed)
    engines.require(stage)
    gold = check_gold(tasks.train, rubric, every=proof_only)
    program = program_bytes(device, start.model if isinstance(start, LoadedModel) else None)
    loaded = load_policy(stage, start, device, seed, progress)
    policy = Policy(
        loaded.model,
        autocast=autocast_of(stage.compute.precision, device),
        activation_checkpointing=stage.compute.activation_checkpointing,
    )
    finite = prove_weights(stage, policy, folder)
    start_weights = weights_fingerprint(policy.model)
    own = [_content_of(function) for function in rewards]
    identity = stage_fingerprint(stage, data=[*tasks.fingerprints, *own], start_model=start_weights, seed=seed)
    sampler = engines.start(stage, policy, tasks.train[0].ids, tasks.longest)
    weight = _kl_weight(stage)
    against = _against(stage, policy, progress)
    shared = isinstance(stage, PPOStage) and stage.value_backbone == "shared"
    head = value_head(policy) if shared else None
    objective = balanced(objective_of(stage, weight, against, head), policy, stage)
    with progress.phase(f"{folder.name}: preflight", unit="checks"):
        proven, budget = prove(stage, policy, sampler, encoder, objective, tasks, gold, resumed, program)
    proven = proven.after(finite)
    (sampler.close if proof_only else sampler.release)()
    folder.write_preflight(proven.record())
    if stage.preflight.on_failure == "stop":
        proven.require()
    source, start_reference = None, None
    if not proof_only:
        start_reference = _reference(stage, policy, objective)
        if against is not None and isinstance(stage, OnlineStage):
            against.other = start_reference
        learner = _learner(
            stage,
            policy,
            weight,
            start_reference,
            order,
            budget,
            seed,
            head,
            _teacher_of_row(stage, policy, progress),
            engine_is_trainer=same_arithmetic(policy, proven),
        )
        examiner = _examiner(stage, policy, sampler.engine, encoder, rubric, tasks, seed, folder, progress)
        curriculum = None
        if stage.curriculum is not None:
            curriculum = Curriculum(stage.curriculum, len(tasks.train), stage.prompts_per_step, seed)
        setup = Setup(
            stage, sampler, encoder, rubric, learner, tasks.train, order, seed, folder, progress, examiner, curriculum
        )
        source = OnlineSource(setup)
    work = Work(
        stage=stage,
        algorithm=objective,
        policy=policy,
        reference=start_reference if objective.needs_reference else None,
        rows=(),
        held_out=(),
        decoder=encoder,
        tokens_per_microbatch=budget,
        memory=proven.memory,
        seed=seed,
        identity=identity,
        adapter=loaded.adapter,
        source=source,
        hooks=source.hooks if source is not None else Hooks(),
        units=source.units if source is not None else None,
    )
    prompts = prompts_of((prompt.task for prompt in tasks.train), encoder)
    inputs = Inputs((), (), encoder, tasks.counts, tasks.fingerprints, prompts=prompts)
    kind = None if start_reference is None else start_reference.kind
    return Prepared(work, loaded, proven, inputs, start_weights, kind, settled.merge, run_date(folder))


def objective_of(
    stage: SamplingStage, weight: KLWeight, against: Against | None = None, head: nn.Linear | None = None
) -> Algorithm:
    """The loss: a row of the online table, of the pairwise table for pairs, or imitation.

    The weight of a KL is read anew at each call, since an adaptive one moves.
    """
    if isinstance(stage, OnlineDPO):
        return algorithm(stage.objective, stage.parameters)
    if isinstance(stage, RFT):
        return algorithm("sft")
    if isinstance(stage, GKD):
        return Algorithm(
            "gkd",
            Task,
            "completions",
            False,
            {"beta": stage.beta},
            partial(_distil, stage),
            temperature=stage.trainer_temperature,
            against=against,
        )
    assert isinstance(stage, OnlineStage)
    parameters = stage.parameters
    return Algorithm(
        stage.method,
        Task,
        "completions",
        False,
        parameters,
        partial(_loss, stage, weight),
        temperature=stage.sampling.temperature,
        needs_entropy=bool(parameters.get("entropy_weight")),
        against=against,
        value_head=head,
    )


def _distil(
    stage: GKD, policy: TokenLogprobs, reference_N: Tensor | None, batch: Batch, denominator: Count
) -> LossOutput:
    assert policy.divergence_N is not None
    return distillation_loss(policy.divergence_N, batch, denominator, reduction=stage.reduction, policy=policy)


def _loss(
    stage: OnlineStage,
    weight: KLWeight,
    policy: TokenLogprobs,
    reference_N: Tensor | None,
    batch: Batch,
    denominator: Count,
) -> LossOutput:
    row, parameters = stage.row, stage.parameters
    if row.kl_place == "loss":
        parameters["kl_beta"] = weight.beta
    out = policy_loss(row, parameters, policy, batch, denominator, on_policy=stage.on_policy)
    if policy.values_N is None:
        return out
    own = value_loss(
        policy.values_N, batch, denominator, clip=parameters["value_clip"], weight=parameters["value_weight"]
    )
    return replace(out, loss=out.loss + own.loss, metrics={**out.metrics, **own.metrics})


def rubric_of_stage(stage: SamplingStage, functions: Sequence[RewardFunction]) -> Rubric:
    """The rewards that the stage names and the functions that were passed.

    Raises:
        ConfigError: there is none; a function that cannot be called as a reward.
    """
    named = [resolve(spec, folder=stage.modules) for spec in stage.rewards]
    passed = [_passed(one) for one in functions]
    if not named and not passed and not stage.needs_rewards:
        if keys := stage.waits_for_rewards:
            raise ConfigError(
                f"nothing rewards a completion, so `{keys[0]}` would watch a score of 0 for ever",
                where=f"{stage.name}: {keys[0]}",
                remedy=f"leave `{keys[0]}` out, or give rewards, which are then measured and do not train",
            )
        return Rubric([Scorer("none", lambda prompt, completion, task: 0.0)])
    if not named and not passed:
        raise ConfigError(
            "nothing says what a good completion is",
            where=f"{stage.name}: rewards",
            example="rewards: [{kind: math}]",
            remedy="list rewards in the stage, or pass functions: train(stage, model, tasks, rewards=[right])",
        )
    return Rubric([*named, *passed])


def _passed(one: Any) -> Scorer:
    """A function that a program passed; held against the signature now, not when the first completion is scored."""
    if not isinstance(one, Scorer) and not callable(one):
        raise ConfigError(
            "a reward that was passed is no function",
            found=f"{type(one).__name__}: {one!r}"[:80],
            expected="functions (prompt, completion, task) -> float or None",
            remedy="the kinds of docs/rewards.md stand in the stage: `pt.GRPO(rewards=[{'kind': 'math'}], ...)`",
        )
    scorer = one if isinstance(one, Scorer) else Scorer(_name_of(one), one)
    Asking.of(scorer.function, scorer.name)
    return scorer


# ---------------------------------------------------------------- the parts


def _examiner(
    stage: SamplingStage,
    policy: Policy,
    engine: Engine,
    encoder: Encoder,
    rubric: Rubric,
    tasks: TaskSet,
    seed: int,
    folder: StageFolder,
    progress: Progress,
) -> Examiner:
    own = [resolve(spec, folder=stage.modules) for spec in stage.examine.rewards]
    return Examiner(
        stage,
        tasks.held_out,
        partial(sample, engine, encoder),
        Rubric(own) if own else rubric,
        policy.model,
        folder,
        progress,
        stage.distribution(encoder.stop_ids, stream_seed(seed, "evaluation"), examine=True),
    )


def _learner(
    stage: SamplingStage,
    policy: Policy,
    weight: KLWeight,
    start: SampledReference | None,
    order: TaskOrder,
    budget: int,
    seed: int,
    head: nn.Linear | None,
    teacher: SampledReference | None,
    *,
    engine_is_trainer: bool,
) -> Learner:
    if isinstance(stage, OnlineDPO):
        return Pairs(stage.least_margin, annotated=PAIRWISE[stage.objective].needs_margins)
    if isinstance(stage, RFT):
        return Imitation(stage.least_reward, stage.most_per_prompt)
    if isinstance(stage, GKD):
        return Distillation(budget)
    assert isinstance(stage, OnlineStage)
    critic = _critic(stage, policy, order, budget, seed, head) if isinstance(stage, PPOStage) else None
    return PolicyGradient(stage, policy, weight, budget, start, critic, teacher, engine_is_trainer=engine_is_trainer)


def _teacher_of_row(stage: SamplingStage, policy: Policy, progress: Progress) -> SampledReference | None:
    """The model whose log-probs are the advantage. Beside the start, to which a KL pulls: they are two models."""
    if isinstance(stage, OnlineStage) and stage.row.needs_teacher:
        return _teacher(stage.teacher, policy, progress)  # type: ignore[attr-defined]
    return None


def _reference(stage: SamplingStage, policy: Policy, objective: Algorithm) -> Any:
    """The policy's start; None where nothing is compared with it."""
    needed = stage.row.needs_reference if isinstance(stage, OnlineStage) else objective.needs_reference
    return reference("auto", policy) if needed else None


def _against(stage: SamplingStage, policy: Policy, progress: Progress) -> Against | None:
    """What the policy's whole distributions are held against. A reference is the policy itself until there is one."""
    if isinstance(stage, GKD):
        return Against(_teacher(stage.teacher, policy, progress), stage.beta)
    if isinstance(stage, OnlineStage) and stage.row.exact_kl:
        return Against(policy, 1.0, round(stage.parameters["kl_every"]))
    return None


def _teacher(name: str, policy: Policy, progress: Progress) -> Teacher:
    teacher = load(name, device=policy.device, say=progress.say)
    for parameter in teacher.model.parameters():
        parameter.requires_grad_(False)
    # Its path is its own: a teacher of another architecture may not be what the student's proof was made on.
    return Teacher(Policy(teacher.model, autocast=policy.autocast))


class Teacher:
    """Another model's log-probs of the policy's tokens, and its whole distributions."""

    kind = "teacher"

    def __init__(self, policy: Policy):
        self._policy = policy

    @torch.no_grad()
    def logprobs(self, batch: Batch, *, temperature: float = 1.0) -> Tensor:
        return self._policy(batch, temperature=temperature).logprobs_N

    @torch.no_grad()
    def distributions(self, batch: Batch, index_S: Tensor | None = None, *, temperature: float = 1.0) -> Distributions:
        return self._policy.distributions(batch, index_S, temperature=temperature)


def _critic(
    stage: PPOStage, policy: Policy, order: TaskOrder, budget: int, seed: int, head: nn.Linear | None
) -> Valuer:
    rate = stage.value_learning_rate or RATE_FACTOR * stage.learning_rate
    updates = order.steps * stage.updates_per_rollout
    if head is not None:
        return SharedCritic(policy, head, stage.optimizer, learning_rate=rate, schedule=stage.schedule, updates=updates)
    return Critic(
        value_model(policy, train_backbone=stage.value_backbone == "train", seed=stream_seed(seed, "adapter", 1)),
        stage.optimizer,
        learning_rate=rate,
        schedule=stage.schedule,
        updates=updates,
        clip=stage.parameters["value_clip"],
        tokens_per_microbatch=budget,
    )


def _kl_weight(stage: SamplingStage) -> KLWeight:
    if not isinstance(stage, OnlineStage):
        return KLWeight(0.0)
    beta = stage.parameters.get("kl_beta", 0.0)
    return KLWeight(beta, AdaptiveKL(beta, stage.kl_target) if stage.kl_target is not None else None)


def _longest_prompt(stage: SamplingStage, positions: int | None) -> int | None:
    limits = [limit for limit in (stage.max_length, positions) if limit is not None]
    if not limits:
        return None
    room = min(limits) - stage.sampling.max_new_tokens
    if room < 1:
        raise ConfigError(
            "answers of that length leave no room for a prompt",
            where=f"{stage.name}: sampling.max_new_tokens",
            found=f"{stage.sampling.max_new_tokens:,} new tokens of {min(limits):,} in all",
            remedy="lower sampling.max_new_tokens or raise max_length",
        )
    return room


def _name_of(function: RewardFunction) -> str:
    return function.__name__ if inspect.isroutine(function) else type(function).__name__


def _content_of(function: RewardFunction) -> str:
    """What a function does, as far as its source tells; a changed one is another run."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt, or no plain function
        text = repr(type(function))
    return hashlib.sha256(text.encode()).hexdigest()
