"""Who says how good an answer is, for all strategies alike.

    scores = await solving.score(nodes, RewardModelScorer(model="runs/mine/reward/model"))

Each call is scored by itself and not beside other prompts': rewards differ in their last digits with the rows that
share a batch, and a strategy is to be repeated by its seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from posttrain.config.strategies.base import (
    LogProbScorer,
    RewardModelScorer,
    RewardsScorer,
    ScorerSettings,
    SelfScorer,
    StepAggregate,
    StepStrategy,
    StrategySettings,
)
from posttrain.config.values import is_changed
from posttrain.errors import ConfigError
from posttrain.inference.prompts import asking, question_text
from posttrain.inference.search.thoughts import mark_value
from posttrain.inference.solution import Node
from posttrain.models.reward.scoring import RewardModel, load_reward
from posttrain.rewards import Rubric, Sampled, rubric_of
from posttrain.types import Comparison, Feedback, Message, Task

ABSTAINED = float("-inf")
"""The score of an answer that its scorer could not judge: it is chosen last."""


class Solved(Protocol):
    """What a grader needs of a prompt that is being solved: `posttrain.inference.solving.Solving` is one."""

    task: Task
    nodes: list[Node]

    async def ask(
        self, messages: Sequence[Message], count: int = 1, *, kind: str, about: Sequence[Node] = (), **sampling: Any
    ) -> list[Node]: ...

    def count_scored(self, tokens: int) -> None: ...


class Grader(Protocol):
    """A scorer that is ready: loaded, started."""

    judges_steps: bool
    """Whether it can judge an answer that is still being written."""

    async def grade(self, solving: Solved, nodes: Sequence[Node]) -> list[float | None]:
        """A number per node, None where it cannot judge one."""
        ...

    def close(self) -> None: ...


class Scorers:
    """The graders of a run, each made once: with Scorers(folder) as scorers: ..."""

    def __init__(
        self, folder: Path | None = None, *, device: str = "cpu", models: Mapping[str, RewardModel] | None = None
    ):
        """
        Args:
            folder: of the recipe, where functions are looked for.
            device: of reward models.
            models: loaded reward models by the name under which a scorer's `model` asks for them.
        """
        self.folder, self.device = folder, device
        self._models = dict(models or {})
        self._graders: dict[str, Grader] = {}

    def __enter__(self) -> Scorers:
        return self

    def __exit__(self, *_: object) -> None:
        for grader in self._graders.values():
            grader.close()
        self._graders.clear()

    def grader(self, settings: ScorerSettings) -> Grader:
        # Settings hold mappings, which have no hash; their text says all that a grader depends on.
        key = repr(settings)
        if key not in self._graders:
            self._graders[key] = MAKERS[type(settings)](settings, self)
        return self._graders[key]

    def reward_model(self, name: str) -> RewardModel:
        if name not in self._models:
            self._models[name] = load_reward(name, device=self.device)
        return self._models[name]

    async def score(
        self, solving: Solved, nodes: Sequence[Node], settings: ScorerSettings, *, partial: bool = False
    ) -> list[float]:
        """See `Solving.score`."""
        if not nodes:
            return []
        grader = self.grader(settings)
        if partial:
            require_steps(grader, settings)
        values = await grader.grade(solving, nodes)
        scores = [ABSTAINED if value is None else value for value in values]
        for node, score in zip(nodes, scores, strict=True):
            node.scores[label_of(settings)] = score
        return scores

    async def score_each(
        self, asked: Sequence[tuple[Solved, Sequence[Node]]], settings: ScorerSettings
    ) -> list[list[float]]:
        """`score` of finished answers to several prompts. Rewards get all of them at once, and a judge among them sends
        its requests side by side: prompt by prompt, each would wait for the slowest of the one before."""
        grader = self.grader(settings)
        if not isinstance(grader, _Rewards):
            return [await self.score(solving, nodes, settings) for solving, nodes in asked]
        values = iter(grader.grade_each(asked))
        scores = []
        for _, nodes in asked:
            own = [ABSTAINED if value is None else value for value in islice(values, len(nodes))]
            for node, score in zip(nodes, own, strict=True):
                node.scores[label_of(settings)] = score
            scores.append(own)
        return scores

    def check(self, strategy: StrategySettings) -> None:
        """Refuse, before anything is drawn, a scorer that cannot judge what the strategy gives it.

        Raises:
            ConfigError: no scorer of steps where steps are judged, or one that marks steps otherwise.
            ModelError: a reward model that cannot be loaded.
        """
        for part in strategy.parts:
            for settings in part.scorers:
                self._check_one(part, settings)

    def _check_one(self, strategy: StrategySettings, settings: ScorerSettings) -> None:
        grader = self.grader(settings)
        if not isinstance(strategy, StepStrategy) or strategy.judging == "answers":
            return
        if strategy.judging == "steps":
            require_steps(grader, settings)
        if isinstance(grader, _Model):
            grader.require_marks(strategy)


def require_steps(grader: Grader, settings: ScorerSettings) -> None:
    if not grader.judges_steps:
        raise ConfigError(
            f"the scorer `{label_of(settings)}` judges finished answers, and this strategy asks it about single steps",
            expected="a process reward model, the model itself (`scorer: self`), or its log-prob (`scorer: logprob`)",
            remedy="train a reward model with `head: steps` (docs/reward-models.md), or use best_of_n with this scorer",
        )


def label_of(settings: ScorerSettings) -> str:
    """What the score is called in a node and in tables."""
    if isinstance(settings, RewardModelScorer):
        return "reward"
    return str(getattr(settings, "kind"))  # noqa: B009 - every scorer has one; the family's base has none


# ---------------------------------------------------------------- reward models


class _Model:
    """A reward model: of whole answers, or of their steps."""

    def __init__(self, settings: RewardModelScorer, model: RewardModel):
        self.settings, self.model = settings, model
        self.of_steps = model.rule.pooling == "steps"
        self.judges_steps = self.of_steps
        if not self.of_steps and is_changed(settings, "aggregate"):
            raise ConfigError(
                "`aggregate` makes one score of those of an answer's steps, and this reward model scores whole answers",
                where=model.name,
                found=f"aggregate: {settings.aggregate}",
                remedy="leave `aggregate` out, or take a process reward model (`head: steps`, docs/reward-models.md)",
            )
        model.rule.index(settings.head) if settings.head is not None else None

    def require_marks(self, strategy: StepStrategy) -> None:
        """A process reward model scores where its own mark stands; other steps have no score of their own."""
        if not self.of_steps:
            return
        mark = self.model.rule.step_mark
        if not mark:
            raise ConfigError(
                "the process reward model has no mark between steps, so that it cannot tell them apart",
                where=self.model.name,
                remedy='train it with a mark, say `head: {kind: steps, mark: "\\n\\n"}` (docs/reward-models.md)',
            )
        if strategy.step != mark:
            raise ConfigError(
                "the strategy and its process reward model part answers into different steps",
                where=self.model.name,
                # As JSON, which YAML reads alike: in single quotes a backslash and an n would be no newline there.
                found=f"step: {json.dumps(strategy.step)}",
                expected=f"step: {json.dumps(mark)}, as the model was trained",
                remedy=f"write `step: {json.dumps(mark)}`",
            )

    async def grade(self, solving: Solved, nodes: Sequence[Node]) -> list[float | None]:
        groups = [_Alike.of(group) for group in _by_conversation(nodes)]
        rows = [group.row(solving.task) for group in groups]
        ratings = list(self.model.score_rows(rows, head=self.settings.head))
        solving.count_scored(sum(sum(rating.tokens) for rating in ratings))
        if not self.of_steps:
            return [
                rating.rewards[place] for group, rating in zip(groups, ratings, strict=True) for place in group.places
            ]
        steps = [
            rating.steps[place]
            for group, rating in zip(groups, ratings, strict=True)
            for place in group.places
            if rating.steps is not None
        ]
        for node, own in zip(nodes, steps, strict=True):
            node.step_scores = own
        return [aggregate(own, self.settings.aggregate) for own in steps]

    def close(self) -> None:
        """Nothing was started."""


def _by_conversation(nodes: Sequence[Node]) -> list[list[Node]]:
    groups: list[list[Node]] = []
    for node in nodes:
        if groups and groups[-1][0].messages == node.messages:
            groups[-1].append(node)
        else:
            groups.append([node])
    return groups


@dataclass(frozen=True, slots=True)
class _Alike:
    """Answers to one conversation, each different one once: _Alike((4, 5), places=(0, 1, 0)) of 4, 5 and 4."""

    answers: tuple[tuple[Message, ...], ...]
    places: tuple[int, ...]
    """Of each node, its answer among `answers`."""

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> _Alike:
        # One that was cut is scored at its last token: a stop token that nobody sampled would make it a finished one.
        # An answer without text has no other token.
        keys = [(node.answer, node.ended or not node.answer.strip()) for node in nodes]
        # Read once and scored alike; and a comparison whose responses are all the same is no row that can be encoded.
        known = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        answers = tuple((Message("assistant", text, complete=complete),) for text, complete in known)
        return cls(answers, tuple(known[key] for key in keys))

    def row(self, task: Task) -> Feedback | Comparison:
        """All of them as one row, so that the model reads the prompt once."""
        if len(self.answers) == 1:
            return Feedback(task.prompt, self.answers[0], True, task.row, task.tools)
        return Comparison(task.prompt, self.answers, 0, task.row, tools=task.tools)


def aggregate(steps: Sequence[float], how: StepAggregate) -> float:
    """One number of a process reward model's scores of steps (logits): aggregate([2.0, -1.0], "min") == -1.0.

    `product` adds log sigmoids: the log of the product of the steps' probabilities, which orders as it does.
    """
    if how == "last":
        return steps[-1]
    if how == "min":
        return min(steps)
    if how == "mean":
        return fmean(steps)
    return float(F.logsigmoid(torch.tensor(steps, dtype=torch.float64)).sum())


# ---------------------------------------------------------------- the model itself


class _LogProb:
    """The model's own raw log-prob of its answer; ids that were put into it are not counted."""

    judges_steps = True

    def __init__(self, settings: LogProbScorer):
        self.per_token = settings.per_token

    async def grade(self, solving: Solved, nodes: Sequence[Node]) -> list[float | None]:
        return [self._logprob(solving, node) for node in nodes]

    def _logprob(self, solving: Solved, node: Node) -> float | None:
        logprobs: list[float] = []
        at: Node | None = node
        while at is not None:
            logprobs += [alternatives.logprob for alternatives in at.alternatives]
            # Only what continues an answer has its ancestors' tokens before its own.
            at = solving.nodes[at.parents[0]] if at.before_ids and at.parents else None
        if not logprobs:
            return None
        return fmean(logprobs) if self.per_token else sum(logprobs)

    def close(self) -> None:
        """Nothing was started."""


