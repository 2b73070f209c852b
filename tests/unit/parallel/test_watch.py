"""The watch of several ranks in one process, over a store in memory; what ends the process is a list here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch.distributed as dist

from posttrain.errors import ConfigError, EngineError
from posttrain.parallel import watch as watching
from posttrain.parallel.failure import FOLLOWED, Failure
from posttrain.parallel.job import Job
from posttrain.parallel.rank_log import RankLog
from posttrain.parallel.stopping import Stopped
from posttrain.parallel.watch import FAILURE, STOP, Watch, await_all, failure_of
from posttrain.runs.progress import Progress


class Log(RankLog):
    """Notes what it would write."""

    def __init__(self, rank: int):
        super().__init__(rank, 0)
        self.said: list[str] = []
        self.dumped: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def dump_stacks(self, title: str) -> None:
        self.dumped.append(title)


class Rank:
    def __init__(self, store: dist.Store, rank: int, size: int, patience: float = 60.0):
        job = Job(rank, size, rank, size, "localhost", 1, 0, 0, "toy", "posttrain")
        self.log, self.ended = Log(rank), list[int]()
        self.watch = Watch(job, store, self.log, patience=patience, end=self.ended.append)

    def until_ended(self) -> list[int]:
        wait_for(lambda: bool(self.ended))
        return self.ended


def wait_for(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second is long in a test, and the children of this process are the test runner's."""
    monkeypatch.setattr(watching, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive=False: [])


def ranks(store: dist.Store, size: int, **more: float) -> list[Rank]:
    found = [Rank(store, rank, size, **more) for rank in range(size)]
    for rank in found:
        rank.watch.start()
    return found


def test_ranks_that_leave_well_end_nothing(store: dist.Store) -> None:
    main, other = ranks(store, 2)
    other.watch.leave(None)
    main.watch.leave(None)
    assert (main.ended, other.ended, main.log.said, failure_of(store)) == ([], [], [], None)


def test_an_exception_of_one_ends_the_others_and_is_said_once(store: dist.Store) -> None:
    main, bad, third = ranks(store, 3)
    progress = Progress()
    bad.watch.follow(progress)
    error = ValueError("no number in the answer")
    with pytest.raises(ValueError), progress.phase("grpo: training", 30, "steps", done=12), progress.doing("score"):
        raise error
    bad.watch.leave(error)
    assert main.until_ended() == third.until_ended() == [FOLLOWED]
    assert bad.ended == []  # by its own exception
    found = failure_of(store)
    assert found is not None and (found.rank, found.size, found.code, found.is_transient) == (1, 3, 1, True)
    assert found.phase == "`score`, at 12 of 30 steps of grpo: training"
    assert found.problem == "ValueError: no number in the answer"
    assert "test_watch.py" in found.stack
    said = [text for rank in (main, bad, third) for text in rank.log.said]
    assert len(said) == 1 and said[0].startswith("rank 1 of 3 on ") and main.log.said == said
    assert error.__notes__ == [f"rank 1 of 3 on {found.host} (`score`, at 12 of 30 steps of grpo: training)"]
    assert found.sentence in main.log.dumped[0]


def test_the_first_failure_is_the_one_that_counts(store: dist.Store) -> None:
    main, bad = ranks(store, 2)
    bad.watch.leave(ConfigError("first", remedy="-"))
    main.until_ended()
    main.watch.leave(ValueError("second, and its consequence"))
    found = failure_of(store)
    assert found is not None and found.problem.startswith("first")


@pytest.mark.parametrize(
    ("error", "code", "transient"),
    [
        (ConfigError("wrong", remedy="-"), 2, False),
        (EngineError("server down", remedy="-"), 2, True),
        (KeyError("x"), 1, True),
    ],
)
def test_what_may_be_started_again(store: dist.Store, error: Exception, code: int, transient: bool) -> None:
    main, bad = ranks(store, 2)
    bad.watch.leave(error)
    main.until_ended()
    found = failure_of(store)
    assert found is not None and (found.code, found.is_transient) == (code, transient)


def test_an_error_that_all_raise_ends_nobody_early(store: dist.Store) -> None:
    main, other = ranks(store, 2)
    error = ConfigError("wrong", remedy="-")
    error.ranks = (1,)
    main.watch.leave(error)
    other.watch.leave(error)
    assert failure_of(store) is None and main.ended == other.ended == []


def test_a_process_that_is_gone_is_reported_by_its_neighbour(store: dist.Store) -> None:
    main = Rank(store, 0, 2)
    beat = main.watch._pulse.take()
    main.watch.start()
    # An ended process: a number that is another's by now, or nobody's.
    from dataclasses import replace

    store.set("beat/1", replace(beat, pid=os.getpid(), born=beat.born - 1000, phase="`update`").to_json())
    assert main.until_ended() == [FOLLOWED]
    found = failure_of(store)
    assert found is not None and (found.rank, found.phase, found.code) == (1, "`update`", 137)
    assert "its process is gone" in found.problem and "dmesg" in found.remedy


def test_a_rank_that_sends_no_beat_is_lost(store: dist.Store) -> None:
    from dataclasses import replace

    main = Rank(store, 0, 2, patience=1.0)
    beat = replace(main.watch._pulse.take(), machine="another", stack="  File rewards.py, line 3")
    store.set("beat/1", beat.to_json())
    began = time.monotonic()
    main.watch.start()
    assert main.until_ended() == [FOLLOWED]
    assert time.monotonic() - began >= 1.0
    found = failure_of(store)
    assert found is not None and found.rank == 1 and "no sign of life for 0:01" in found.problem
    assert found.stack == "  File rewards.py, line 3"  # the last that is known


def test_a_signal_of_one_rank_is_passed_to_one_that_does_not_wait(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "STOPPED_SECONDS", 0.1)
    monkeypatch.setattr(watching, "SIGNALLED_SECONDS", 0.3)
    monkeypatch.setattr(watching, "LEAVING_SECONDS", 1.0)
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    main, other = ranks(store, 2)
    other.watch.leave(Stopped(signal.SIGTERM))
    assert store.get(STOP) == b"15"
    wait_for(lambda: bool(sent))
    time.sleep(0.3)
    assert sent == [(os.getpid(), signal.SIGTERM)]  # once
    main.watch.leave(Stopped(signal.SIGTERM))
    assert main.ended == [] and failure_of(store) is None


def test_a_rank_that_has_not_come_is_named(store: dist.Store) -> None:
    main = Rank(store, 0, 3)
    main.watch.start()
    from posttrain.errors import RankError

    with pytest.raises(RankError, match="2 of 3 ranks did not start") as refused:
        await_all(store, main.watch.job, 0.2)
    assert refused.value.found == "no word from ranks 1, 2"
    main.watch._halt.set()


def test_a_failure_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Failure(2, 4, "node1", "`score`", "ValueError: é\nmore", "stack", "log", 1, True, "look")
    assert Failure.from_json(failure.to_json()) == failure
    assert Failure.from_json(failure.to_json().replace('"rank"', '"newer": 1, "rank"')) == failure
    shown = failure.shown()
    assert shown.startswith("rank 2 of 4 on node1 failed (`score`): ValueError: é") and "    stack" in shown
    assert failure.shown().endswith("remedy:   look; the rank's whole log is log")


def test_nothing_is_published_twice(store: dist.Store) -> None:
    assert store.compare_set(FAILURE, "", "a") == b"a"
    assert store.compare_set(FAILURE, "", "b") == b"a"
