"""Rollouts as a source of batches: what the one loop trains on when its rows are the policy's own answers.

    at(step):  prompts -> engine.generate -> texts -> rubric -> learner.trees -> one list of trees for each update

Sampling and training take turns here: a step samples from the weights that the last one left, so every completion has a
staleness of 0. `async_source.py` samples while the trainer trains; all but where its groups come from is the same.

What becomes of scored completions is the learner's business (`learners.py`): advantages, pairs, or imitation. Prompts
are a function of the seed and the step, completions of the seed, the step and the weights: a resumed run asks and
answers as the uninterrupted one. Everything sampled is in rollouts.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from posttrain.advantages import soft_overlong
from posttrain.config.online import SamplingStage
from posttrain.data.encode import Encoder
from posttrain.outputs import Metric
from posttrain.rewards.rubric import Rubric, Scored
from posttrain.rollout.engine import Completion, Engine, FinishReason
from posttrain.rollout.text import completion_text
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.sampling import SamplingDistribution
from posttrain.training.order import stream, stream_seed
from posttrain.training.rl.curriculum import Curriculum
from posttrain.training.rl.engines import Sampler
from posttrain.training.rl.examiner import Examiner, score_groups
from posttrain.training.rl.learners import Learner
from posttrain.training.rl.metrics import rollout_metrics
from posttrain.training.rl.rollouts import Group, Prompt, Response, Rollout, decide
from posttrain.training.rl.tasks import TaskOrder
from posttrain.training.source import Hooks, Units
from posttrain.types import TokenTree


@dataclass(frozen=True, slots=True)
class Setup:
    """All that an online stage samples, scores and learns with."""

    stage: SamplingStage
    sampler: Sampler
    encoder: Encoder
    rubric: Rubric
    learner: Learner
    prompts: Sequence[Prompt]
    order: TaskOrder
    seed: int
    folder: StageFolder
    progress: Progress
    examiner: Examiner
    curriculum: Curriculum | None = None
    """Says which tasks a step asks, in the place of `order`."""


@dataclass(slots=True)
class StepNotes:
    """What is known of the step under way: how long its phases took, and figures that are logged with it."""

    started: float
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            with self.progress.doing(name):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class OnlineSource:
    """`posttrain.training.source.Source` over live rollouts."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self._step = StepNotes(time.perf_counter(), setup.progress)
        self._stopped: str | None = None

    # ------------------------------------------------------------ what the loop asks

    @property
    def steps(self) -> int:
        return self.setup.order.steps

    @property
    def updates(self) -> int:
        return self.setup.stage.updates_per_rollout

    @property
    def units(self) -> Units:
        order = self.setup.order
        return Units(self.setup.stage.arithmetic(order.tasks, order.steps), order.epoch_after)

    @property
    def hooks(self) -> Hooks:
        return Hooks(
            after_update=self._after_update,
            end_of_step=self._end_of_step,
            examination=HeldOutTasks(self.setup),
            why_stop=lambda: self._stopped or self.setup.examiner.stop(),
            finish=self._finish,
            parts=self.setup.learner.parts,
            close=self.close,
        )

    def at(self, step: int) -> Sequence[Sequence[TokenTree]]:
        self._step = now = StepNotes(time.perf_counter(), self.setup.progress)
        setup = self.setup
        with now.phase("sync"):
            if (gap := setup.sampler.sync_weights(step)) is not None:
                now.metrics["sync_gap"] = gap
        rollout, kept = self._rollout(step, now)
        # A colocated engine sleeps from here on: the forward passes below need the memory that it held.
        setup.sampler.release()
        with now.phase("logprobs"):
            trees = setup.learner.trees(rollout, kept)
        with now.phase("write"):
            # Also what does not train: a person who looks why nothing is learned needs the dropped groups most.
            for record in rollout.records():
                setup.folder.append(record)
        now.metrics |= setup.sampler.metrics()
        now.metrics |= rollout_metrics(rollout, rewarded=setup.stage.needs_rewards)
        now.metrics["groups_trained"] = len(trees)
        if not trees:
            why = why_nothing(rollout, kept, setup.learner.nothing)
            setup.progress.say(f"{setup.folder.name}: step {step + 1}: no update: {why}")
            setup.folder.write_stage(no_update=why)
        return self._batches(trees, step)

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "stopped": self._stopped,
            "learner": dict(self.setup.learner.state_dict()),
            "examiner": self.setup.examiner.state_dict(),
            "curriculum": None if self.setup.curriculum is None else self.setup.curriculum.state_dict(),
            "sync_noise": sync.noise if (sync := self.setup.sampler.sync) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._stopped = state["stopped"]
        self.setup.learner.load_state_dict(state["learner"])
        self.setup.examiner.load_state_dict(state["examiner"])
        if self.setup.curriculum is not None:
            self.setup.curriculum.load_state_dict(state["curriculum"])
        if (sync := self.setup.sampler.sync) is not None:
            # Measured anew, a gap of weights that did not arrive would pass for the noise of equal ones.
            sync.noise = state["sync_noise"]

    # ------------------------------------------------------------ hooks

    def _after_update(self, trees: Sequence[TokenTree], index: int) -> Mapping[str, Metric]:
        with self._step.phase("value"):
            return self.setup.learner.after_update(trees, index)

    def _end_of_step(self, step: int, values: Mapping[str, float]) -> Mapping[str, float]:
        now, setup = self._step, self.setup
        # What is left of the step is the loop's own: forward, backward and optimizer of the policy.
        now.seconds["update"] = time.perf_counter() - now.started - sum(now.seconds.values())
        metrics = {**now.metrics, **{f"seconds_{name}": spent for name, spent in now.seconds.items()}}
        metrics |= setup.learner.end_of_step(values)
        bound, kl = setup.stage.stop.kl_above, metrics.get("kl_sequence_reference", 0.0)
        # Noted here and asked by the loop after the step, so that the step is written before the run ends.
        if bound is not None and kl > bound:
            self._stopped = f"the KL to the start is {kl:.3g} nats a response, above {bound:g}"
        if step == 1 and (note := setup.learner.explain(values)) is not None:
            setup.progress.say(f"{setup.folder.name}: {note}")
        return metrics

    def close(self) -> None:
        """What works beside the training ends; here nothing does."""

    def _finish(self) -> None:
        self.close()
        self.setup.examiner.finish()
        self.setup.sampler.close()
        self.setup.rubric.close()

    # ------------------------------------------------------------ sampling

    def _rollout(self, step: int, now: StepNotes) -> tuple[Rollout, list[Group]]:
        """Everything sampled for the step, and the groups that train."""
        stage, order = self.setup.stage, self.setup.curriculum or self.setup.order
        indices = order.at(step)
        if self.setup.curriculum is not None:
            now.metrics |= self.setup.curriculum.metrics(step, indices)
        groups = self._groups(step, 0, indices, now)
        # Equal rewards give every completion an advantage of 0: such a group trains by a KL in the loss alone.
        if stage.tied_groups == "keep":
            return Rollout(tuple(groups), step + 1, step), groups
        kept = [group for group in groups if not group.tied]
        rounds = stage.resample_rounds if stage.tied_groups == "resample" else 0
        for number in range(1, rounds + 1):
            # As many as are missing and no more: the learning rate was set for a step of so many prompts.
            missing = stage.prompts_per_step - len(kept)
            if not missing:
                break
            more = order.more(step, number, missing, indices)
            indices = [*indices, *more]
            fresh = self._groups(step, number, more, now)
            groups += fresh
            kept += [group for group in fresh if not group.tied]
        return Rollout(tuple(groups), step + 1, step), kept

    def _groups(self, step: int, number: int, indices: Sequence[int], now: StepNotes) -> list[Group]:
        setup, stage = self.setup, self.setup.stage
        prompts = [setup.prompts[index] for index in indices]
        # A seed for each step and round: with one for all, a task that is asked again would be answered the same.
        sampling = stage.distribution(setup.encoder.stop_ids, stream_seed(setup.seed, "sampling", step, number))
        with now.phase("generate"):
            groups = sample(setup.sampler.engine, setup.encoder, prompts, sampling, stage.completions_per_prompt)
        with now.phase("score"):
            score_and_decide(setup.rubric, stage, groups)
            if setup.curriculum is not None:
                observe(setup.curriculum, step, indices, groups)
        return groups

    def _batches(self, trees: Sequence[Sequence[TokenTree]], step: int) -> list[list[TokenTree]]:
        """Each pass over the rollout in an order of its own, cut into updates of whole groups."""
        size = self.setup.stage.prompts_of_update
        batches = []
        for number in range(self.setup.stage.passes if trees else 0):
            order = stream(self.setup.seed, "order", step, 0, number).permutation(len(trees)).tolist()
            for first in range(0, len(order), size):
                # Sorted within an update: a sum rounds by its order, which is then that of the rollout.
                batches.append([tree for place in sorted(order[first : first + size]) for tree in trees[place]])
        return batches