_QUESTION = """How good is this answer{so_far}? Question:

{question}

Answer{so_far}:

{answer}

Reply with a mark from 1 (wrong or useless) to 10 (right and complete), and nothing else."""


class _Self:
    """The model marks its own answer, 1 to 10; a reply without a mark is no mark."""

    judges_steps = True

    def __init__(self, settings: SelfScorer):
        self.marks = settings.marks

    async def grade(self, solving: Solved, nodes: Sequence[Node]) -> list[float | None]:
        marks: list[float | None] = []
        for node in nodes:
            mark = await self._mark(solving, node)
            marks.append(mark)
            if mark is not None:
                # Kept at once: the spending may end before the last of them is marked.
                node.scores["self"] = mark
        return marks

    async def _mark(self, solving: Solved, node: Node) -> float | None:
        prompt = solving.task.prompt
        so_far = "" if node.ended else " so far"
        text = _QUESTION.format(question=question_text(prompt), answer=node.answer, so_far=so_far)
        replies = await solving.ask(asking(prompt, text), self.marks, kind="value", about=[node], max_new_tokens=16)
        marks = [mark for reply in replies if (mark := mark_value(reply.text)) is not None]
        return fmean(marks) if marks else None

    def close(self) -> None:
        """Nothing was started."""


# ---------------------------------------------------------------- rewards


