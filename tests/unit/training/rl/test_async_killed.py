"""An asynchronous run that ends in the middle, anywhere, goes on: nothing trains twice, nothing is lost uncounted."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from posttrain.runs.progress import Progress
from posttrain.training import checkpoint
from tests.async_runs import OPTIONS, PROMPTS, async_loop, async_source, check_run, run_and_say, trained_groups
from tests.forked import PRELOADED
from tests.online import lines, run, save_start
from tests.timed_engine import TimedEngine

STEPS = OPTIONS["steps"]


class Killed(BaseException):
    """Passes by all that saves: what is left is what a killed process leaves."""


class Said(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


def killed_in(call: Callable[..., Any], at: int) -> Callable[..., Any]:
    """The same function, which kills the run when it is called for the `at`-th time."""
    left = [at]

    def called(*given: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return call(*given, **options)

    return called


def quick() -> TimedEngine:
    return TimedEngine(60, lambda request: 0.002 * (request.sampling.seed % 5))


PLACES = ["collecting", "learning", "writing", "saving", "after the update"]


@pytest.mark.parametrize("at", [2, 5, 7])
@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_is_killed_goes_on(start: Path, tmp_path: Path, place: str, at: int) -> None:
    loop = async_loop(start, tmp_path, engine=quick())
    source = async_source(loop)
    match place:
        case "collecting":
            source._take = killed_in(source._take, at)  # type: ignore[method-assign]
        case "learning":
            learner = source.setup.learner
            learner.trees = killed_in(learner.trees, at)  # type: ignore[method-assign]
        case "writing":
            loop.folder.append = killed_in(loop.folder.append, 13 * at)  # type: ignore[method-assign]
        case "saving":
            loop.saver.save = killed_in(loop.saver.save, 1 + at // 3)  # type: ignore[method-assign]
        case "after the update":
            loop._after_step = killed_in(loop._after_step, at)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(loop)
    saved = checkpoint.latest(tmp_path / "checkpoints")
    said = Said()
    resumed = run(async_loop(start, tmp_path, engine=quick(), progress=said))
    check_run(resumed, tmp_path)
    assert resumed.step == STEPS
    # Nothing was too old here, so that the same groups have trained as without the kill.
    dropped = sum(line.values["groups_dropped_stale"] for line in resumed.folder.metrics("train"))
    if not dropped:
        assert len({key for _, key in trained_groups(tmp_path)}) == STEPS * PROMPTS
    if saved is not None:
        assert any("groups that were sampled and have not trained are kept" in line for line in said.lines)


def test_groups_that_were_whole_at_the_checkpoint_are_not_asked_again(start: Path, tmp_path: Path) -> None:
    first = async_loop(start, tmp_path, engine=TimedEngine(60, lambda request: 0.0))
    take = async_source(first)._take
    calls = [0]

    def slowly(*given: Any) -> Any:  # all that may wait is whole by the time of each step
        calls[0] += 1
        time.sleep(0.1)
        if calls[0] == 5:
            raise Killed
        return take(*given)

    async_source(first)._take = slowly  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(first)
    saved = checkpoint.latest(tmp_path / "checkpoints")
    assert saved is not None and saved.step == 3
    open_asks = saved.state["source"]["queue"]["open"]
    assert len(open_asks) == 2 * PROMPTS
    again = TimedEngine(60, lambda request: 0.0)
    said = Said()
    loop = run(async_loop(start, tmp_path, engine=again, progress=said))
    check_run(loop, tmp_path)
    # Three groups were asked in step 4 of version 3, ended, and train although the checkpoint does not know them; those
    # of step 5 were sampled by weights that are gone.
    kept = next(line for line in said.lines if "are kept" in line)
    assert "9 groups that were sampled and have not trained are kept" in kept
    assert "3 are discarded" in kept and "asked again" not in kept
    assert len(again.asked) == (STEPS * PROMPTS - 3 * PROMPTS - 9) * 4
    assert max(line["staleness"] for line in lines(tmp_path, "rollouts.jsonl")) <= 2


def test_what_was_in_flight_at_the_checkpoint_is_asked_again_and_counted(start: Path, tmp_path: Path) -> None:
    slow: set[tuple[int, ...]] = set()

    def seconds(request: Any) -> float:
        if not slow and request.sampling.seed:
            slow.add((*request.prompt, request.sampling.seed))
        return 1000.0 if (*request.prompt, request.sampling.seed) in slow else 0.0

    first = async_loop(start, tmp_path, engine=TimedEngine(60, seconds), staleness=4)
    first._after_step = killed_in(first._after_step, 4)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(first)
    again = TimedEngine(60, lambda request: 0.0)
    loop = run(async_loop(start, tmp_path, engine=again, staleness=4))
    check_run(loop, tmp_path)
    counted = [line.values["groups_asked_again"] for line in loop.folder.metrics("train")]
    assert counted[3] >= 1 and sum(counted) == counted[3]
    (prompt,) = slow
    asked = [request for request in again.asked if (*request.prompt, request.sampling.seed) == prompt]
    assert sorted(request.completion for request in asked) == [0, 1, 2, 3]  # the same request, seed and number


def test_files_of_an_attempt_without_a_checkpoint_are_not_trained_on(start: Path, tmp_path: Path) -> None:
    first = async_loop(start, tmp_path, engine=quick())
    async_source(first)._take = killed_in(async_source(first)._take, 3)  # type: ignore[method-assign]
    with pytest.raises(Killed):
        run(first)
    assert list((tmp_path / "queue").glob("*.json")) and not (tmp_path / "checkpoints").exists()
    said = Said()
    check_run(run(async_loop(start, tmp_path, engine=quick(), progress=said)), tmp_path)
    assert any("of an attempt without a checkpoint are asked again" in line for line in said.lines)


@pytest.mark.long
def test_a_process_that_is_killed_at_random_moments_comes_to_its_end(start: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    said, folder, draw = tmp_path / "said", tmp_path / "run", random.Random(7)
    own, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    kills = 0
    try:
        for attempt in range(12):
            process = context.Process(target=run_and_say, args=(str(start), str(folder), str(said), 20))
            process.start()
            # From the first step on: before it there is nothing that a kill could lose.
            deadline, seen = time.monotonic() + 120, len(_written(folder))
            while process.is_alive() and time.monotonic() < deadline and len(_written(folder)) <= seen + attempt % 3:
                time.sleep(0.01)
            if attempt < 6 and process.is_alive():
                time.sleep(draw.random() * 0.05)
                assert process.pid is not None
                # On a quick machine it may come to its end in that time.
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
            process.join(120)
            assert process.exitcode in (0, -signal.SIGKILL)
            if said.exists():
                break
    finally:
        sys.modules["__main__"] = own
    assert said.read_text() == "20" and kills >= 3


def _written(folder: Path) -> list[str]:
    path = folder / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []
