"""What stages share that let the policy answer prompts: the prompts as tasks, and the policy with its engine.

prompts = prompts_of(ctx)                    # read now: a bad row is found before a model loads
with policy_asked(ctx, prefix_tokens=0) as asked:
    solutions = solve_all(asked, prompts.tasks, strategy)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.config.base import MakingStage
from posttrain.data.encode import Encoder
from posttrain.data.questions import as_task
from posttrain.data.read import read
from posttrain.errors import EmptyDatasetError
from posttrain.inference.asked import Asked
from posttrain.inference.scorers import Scorers
from posttrain.models.devices import device_of
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.rewards.gym import tasks_of
from posttrain.rollout.native import NativeEngine
from posttrain.runs.records.stage import DataCounts
from posttrain.training.order import stream_seed
from posttrain.training.rl.tasks import is_generated, notes_of
from posttrain.training.stages.kind import StageContext
from posttrain.types import Task


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is asked: Prompts(tasks, read=400, notes=("...",))."""

    tasks: list[Task]
    read: int
    notes: tuple[str, ...] = ()


def prompts_of(ctx: StageContext[Any]) -> Prompts:
    """The stage's rows as tasks, those of a file and those that are generated.

    Raises:
        DataError: a row cannot be read.
    """
    data = ctx.stage.data
    assert data is not None  # the recipe's validation refuses a stage without data
    generated = [task for path in data.path if is_generated(path) for task in tasks_of(path)]
    tasks = generated[data.skip :][: data.limit]
    files = [path for path in data.path if not is_generated(path)]
    if not files and not tasks:
        raise EmptyDatasetError(
            "no task is left: `skip` leaves out all that are made",
            where=", ".join(data.path),
            found=f"skip: {data.skip:,}, of {len(generated):,} tasks",
            remedy="write a smaller `skip`, or a larger `size`",
        )
    if not files or len(tasks) == data.limit:
        return Prompts(tasks, len(tasks))
    keywords = data.keywords(ctx.folder.path / "rejected_rows.jsonl")
    keywords["skip"] = max(0, data.skip - len(generated))
    if data.limit is not None:
        keywords["limit"] = data.limit - len(tasks)
    rows = read(files, **keywords)
    read_tasks = [as_task(example) for example in rows]
    return Prompts([*tasks, *read_tasks], len(tasks) + rows.counts.read, tuple(notes_of(rows)))


@contextmanager
def policy_asked(ctx: StageContext[Any], *, prefix_tokens: int = 0) -> Iterator[Asked]:
    """The stage's start, loaded, with an engine; its scorers are closed afterwards.

    Args:
        prefix_tokens: of prompts that come again, as in a search; see `NativeEngine`.
    """
    stage: MakingStage = ctx.stage
    assert not isinstance(ctx.start, LoadedModel)  # a recipe's stage starts from a folder
    device = device_of(ctx.answers.device if ctx.answers else "auto")
    loaded = load(ctx.start, device=device, say=ctx.progress.say)
    encoder = Encoder(loaded.tokenizer, ctx.answers.encoding if ctx.answers else loaded.speech.settings())
    engine = NativeEngine(loaded.model, decode=encoder.tokens.decode, prefix_tokens=prefix_tokens)
    modules = None if stage.modules is None else Path(stage.modules)
    with Scorers(modules, device=device.type) as scorers:
        yield Asked(engine, encoder, scorers, stream_seed(ctx.seed, "sampling"), modules)


def made_counts(**counts: Any) -> DataCounts:
    """What stage.json says under "data" of a stage that makes rows; what only rows that train have is left null."""
    nothing: Mapping[str, Any] = {
        "dropped": {},
        "truncated": {},
        "findings": {},
        "trained_tokens": None,
        "stop_share": None,
        "rows": None,
        "held_out_rows": None,
    }
    return DataCounts(**{**nothing, **counts})


def with_some_answer(task: Task) -> Task:
    """For stand-ins: a task need not have an answer, and the text that stands for it has the length of no answer."""
    return task if task.answer else replace(task, answer="...")
