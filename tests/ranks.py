"""Several processes of torch.distributed for a test: four that are started once, and form a group for each call.

def doubled(by: int) -> int:                 # at module level: it is called in other processes
    return world().rank * by

assert ranks(2).run(doubled, 10) == [0, 10]          # a result of each rank
errors = ranks(2).outcomes(fails)                    # results, or the exceptions themselves
"""

from __future__ import annotations

import atexit
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

MOST = 4
PATIENCE = 240.0
"""Seconds for a call; machines that test are busy. One that is not done by then hangs, and its processes are killed."""


class NotMet(Exception):
    """The processes did not find each other: the machine's doing, now and then, and no test's."""


class RankFailed(AssertionError):
    """A rank raised; the text has its stack."""


@dataclass(frozen=True)
class Outcome:
    value: Any = None
    error: Exception | None = None
    stack: str = ""


class Pool:
    """Processes 0 to 3, each with a line to the test."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        # Once for all of them: importing torch and transformers takes longer than most tests.
        context.set_forkserver_preload(["tests.ranks", "posttrain.models.tree.logprobs", "posttrain.training.loop"])
        self._lines: list[Connection] = []
        self._processes = []
        for _ in range(MOST):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._lines.append(ours)
            self._processes.append(process)

    def call(self, size: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Outcome]:
        with tempfile.TemporaryDirectory() as folder:
            lines = self._lines[:size]
            for rank, line in enumerate(lines):
                line.send((str(Path(folder) / "store"), rank, size, function, arguments))
            outcomes = []
            for rank, line in enumerate(lines):
                if not line.poll(PATIENCE):
                    self.kill()
                    raise RankFailed(f"rank {rank} of {size} did not come to an end")
                try:
                    outcomes.append(line.recv())
                except EOFError:
                    self.kill()  # the next test gets new ones
                    raise RankFailed(f"rank {rank} of {size} is gone") from None
            return outcomes

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
        _pool.cache_clear()


@cache
def _pool() -> Pool:
    pool = Pool()
    atexit.register(pool.kill)
    return pool


@dataclass(frozen=True)
class Ranks:
    size: int

    def outcomes(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each rank returned, or the exception that it raised."""
        return [outcome.error or outcome.value for outcome in self._met(function, arguments)]

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each rank returned."""
        found = self._met(function, arguments)
        if failed := [f"rank {rank}:\n{one.stack}" for rank, one in enumerate(found) if one.error is not None]:
            raise RankFailed("\n".join(failed))
        return [outcome.value for outcome in found]

    def _met(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Outcome]:
        found = _pool().call(self.size, function, arguments)
        if any(isinstance(one.error, NotMet) for one in found):
            _pool().kill()
            found = _pool().call(self.size, function, arguments)
        return found


def ranks(size: int) -> Ranks:
    assert 1 <= size <= MOST
    return Ranks(size)


def _serve(line: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            store, rank, size, function, arguments = line.recv()
        except EOFError:
            return
        line.send(_outcome(store, rank, size, function, arguments))


def _outcome(store: str, rank: int, size: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    shared = dist.FileStore(store, size)
    # A collective that one rank never comes to is a bug, and ends here and not with the test's patience.
    seconds = timedelta(seconds=PATIENCE / 4)
    try:
        dist.init_process_group("gloo", store=shared, rank=rank, world_size=size, timeout=seconds)
    except RuntimeError as error:
        return Outcome(None, NotMet(str(error)), traceback.format_exc())
    try:
        return Outcome(function(*arguments))
    except Exception as error:  # the boundary: it is the test's to judge
        return Outcome(None, error, traceback.format_exc())
    finally:
        dist.destroy_process_group()
