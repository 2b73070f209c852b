"""Online stages on a tiny model: tasks, a reward, and a loop that is ready to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.config.online import Online
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.logs import MetricsLine
from posttrain.training.loop import Loop
from posttrain.training.rl.source import OnlineSource
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.prepare import prepare
from posttrain.types import Message, RowRef, Task
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, tiny_model

TIMED = ("tokens_per_second", "seconds")


def tasks_of(count: int = 12) -> list[Task]:
    return [
        Task((Message("user", f"{i}?"),), answer=str(i), row=RowRef("tasks.jsonl", i + 1), metadata={"level": i % 3})
        for i in range(count)
    ]


def early_letters(prompt: Any, completion: str, task: Task) -> float:
    """The share of bytes in the lower half of the alphabet: a random model has some, and can learn more."""
    return sum(letter < "P" for letter in completion) / max(1, len(completion))


def save_start(folder: Path, **options: Any) -> Path:
    """A tiny chat model on disk, of one layer: what a loop does with a policy does not depend on its depth."""
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer), **{"num_hidden_layers": 1, **options}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SMALL: dict[str, Any] = {
    "steps": 2,
    "prompts_per_step": 3,
    "completions_per_prompt": 4,
    "sampling": {"max_new_tokens": 6},
    "learning_rate": 1e-2,
    "held_out": 0.25,
    "examine": {"every_steps": 2},
    "checkpoint": {"every_steps": 2, "keep": 3},
    "compute": {"tokens_per_microbatch": 64},
    "schedule": {"kind": "constant", "warmup_ratio": 0.0},
}


WHOLE: dict[str, Any] = {"compute": {"tokens_per_microbatch": 512}}
"""Each update in one micro-batch, for tests that ask nothing of how it is split."""


def loop_of(
    start: Path,
    folder: Path,
    method: str = "grpo",
    *,
    rewards: Sequence[Callable[..., Any]] = (early_letters,),
    tasks: Sequence[Task] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Loop:
    stage = Online(method, **{**SMALL, **options})
    stage_folder, said = StageFolder(folder), progress or Progress()
    examples = list(tasks or tasks_of())
    prepared = prepare(StageContext(stage, start, stage_folder, seed, said, examples=examples, rewards=rewards))
    return Loop(prepared.work, stage_folder, said)


def source_of(loop: Loop) -> OnlineSource:
    assert isinstance(loop.source, OnlineSource)
    return loop.source


def run(loop: Loop) -> Loop:
    try:
        loop.run()
    finally:
        loop.folder.close()
    return loop


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def untimed(lines: Sequence[MetricsLine]) -> list[MetricsLine]:
    """Metrics without what depends on the clock."""
    return [
        replace(line, seconds=None, values={n: value for n, value in line.values.items() if not n.startswith(TIMED)})
        for line in lines
    ]
