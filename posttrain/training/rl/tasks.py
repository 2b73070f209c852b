"""Tasks for online training: read, split, turned into prompts; and which of them a step asks.

tasks = load_tasks(data, 0.05, None, encoder, folder=...)     # tasks.train, tasks.held_out: sequences of Prompt
order = TaskOrder(len(tasks.train), prompts_per_step=8, steps=100, seed=0)
order.at(3)                  # eight indices: a function of the seed and the step
order.more(3, 1, 4, used)    # four others for the same step, where some turned out to teach nothing
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.config.settings import Data, ReadSettings
from posttrain.data.encode import CountedPrompts, Encoder
from posttrain.data.read import Examples
from posttrain.data.recast import read_as, require_kind
from posttrain.data.sources.files import combined_fingerprint, open_sources
from posttrain.data.split import split_by_digest
from posttrain.data.unread import unread_keys
from posttrain.errors import EmptyDatasetError, EncodingError
from posttrain.rewards.gym import SOURCE as GYM
from posttrain.rewards.gym import tasks_of
from posttrain.runs.records.stage import DataCounts
from posttrain.training.order import RowOrder, stream, stream_seed
from posttrain.training.rl.prompts import PromptFile, PromptList, Prompts, PromptStore
from posttrain.types import Task

Tasks = Examples | Iterable[Task]
"""Rows from files, or tasks that a program has made."""


@dataclass(frozen=True, slots=True)
class TaskSet:
    """A stage's prompts, and what stage.json says of them."""

    train: Prompts
    held_out: Prompts
    counts: DataCounts
    fingerprints: tuple[str, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(self.train.longest, self.held_out.longest)


def is_generated(path: str) -> bool:
    """Whether a `data` path is no file but an address that makes tasks: reasoning_gym:chain_sum?size=100."""
    return path.startswith(GYM)


def read_tasks(data: Data, notes: list[str] | None = None) -> Iterator[Task]:
    """The tasks of a recipe's `data`, one after the other; files are read as they are asked for.

    Args:
        notes: what a user should know of the files and rows is added here, once they have been looked at.

    Raises:
        DataError: a row that is no task; no row at all.
    """
    tasks = _every_task(data, notes if notes is not None else [])
    return islice(tasks, data.skip, None if data.limit is None else data.skip + data.limit)


def _every_task(data: Data, notes: list[str]) -> Iterator[Task]:
    for path in data.path:
        if is_generated(path):
            yield from tasks_of(path)
    files = [path for path in data.path if not is_generated(path)]
    if files:
        # Which of them count is told over all paths, those that make tasks included.
        examples = read_as(files, Task, **{**data.keywords(), "limit": None, "skip": 0})
        notes += notes_of(examples)
        yield from _only_tasks(examples)


def notes_of(examples: Examples) -> list[str]:
    """What a user should know of the files that were read, and of keys inside their rows that nothing reads."""
    if examples.is_remote:  # a second download for a note is too much
        return list(examples.options.notes)
    return [*examples.counts.notes, *unread_keys(examples.counts.unread_keys)]


def tasks_fingerprint(data: ReadSettings, files: str | None = None) -> str:
    """Content of a recipe's `data`; an address that makes tasks is its own content.

    Args:
        files: content of its files, where that is known already; "" where it names none.
    """
    if files is None:
        named = [path for path in data.path if not is_generated(path)]
        files = combined_fingerprint(open_sources(named, data.split)) if named else ""
    return _hash([files, *(path for path in data.path if is_generated(path))])


def add_prompts(
    store: PromptStore,
    tasks: Iterable[Task],
    encoder: Encoder | CountedPrompts,
    longest: int | None,
    progress: Callable[[float], None] | None = None,
) -> dict[str, int]:
    """Encode tasks into a store; how many were read ("read"), and dropped by reason.

    Args:
        longest: tokens of the longest prompt that leaves room for an answer; None: no limit.
        progress: called with the number of tasks that were just read.

    Raises:
        EncodingError, TemplateError: a task that cannot be encoded; it names the row.
    """
    counts = {"read": 0}
    for task in tasks:
        counts["read"] += 1
        if progress is not None:
            progress(1)
        try:
            ids = encoder.prompt(task.prompt, task.tools)
        except EncodingError as error:
            error.where = error.where or task.row
            raise
        if longest is not None and len(ids) > longest:
            counts["too_long"] = counts.get("too_long", 0) + 1
            continue
        store.add(task, ids)
    return counts


def load_tasks(
    data: Data | None,
    held_out: float | Data | Tasks,
    given: Tasks | None,
    encoder: Encoder | CountedPrompts,
    *,
    folder: Path,
    longest: int | None,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> TaskSet:
    """All of a stage's tasks.

    Args:
        held_out: a share of the tasks, or the tasks that are asked now and then.
        given: tasks that are there already, in place of `data`.
        folder: where those of files are kept while the stage runs.
        progress: called with the number of tasks that were just read.
        seed: that a share to hold out is drawn from, a run's `split_seed`.

    Raises:
        EmptyDatasetError: no task is left to train on.
    """
    assert given is not None or data is not None  # the recipe's validation refuses a stage without data
    # A program's tasks are in memory already, and their metadata may hold what no file can.
    in_memory = given is not None and not isinstance(given, Examples)
    store: PromptStore = PromptList() if in_memory else PromptFile(folder)
    notes: list[str] = []
    if isinstance(given, Examples):
        require_kind(given, Task)
        notes += notes_of(given)
    rows = _only_tasks(given) if given is not None else read_tasks(data, notes) if data is not None else ()
    dropped = add_prompts(store, rows, encoder, longest, progress)
    read = dropped.pop("read")
    if not isinstance(held_out, int | float):
        if isinstance(held_out, Examples):
            require_kind(held_out, Task)
        apart_rows = read_tasks(held_out) if isinstance(held_out, Data) else _only_tasks(held_out)
        others: PromptStore = PromptFile(folder) if isinstance(held_out, Data | Examples) else PromptList()
        add_prompts(others, apart_rows, encoder, longest, progress)
        train, apart = Prompts(store, np.arange(len(store))), Prompts(others, np.arange(len(others)))
    else:
        # By question, not by row: the same question with another id on both sides would be examined on what it trains.
        kept, out = split_by_digest(store.questions, held_out, stream_seed(seed, "split"))
        train, apart = Prompts(store, kept), Prompts(store, out)
    if not len(train):
        raise EmptyDatasetError(
            "no task is left to train on",
            found=f"{read:,} read, " + (", ".join(f"{n:,} {why}" for why, n in dropped.items()) or "none kept"),
            remedy="raise max_length, lower sampling.max_new_tokens, or give more tasks",
        )
    counts = DataCounts(
        read=read,
        kept=len(store),
        dropped=dropped,
        truncated={},
        findings={},
        tokens=int(store.lengths.sum()),
        trained_tokens=0,
        stop_share=None,
        rows=len(train),
        held_out_rows=len(apart),
        notes=tuple(notes),
    )
    return TaskSet(train, apart, counts, (train.fingerprint, apart.fingerprint))


def _only_tasks(rows: Iterable[Any]) -> Iterator[Task]:
    return (row for row in rows if isinstance(row, Task))


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
        """The order for so many epochs or steps. Raises ConfigError where there would be none."""
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
        # More than once is allowed only where every task was asked: a step then repeats rather than shrinks.
        left = np.setdiff1d(np.arange(self.tasks), np.asarray(used, dtype=np.int64))
        left = left if len(left) else np.arange(self.tasks)
        drawn = stream(self.seed, "order", step, 1 + round_number).permutation(len(left))[:count]
        return left[drawn].tolist()

    def _place(self, place: int) -> int:
        epoch, within = divmod(place, self.tasks)
        # RowOrder with one row a step walks through the same permutation.
        return RowOrder(self.tasks, 1, 0, self.seed).at(epoch * self.tasks + within)[0]
