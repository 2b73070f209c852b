"""What a stage that samples works on: its tasks as prompts, and the rewards that judge what is sampled of them."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from posttrain.config.online import SamplingStage
from posttrain.data.encode import FINDINGS, CountedPrompts, Encoder
from posttrain.errors import ConfigError
from posttrain.models.folders.export_files import SpokenPrompt
from posttrain.parallel.world import world
from posttrain.rewards import Rubric, Scorer, resolve
from posttrain.rewards.scorer import Asking, RewardFunction
from posttrain.runs.records.stage import DataCounts
from posttrain.training.checks.gold import check_gold, tried_on
from posttrain.training.checks.preflight import Check
from posttrain.training.rl import engines
from posttrain.training.rl.engines import Sampler
from posttrain.training.rl.learners import KLWeight
from posttrain.training.rl.servers import require_servers
from posttrain.training.rl.tasks import TaskOrder, TaskSet, load_tasks
from posttrain.training.stages.kind import Learning, RewardSpec, StageContext
from posttrain.training.stages.speech import date_without_effect, prompts_of, run_date, spoken_apart, stage_encoding
from posttrain.training.stages.starts import Start
from posttrain.types import Against


@dataclass(frozen=True, slots=True)
class SamplingInputs:
    """A stage's tasks as prompts, and what judges completions of them; no weight has been touched yet."""

    tasks: TaskSet
    order: TaskOrder
    rubric: Rubric
    gold: Check
    """What the verifiers make of the rows' own answers."""
    encoder: Encoder
    counts: DataCounts
    """What stage.json says under "data"."""
    fingerprints: tuple[str, ...]
    """Of the tasks, and of the functions that a program passed as rewards."""
    prompts: tuple[SpokenPrompt, ...]
    """A few of the tasks' prompts, which the exported folder must build alike."""


@dataclass(frozen=True, slots=True)
class RolloutLearning(Learning):
    """The loss on rollouts, and what it and its learner share."""

    sampler: Sampler
    weight: KLWeight
    """Of a KL to the start; it may move, so the loss reads it anew at each call."""
    against: Against | None
    """Whose whole distributions the loss compares with the policy's."""
    value_head: nn.Linear | None
    """On the policy's own backbone."""


def read_tasks(ctx: StageContext[SamplingStage], start: Start) -> SamplingInputs:
    """Read the tasks, make prompts of them, and find the rewards. Of several ranks, rank 0 reads and sends its prompts.

    Raises:
        DataError, EncodingError: a row, a file or the template cannot serve; no model has been loaded.
        ConfigError: nothing rewards a completion, or answers of the asked length leave no room for a prompt.
        EngineError, MissingExtraError: the stage's engine is not there.
    """
    rubric = rubric_of_stage(ctx.stage, ctx.rewards)  # on every rank: a reward may be a function that cannot travel
    found = world().agreed(lambda: _Travelling(_read_here(ctx, start, rubric)))
    return replace(found.inputs, rubric=rubric)


class _Travelling:
    """Inputs on their way to the other ranks: without the rubric, of which each has its own."""

    def __init__(self, inputs: SamplingInputs):
        self.inputs = inputs

    def __getstate__(self) -> dict[str, Any]:
        unknown: Any = None
        return {"inputs": replace(self.inputs, rubric=unknown)}


def _read_here(ctx: StageContext[SamplingStage], start: Start, rubric: Rubric) -> SamplingInputs:
    stage = ctx.stage
    encoder = _encoder(ctx, start)
    counted = CountedPrompts(encoder)
    with ctx.progress.phase(f"{ctx.folder.name}: reading the tasks", unit="tasks") as phase:
        tasks = load_tasks(
            stage.data,
            stage.held_out if ctx.held_out is None else ctx.held_out,
            ctx.examples,
            counted,
            folder=ctx.folder.path,
            longest=_longest_prompt(stage, start.positions),
            seed=ctx.split_seed,
            progress=phase.advance,
        )
    ctx.say(*tasks.counts.notes)
    # Of all prompts together: one row with a strange letter is no reason to stop.
    counted.require_written()
    ctx.say(*(f"{number:,} prompts: {FINDINGS[finding]}" for finding, number in sorted(counted.findings.items())))
    order = TaskOrder.plan(
        len(tasks.train), stage.prompts_per_step, epochs=stage.epochs, steps=stage.steps, seed=ctx.seed
    )
    # A server that is gone, or is another than was meant, is found here, before the model is loaded.
    require_servers(stage)
    engines.require(stage)
    total = len(tried_on(tasks.train, every=ctx.proof_only))
    with ctx.progress.phase(f"{ctx.folder.name}: trying the rewards", total=total, unit="tasks") as phase:
        gold = check_gold(tasks.train, rubric, every=ctx.proof_only, progress=phase.advance)
    return SamplingInputs(
        tasks,
        order,
        rubric,
        gold,
        encoder,
        tasks.counts,
        (*tasks.fingerprints, *(content_of(function) for function in ctx.rewards)),
        prompts_of((prompt.task for prompt in tasks.train), encoder),
    )


def _encoder(ctx: StageContext[SamplingStage], start: Start) -> Encoder:
    """How prompts become ids, and what is odd about it."""
    stage = ctx.stage
    spoken, contradictions = stage_encoding(stage, start.speech, run_date(ctx.folder))
    encoder = Encoder(start.tokenizer, spoken)
    teacher = vars(stage).get("teacher")  # a key of the methods that have one
    ctx.say(*contradictions, *encoder.notes, *date_without_effect(stage, encoder), *spoken_apart(teacher, encoder))
    return encoder


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


# ---------------------------------------------------------------- rewards


def rubric_of_stage(stage: SamplingStage, functions: Sequence[RewardSpec]) -> Rubric:
    """The rewards that the stage names and those that were passed.

    Raises:
        ConfigError: there is none; a function that cannot be called as a reward.
    """
    named = [resolve(spec, folder=stage.modules) for spec in stage.rewards]
    passed = [_passed(function, stage) for function in functions]
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


def _passed(function: Any, stage: SamplingStage) -> Scorer:
    """A reward that a program passed; held against the signature now, not when the first completion is scored."""
    if isinstance(function, str):
        function = {"kind": function}
    if isinstance(function, Mapping):
        return resolve(function, folder=stage.modules)
    if not isinstance(function, Scorer) and not callable(function):
        raise ConfigError(
            "a reward that was passed is no function",
            found=f"{type(function).__name__}: {function!r}"[:80],
            expected="functions (prompt, completion, task) -> float or None, or entries such as {'kind': 'math'}",
            remedy="write a function, or name a kind of docs/rewards.md: `rewards=['math']`",
        )
    scorer = function if isinstance(function, Scorer) else Scorer(_name_of(function), function)
    Asking.of(scorer.function, scorer.name)
    return scorer


def _name_of(function: RewardFunction) -> str:
    return function.__name__ if inspect.isroutine(function) else type(function).__name__


def content_of(function: RewardSpec) -> str:
    """What a reward does, as far as its entry or source tells; a changed one is another run."""
    try:
        if isinstance(function, str | Mapping):
            text = json.dumps(function, sort_keys=True, default=repr)
        else:
            text = inspect.getsource(function.function if isinstance(function, Scorer) else function)
    except (OSError, TypeError):  # typed at a prompt, or no plain function
        text = repr(type(function))
    return hashlib.sha256(text.encode()).hexdigest()
