"""Jobs of real processes under the launcher: every way in which one can end, and what the user sees of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[3]
LONGEST = 150.0
"""Seconds for a job; a busy machine takes many of them to start it."""


@dataclass(frozen=True)
class Ended:
    code: int
    said: str
    seconds: float
    folder: Path

    def log(self, rank: int) -> str:
        return (self.folder / "logs" / f"rank-{rank}.log").read_text()


def command(how: str, folder: Path, processes: int = 2, restarts: int = 0) -> list[str]:
    return [sys.executable, "-m", "tests.toy_job", "launch", str(processes), str(restarts), how, str(folder)]


def started(how: str, folder: Path, **more: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(how, folder, **more),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run in the background ignores Ctrl-C, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def end_of(job: subprocess.Popen[str], folder: Path) -> Ended:
    began = time.monotonic()
    try:
        said, _ = job.communicate(timeout=LONGEST)
    finally:
        job.kill()
    return Ended(job.returncode, said, time.monotonic() - began, folder)


def run(how: str, folder: Path, **more: int) -> Ended:
    return end_of(started(how, folder, **more), folder)


def left_over(folder: Path) -> list[int]:
    """Processes that still have the folder's name in their command."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(str(folder) in word for word in words) and process.pid != os.getpid():
            found.append(process.pid)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert left_over(tmp_path) == []


def until_step(folder: Path, rank: int = 0, step: int = 2) -> None:
    """Until this rank has taken some steps."""
    deadline = time.monotonic() + LONGEST
    path = folder / f"step-{rank}"
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()) and int(text) >= step:
            return
        time.sleep(0.05)
    raise AssertionError("the job does not start")


@pytest.mark.long
def test_a_job_that_ends_well(tmp_path: Path) -> None:
    ended = run("well", tmp_path)
    assert (ended.code, ended.said) == (0, "well: start 1\n")
    assert re.fullmatch(r"==== rank 1, .*, process \d+\n", ended.log(1))
    assert not (tmp_path / "logs" / "launcher.log").exists()


def test_an_exception_of_one_rank_is_one_error_with_rank_phase_and_stack(tmp_path: Path) -> None:
    ended = run("raise", tmp_path)
    assert ended.code == 1
    first = ended.said.splitlines()[0]
    assert re.fullmatch(
        r"rank 1 of 2 on \S+ failed \(`update`, at 5 of 40 steps of toy: training\): "
        r"ValueError: no number in the answer",
        first,
    )
    assert ended.said.count("ValueError: no number in the answer") == 2  # the sentence, and the end of the stack
    assert "in go_wrong" in ended.said and f"{tmp_path}/logs/rank-1.log" in ended.said
    assert "Thread" in ended.log(0) and "together" in ended.log(0)  # where rank 0 waited
    assert ended.said.count("Traceback") == 1
    assert ended.said.endswith("logs/rank-1.log\n")  # and nothing after it: what the rank itself prints is in its log
    assert "no number in the answer rank 1 of 2" in ended.log(1)


@pytest.mark.long
def test_a_refusal_keeps_its_words_and_its_code_and_is_not_tried_again(tmp_path: Path) -> None:
    ended = run("refuse", tmp_path, restarts=3)
    assert ended.code == 2
    assert "failed (`update`, at 5 of 40 steps of toy: training): the thing is wrong\n  remedy:   mend it" in ended.said
    assert "Traceback" not in ended.said and "again" not in ended.said
    assert ended.said.count("the thing is wrong") == 1 and "start 2" not in ended.log(1)


@pytest.mark.long
def test_an_error_of_all_is_said_once(tmp_path: Path) -> None:
    ended = run("everywhere", tmp_path, restarts=3)
    assert (ended.code, ended.said.count("the thing is wrong")) == (2, 1)
    assert "the thing is wrong" in ended.log(1) and "again" not in ended.said


@pytest.mark.long
def test_the_error_of_rank_0_is_said_by_itself(tmp_path: Path) -> None:
    ended = run("main", tmp_path)
    assert (ended.code, ended.said.count("no number in the answer")) == (1, 1)
    assert "rank 0 of 2" in ended.said


def test_a_killed_rank_is_named_within_seconds(tmp_path: Path) -> None:
    job = started("well", tmp_path)
    until_step(tmp_path)
    victim = next(pid for pid in left_over(tmp_path) if _rank_of(pid) == "1")
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    ended = end_of(job, tmp_path)
    assert time.monotonic() - killed < 30
    assert ended.code == 137
    assert ended.said.count("failed") == 1
    assert re.search(r"rank 1 of 2 on \S+ failed \(.*\): the process was killed by SIGKILL", ended.said)
    assert "dmesg" in ended.said