@dataclass(frozen=True, slots=True)
class HeldOutTasks:
    """`posttrain.training.source.Examination`: the tasks that the stage does not train on."""

    setup: Setup

    def is_due(self, step: int) -> bool:
        return self.setup.examiner.due(step, self.setup.order.steps)

    def measure(self, step: int) -> Mapping[str, Metric]:
        # The step's update has not reached an engine with weights of its own: it would answer for the step before.
        self.setup.sampler.sync_weights(step)
        metrics = self.setup.examiner.examine(step)
        self.setup.sampler.release()
        return metrics


# ---------------------------------------------------------------- sampling and shaping


def sample(
    engine: Engine,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    sampling: SamplingDistribution,
    completions_per_prompt: int,
) -> list[Group]:
    """Completions of each prompt with their texts; nothing is scored yet."""
    ids = [prompt.ids for prompt in prompts]
    sampled = engine.generate(ids, sampling, completions_per_prompt=completions_per_prompt)
    return [unscored(encoder, prompt, completions) for prompt, completions in zip(prompts, sampled, strict=True)]


def unscored(encoder: Encoder, prompt: Prompt, completions: Sequence[Completion]) -> Group:
    """A prompt's completions with their texts; nobody has judged them yet."""
    texts = [completion_text(completion, encoder.tokens.decode) for completion in completions]
    responses = zip(completions, texts, strict=True)
    return Group(prompt, tuple(Response(completion, text, Scored(None), None) for completion, text in responses))


