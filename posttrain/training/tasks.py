"""Tasks for online training: read, split, turned into prompts; and which of them a step asks.

prompts, held_out = ...load_tasks(stage, encoder, ...)
order = TaskOrder(len(prompts), prompts_per_step=8, steps=100, seed=0)
order.at(3)                  # eight indices: a function of the seed and the step
order.more(3, 1, 4, used)    # four others for the same step, where some turned out to teach nothing
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config.settings import Data
from posttrain.data.encode import Encoder
from posttrain.data.read import Examples
from posttrain.data.recast import read_as
from posttrain.data.sources import combined_fingerprint, open_sources
from posttrain.errors import EmptyDatasetError, EncodingError
from posttrain.rewards.gym import SOURCE as GYM
from posttrain.rewards.gym import tasks_of
from posttrain.training.order import RowOrder, stream, stream_seed
from posttrain.training.rollouts import Prompt
from posttrain.training.split import split_by_content
from posttrain.types import Task

Tasks = Examples | Iterable[Task]
"""Rows from files, or tasks that a program has made."""


@dataclass(frozen=True, slots=True)
class TaskSet:
    """A stage's prompts, and what stage.json says of them."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    counts: dict[str, Any]
    fingerprints: tuple[str, ...]


def is_generated(path: str) -> bool:
    """Whether a `data` path is no file but an address that makes tasks: reasoning_gym:chain_sum?size=100."""
    return path.startswith(GYM)


def read_tasks(data: Data) -> list[Task]:
    """The tasks of a recipe's `data`.

    Raises:
        DataError: a row that is no task; no row at all.
    """
    made = [task for path in data.path if is_generated(path) for task in tasks_of(path)]
    files = [path for path in data.path if not is_generated(path)]
    if files:
        examples = read_as(
            files,
            Task,
            format=data.format,
            columns=data.columns,
            roles=data.roles,
            bad_rows=data.bad_rows,
            split=data.split,
        )
        made += _only_tasks(examples)
    return made[: data.limit]


def tasks_fingerprint(data: Data) -> str:
    """Content of a recipe's `data`; an address that makes tasks is its own content."""
    files = [path for path in data.path if not is_generated(path)]
    content = combined_fingerprint(open_sources(files, data.split)) if files else ""
    return _hash([content, *(path for path in data.path if is_generated(path))])


def make_prompts(tasks: Iterable[Task], encoder: Encoder, longest: int | None) -> tuple[list[Prompt], dict[str, int]]:
    """Tasks as prompts, and how many were left out, by reason.

    Args:
        longest: tokens of the longest prompt that leaves room for an answer; None: no limit.

    Raises:
        EncodingError, TemplateError: a task that cannot be encoded; it names the row.
    """
    prompts: list[Prompt] = []
    dropped: dict[str, int] = {}
    for task in tasks:
        try:
            ids = tuple(encoder.prompt(task.prompt, task.tools))
        except EncodingError as error:
            error.where = error.where or task.row
            raise
        if longest is not None and len(ids) > longest:
            dropped["too_long"] = dropped.get("too_long", 0) + 1
            continue
        prompts.append(Prompt(task, ids, len(prompts)))
    return prompts, dropped


def load_tasks(
    data: Data | None,
    held_out: float | Data,
    given: Tasks | None,
    encoder: Encoder,
    *,
    longest: int | None,
    seed: int,
) -> TaskSet:
    """All of a stage's tasks.

    Args:
        given: tasks that are there already, in place of `data`.

    Raises:
        EmptyDatasetError: no task is left to train on.
    """
    if given is not None:
        tasks = _only_tasks(given)
    else:
        assert data is not None  # the recipe's validation refuses a stage without data
        tasks = read_tasks(data)
    every, dropped = make_prompts(tasks, encoder, longest)
    if isinstance(held_out, Data):
        train, (apart, _) = every, make_prompts(read_tasks(held_out), encoder, longest)
    else:
        kept, out = split_by_content([_content(prompt) for prompt in every], held_out, stream_seed(seed, "split"))
        train, apart = [every[index] for index in kept], [every[index] for index in out]
    if not train:
        raise EmptyDatasetError(
            "no task is left to train on",
            found=f"{len(tasks):,} read, " + (", ".join(f"{n:,} {why}" for why, n in dropped.items()) or "none kept"),
            remedy="raise max_length, lower sampling.max_new_tokens, or give more tasks",
        )
    train = [Prompt(prompt.task, prompt.ids, index) for index, prompt in enumerate(train)]
    counts = {
        "read": len(tasks),
        "kept": len(every),
        "rows": len(train),
        "held_out_rows": len(apart),
        "dropped": dropped,
        "truncated": {},
        "tokens": sum(len(prompt.ids) for prompt in every),
        "trained_tokens": 0,
    }
    contents = _hash([_content(prompt) for prompt in train]), _hash([_content(prompt) for prompt in apart])
    return TaskSet(tuple(train), tuple(apart), counts, contents)


def _only_tasks(rows: Iterable[Any]) -> list[Task]:
    return [row for row in rows if isinstance(row, Task)]


def _content(prompt: Prompt) -> str:
    task = prompt.task
    return _hash([repr(prompt.ids), str(task.answer), json.dumps(task.metadata, sort_keys=True, default=repr)])


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# ---------------------------------------------------------------- which task when


@dataclass(frozen=True, slots=True)
class TaskOrder:
    """TaskOrder(tasks=1000, prompts_per_step=8, steps=100, seed=0): each epoch is a permutation of all tasks.

    A step always has its full number: the last of an epoch takes the first of the next.
    """

    tasks: int
    prompts_per_step: int
    steps: int
    seed: int

    @classmethod
    def plan(
        cls, tasks: int, prompts_per_step: int, *, epochs: float | None, steps: int | None, seed: int
    ) -> TaskOrder:
        """Settle the number of steps. Raises ConfigError where there would be none."""
        rows = RowOrder.plan(tasks, prompts_per_step, epochs=epochs, steps=steps, seed=seed)
        return cls(tasks, prompts_per_step, rows.steps, seed)

    def epoch_after(self, step: int) -> float:
        return step * self.prompts_per_step / self.tasks

    def at(self, step: int) -> list[int]:
        """Task indices of step `step`, counted from 0; more prompts than tasks ask some of them twice."""
        first = step * self.prompts_per_step
        return [self._place(place) for place in range(first, first + self.prompts_per_step)]

    def more(self, step: int, round_number: int, count: int, used: Sequence[int]) -> list[int]:
        """Others for the same step, none of them in `used` while there are others."""
        left = sorted(set(range(self.tasks)) - set(used)) or list(range(self.tasks))
        drawn = stream(self.seed, "order", step, 1 + round_number).permutation(len(left))[:count]
        return [left[index] for index in drawn]

    def _place(self, place: int) -> int:
        epoch, within = divmod(place, self.tasks)
        # RowOrder with one row a step walks through the same permutation.
        return RowOrder(self.tasks, 1, 0, self.seed).at(epoch * self.tasks + within)[0]
