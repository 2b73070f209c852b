"""Asynchronous runs on a tiny model and an engine that takes as long as it is told, and what must hold of each."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

from posttrain.parallel.world import world
from posttrain.rollout.engine import Request
from posttrain.runs.folder import StageFolder
from posttrain.training import checkpoint
from posttrain.training.loop import Loop
from posttrain.training.rl.async_source import AsyncSource
from posttrain.training.rl.source import StepNotes
from tests.online import WHOLE, lines, loop_of, run
from tests.timed_engine import TimedEngine, with_engine

PROMPTS, COMPLETIONS = 3, 4
OPTIONS: dict[str, Any] = {**WHOLE, "held_out": 0, "steps": 8, "checkpoint": {"every_steps": 3, "keep": 2}}


def scripted(request: Request) -> float:
    """A few hundredths of a second, and now and then a prompt of half a second."""
    draw = random.Random(f"{request.sampling.seed} {request.prompt}")
    return 0.4 if draw.random() < 0.15 else 0.01 + 0.03 * draw.random()


def async_loop(
    start: Path, folder: Path, *, staleness: int = 2, engine: TimedEngine | None = None, **options: Any
) -> Loop:
    if checkpoint.latest(folder / "checkpoints") is None:
        StageFolder(folder).forget_logs()  # as a stage does that has nothing to go on from
    rollout = {"mode": "async", "max_staleness": staleness, **options.pop("rollout", {})}
    loop = loop_of(start, folder, **{**OPTIONS, **options}, rollout=rollout)
    return with_engine(loop, engine or TimedEngine(60, scripted))


def async_source(loop: Loop) -> AsyncSource:
    assert isinstance(loop.source, AsyncSource)
    return loop.source


def trained_groups(folder: Path) -> list[tuple[int, tuple[Any, ...]]]:
    """(step, what tells the group from every other) in the order of the file."""
    rows = lines(folder, "rollouts.jsonl")
    groups = [rows[first : first + COMPLETIONS] for first in range(0, len(rows), COMPLETIONS)]
    return [
        (group[0]["step"], (tuple(group[0]["prompt_ids"]), *(tuple(line["ids"]) for line in group))) for group in groups
    ]


def check_run(loop: Loop, folder: Path) -> None:
    """Nothing trained twice, nothing is lost uncounted, nothing was too old."""
    source, steps = async_source(loop), loop.source.steps
    groups = trained_groups(folder)
    assert Counter(step for step, _ in groups) == dict.fromkeys(range(1, steps + 1), PROMPTS)
    assert max(Counter(key for _, key in groups).values()) == 1
    # Each of the prompts that were asked on the way to these weights has trained, was dropped, or waits.
    asked = source.state_dict()["queue"]["asks"]["number"]
    assert asked == len(groups) + source.state_dict()["queue"]["dropped"] + len(source.queue)
    most = source.rollout.max_staleness
    for line in lines(folder, "rollouts.jsonl"):
        oldest, newest = line["versions"]
        assert line["version"] == line["step"] - 1 and oldest <= newest <= line["version"]
        assert line["staleness"] == line["version"] - oldest <= most
    dropped = sum(line.values["groups_dropped_stale"] for line in loop.folder.metrics("train"))
    assert dropped == source.state_dict()["queue"]["dropped"]


def run_and_say(start: str, folder: str, said: str, steps: int) -> None:
    """In a process that is killed: the whole run, or what is left of it; a file says that it came to its end."""
    os.environ["OMP_NUM_THREADS"] = "1"
    loop = run(async_loop(Path(start), Path(folder), steps=steps))
    check_run(loop, Path(folder))
    Path(said).write_text(str(loop.step))


def groups_of_ranks(start: str, folder: str) -> tuple[list[list[tuple[int, ...]]], int]:
    """Of one rank: the completions that two steps train on, and how many it asked of its own engine."""
    place = Path(folder) / str(world().rank)
    engine = TimedEngine(60, scripted)
    source = async_source(async_loop(Path(start), place, engine=engine, steps=4))
    found = []
    for step in range(2):
        rollout, kept = source._rollout(step, StepNotes(0.0, source.setup.progress))
        assert [id(group) for group in kept] == [id(group) for group in rollout.groups]
        found.append([response.completion.ids for response in rollout.responses])
    source.close()
    return found, len(engine.asked)