def score_and_decide(rubric: Rubric, stage: SamplingStage, groups: Sequence[Group]) -> None:
    """What the groups are worth, and which of their responses train."""
    score_groups(rubric, groups)
    _overlong(groups, stage)
    decide(groups, drop_truncated=stage.truncated == "drop")


def observe(curriculum: Curriculum, step: int, indices: Sequence[int], groups: Sequence[Group]) -> None:
    """Tell the curriculum what became of each task; a completion that nobody judged says nothing of it."""
    for index, group in zip(indices, groups, strict=True):
        # Without the overlong penalty: whether a task was solved is no matter of length.
        totals = [response.scored.total for response in group.responses if response.scored.total is not None]
        passed = sum(total >= curriculum.settings.pass_at for total in totals)
        curriculum.observe(step, index, passed=passed, of=len(totals))


def why_nothing(rollout: Rollout, kept: Sequence[Group], usual: str) -> str:
    """Why a step has nothing to train on, by what became of its completions.

    Args:
        kept: the groups that were not dropped for their rewards.
        usual: the learner's own reason, where completions were there to learn from.
    """
    if not rollout.rewards:
        return _nobody_judged(rollout)
    answers = [response for response in rollout.responses if response.judged]
    cut = sum(answer.truncated and not answer.trains for answer in answers)
    if not answers:
        return "no completion has a token"
    limit = "cut at `sampling.max_new_tokens`, which `truncated: drop` leaves out"
    if cut == len(answers):
        return f"each of the {cut:,} completions was {limit}"
    tied = len(rollout.groups) - len(kept)
    if cut and kept and not any(group.branches for group in kept):
        dropped = f"{tied:,} of {len(rollout.groups):,} groups have no signal (the rewards of each are all equal), and "
        return f"{dropped if tied else ''}every completion of the {'others' if tied else 'groups'} was {limit}"
    return f"{usual}; {cut:,} of {len(answers):,} completions were {limit}" if cut else usual


def _nobody_judged(rollout: Rollout) -> str:
    """Why no completion of a step has a reward."""
    if all(response.completion.finish is FinishReason.ABORTED for response in rollout.responses):
        return "the engine aborted every completion of the step"
    return "every reward abstained from all completions of the step"


def _overlong(groups: Sequence[Group], stage: SamplingStage) -> None:
    """DAPO's soft punishment of long responses, added to the reward and shown as a part of its own.

    The rubric's total stays what it was: whether a group has a signal is asked of that.
    """
    share = stage.overlong_part
    if share is None:
        return
    limit = stage.sampling.max_new_tokens
    for group in groups:
        for response in group.responses:
            if response.reward is None:
                continue
            length = torch.tensor([response.completion.num_sampled])
            lost = float(soft_overlong(length, limit, max(1, round(share * limit))))
            response.reward += lost
            response.scored = Scored(response.scored.total, {**response.scored.parts, "overlong": lost})