class _Rewards:
    """Rewards of training; they look at whole answers, and some at the row's own."""

    judges_steps = False

    def __init__(self, rubric: Rubric):
        self.rubric = rubric

    async def grade(self, solving: Solved, nodes: Sequence[Node]) -> list[float | None]:
        return self.grade_each([(solving, nodes)])

    def grade_each(self, asked: Sequence[tuple[Solved, Sequence[Node]]]) -> list[float | None]:
        """The answers to all prompts, one after the other; those to one prompt are one group."""
        items = [
            Sampled(solving.task.prompt, node.answer, solving.task, node.finish, len(node.path_ids), group=number)
            for number, (solving, nodes) in enumerate(asked)
            for node in nodes
        ]
        return [scored.total for scored in self.rubric.score(items)] if items else []

    def close(self) -> None:
        self.rubric.close()


def _model(settings: RewardModelScorer, scorers: Scorers) -> Grader:
    if settings.model is None:  # a recipe puts the stage's folder in its place before
        raise ConfigError(
            "a stage is known in its recipe alone",
            where="scorer",
            found=f"stage: {settings.stage}",
            expected="the folder of a reward model",
            example="scorer: runs/quickstart/reward/model",
            remedy="give the folder that the stage has written",
        )
    return _Model(settings, scorers.reward_model(settings.model))


def _rewards(settings: RewardsScorer, scorers: Scorers) -> Grader:
    folder = Path(settings.modules) if settings.modules is not None else scorers.folder
    return _Rewards(rubric_of(settings.rewards, folder=folder))


MAKERS: Mapping[type[ScorerSettings], Callable[[Any, Scorers], Grader]] = {
    RewardModelScorer: _model,
    LogProbScorer: lambda settings, _: _LogProb(settings),
    SelfScorer: lambda settings, _: _Self(settings),
    RewardsScorer: _rewards,
}
"""From settings to what grades."""