def _rank_of(pid: int) -> str | None:
    try:
        return psutil.Process(pid).environ().get("RANK")
    except psutil.Error:
        return None


@pytest.mark.long
def test_a_rank_that_ends_without_a_word(tmp_path: Path) -> None:
    ended = run("exit", tmp_path)
    assert ended.code in (3, 137)  # the launcher, or the rank's neighbour, sees it first
    assert re.search(r"rank 1 of 2 on \S+ failed", ended.said)


@pytest.mark.long
def test_a_frozen_rank_is_named_within_the_bound(tmp_path: Path) -> None:
    ended = run("freeze", tmp_path)
    assert ended.code == 1
    assert re.search(r"rank 1 of 2 on \S+ failed \(`update`, at 5 of 40 .*\): no sign of life for 0:0\d", ended.said)


@pytest.mark.long
def test_a_rank_that_hangs_is_named_with_its_stack(tmp_path: Path) -> None:
    ended = run("deadlock", tmp_path, processes=3)
    assert ended.code == 1
    assert re.search(r"rank 1 of 3 .*: nothing has moved for 0:0\d; ranks 0, 2 wait for it", ended.said)
    assert "locked_for_ever" in ended.said and "--patience" in ended.said


@pytest.mark.long
def test_a_rank_that_ends_too_early_is_named(tmp_path: Path) -> None:
    ended = run("early", tmp_path)
    assert ended.code == 1
    assert re.match(r"rank 1 of 2 on \S+ failed .*: it has ended its program, while another", ended.said)


def test_restarts_begin_again_with_the_cause(tmp_path: Path) -> None:
    ended = run("kill_once", tmp_path, restarts=2)
    assert ended.code == 0
    assert "launcher: starting all 2 processes again (1 of 2 restarts)" in ended.said
    assert re.search(
        r"well: start 2 after rank 1 of 2 on \S+ failed \(.*\): the process was killed by SIGKILL", ended.said
    )
    assert ", start 2\n" in ended.log(1)


@pytest.mark.long
def test_restarts_come_to_an_end(tmp_path: Path) -> None:
    ended = run("raise", tmp_path, restarts=1)
    assert (ended.code, ended.said.count("ValueError: no number in the answer\n")) == (1, 4)
    assert ended.said.count("processes again") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_stops_all_between_two_steps(tmp_path: Path, number: signal.Signals) -> None:
    job = started("well", tmp_path, restarts=3)
    until_step(tmp_path)
    job.send_signal(number)
    ended = end_of(job, tmp_path)
    assert ended.code == 128 + number
    assert re.fullmatch(r"stopped after step \d+ of 40\n", ended.said)
    assert (tmp_path / "step-0").read_text() == (tmp_path / "step-1").read_text()


@pytest.mark.long
def test_a_signal_to_one_rank_stops_all(tmp_path: Path) -> None:
    job = started("well", tmp_path, restarts=3)
    until_step(tmp_path)
    os.kill(next(pid for pid in left_over(tmp_path) if _rank_of(pid) == "1"), signal.SIGTERM)
    ended = end_of(job, tmp_path)
    assert ended.code == 143
    assert re.fullmatch(r"stopped after step \d+ of 40\n", ended.said)


def test_a_rank_that_differs_is_refused_with_both_values(tmp_path: Path) -> None:
    ended = run("differ", tmp_path)
    assert ended.code == 2
    assert re.search(r"found:    rank 1 on \S+: colour red\n", ended.said)
    assert re.search(r"expected: as on rank 0 on \S+: colour blue\n", ended.said)
    assert not (tmp_path / "step-0").exists()


@pytest.mark.long
def test_what_a_rank_has_started_ends_with_it(tmp_path: Path) -> None:
    ended = run("child", tmp_path)
    assert ended.code == 1
    children = [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", "987"]]
    assert children == []


@pytest.mark.long
def test_without_the_launcher_the_ranks_end_by_themselves(tmp_path: Path) -> None:
    job = started("well", tmp_path)
    until_step(tmp_path)
    job.kill()
    job.communicate()
    deadline = time.monotonic() + 60
    while left_over(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    # Gone before their 40 steps were over.
    assert left_over(tmp_path) == []


@pytest.mark.long
def test_under_torchrun_the_same_error_is_shown(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    job = subprocess.run(
        [*torchrun, "-m", "tests.toy_job", "raise", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert job.returncode == 1
    assert re.search(r"^rank 1 of 2 on \S+ failed \(`update`, .*\): ValueError", job.stderr, re.MULTILINE)
    # And torchrun's own report names the same cause.
    cause = job.stderr.split("Root Cause")[1]
    assert "rank      : 1 " in cause and "ValueError: no number in the answer" in cause
