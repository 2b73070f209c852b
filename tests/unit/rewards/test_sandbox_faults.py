"""Faults that are not the program's: a job runs once more, then the run stops; the program never gets a zero."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.errors import TrainingError
from posttrain.rewards.sandbox import Limits, Outcome, Sandbox, lane
from posttrain.rewards.sandbox.inside.removal import remove_tree
from posttrain.rewards.sandbox.lane import Lane, Unconfined
from tests.unit.rewards.programs import PATIENCE, RIGHT, TESTS, children

BOTH = pytest.mark.parametrize("namespaces", [None, False], ids=["namespaces", "without"])
QUIET = "import time\ntime.sleep(0.8)\ndef f(x):\n    return x + 1\n"
WAITING_TESTS = "import time\ntime.sleep(0.8)\n" + TESTS


def die(one: Lane) -> None:
    one._process.kill()
    one._process.wait()


@BOTH
def test_a_job_of_a_dead_server_runs_again(namespaces: bool | None) -> None:
    with Sandbox(namespaces=namespaces) as one:
        die(one._lanes[0])
        assert one.run_tests(RIGHT, TESTS, seconds=PATIENCE).passed
        die(one._lanes[0])
        assert one.run_script("print(int(input()) + 1)", "2", seconds=PATIENCE).text == "3\n"


def test_a_job_whose_second_server_dies_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox() as one:
        start = one._start

        def start_dead() -> Lane:
            dead = start()
            die(dead)
            return dead

        die(one._lanes[0])
        monkeypatch.setattr(one, "_start", start_dead)
        with pytest.raises(TrainingError) as caught:
            one.run_tests(RIGHT, TESTS)
        assert str(caught.value).count("the lane's server is gone: it died of signal 9") == 2
        monkeypatch.undo()
        assert one.run_tests(RIGHT, TESTS, seconds=PATIENCE).passed


def test_a_job_whose_layer_failed_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise Unconfined("mount: Cannot allocate memory")

    with Sandbox() as one:
        monkeypatch.setattr(one._lanes[0], "run", fail)
        assert one.run_tests(RIGHT, TESTS, seconds=PATIENCE).passed
        monkeypatch.setattr(Lane, "run", fail)
        with pytest.raises(TrainingError, match="cannot confine"):
            one.run_tests(RIGHT, TESTS)
        monkeypatch.undo()


def killing(
    one: Sandbox, wanted: Callable[[list[int]], int], times: int, *, after_harness: bool = False
) -> threading.Thread:
    """A thread that kills a process of each of the next jobs, as the system does when memory runs out."""
    server = one._lanes[0]._process.pid
    idle = children(server)

    def kill() -> None:
        deadline = time.monotonic() + PATIENCE
        for _ in range(times):
            seen: list[int] = []
            while len(seen) < 2 and time.monotonic() < deadline:
                now = one._lanes[0]._process.pid
                seen = sorted(children(now) - idle if now == server else children(now))[-2:]
                time.sleep(0.01)
            time.sleep(0.05)
            while after_harness and Path(f"/proc/{max(seen)}").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(wanted(seen), signal.SIGKILL)
            while Path(f"/proc/{wanted(seen)}").exists() and time.monotonic() < deadline:
                time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.parametrize("wanted", [min, max], ids=["worker", "harness"])
def test_a_job_whose_process_was_killed_runs_again(wanted: Callable[[list[int]], int]) -> None:
    with Sandbox(namespaces=False) as one:
        thread = killing(one, wanted, times=1)
        verdict = one.run_tests(QUIET, WAITING_TESTS, seconds=PATIENCE)
        thread.join()
    assert verdict.passed, verdict


def test_a_job_whose_process_is_killed_each_time_stops_the_run() -> None:
    with Sandbox(namespaces=False) as one:
        thread = killing(one, min, times=2)
        with pytest.raises(TrainingError, match="the worker process was killed from outside; then the worker process"):
            one.run_tests(QUIET, WAITING_TESTS, seconds=PATIENCE)
        thread.join()


def test_a_worker_that_dies_a_moment_after_its_line_was_killed() -> None:
    """A killed process closes its files before its parent can see that it is dead; on a busy machine, long before."""
    slow_to_end = "import os, time\ntime.sleep(0.5)\nos.closerange(3, 256)\ntime.sleep(20)\n"
    with Sandbox(namespaces=False) as one:
        thread = killing(one, min, times=2, after_harness=True)
        with pytest.raises(TrainingError, match="the worker process was killed from outside; then the worker process"):
            one.run_tests(slow_to_end, TESTS, seconds=PATIENCE)
        thread.join()


def test_a_program_that_closes_its_line_and_lives_on_has_died() -> None:
    with Sandbox(namespaces=False) as one:
        verdict = one.run_tests("import os, time\nos.closerange(3, 256)\ntime.sleep(20)\n", TESTS, seconds=PATIENCE)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.message == "the program has died"
    assert verdict.seconds < 10


def test_a_kernel_that_cannot_meter_calls_lacks_that_layer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    without = "\nfrom posttrain.rewards.sandbox.inside import meter\nmeter.works = lambda: False\nrun(int("
    monkeypatch.setattr(lane, "_START", lane._START.replace("\nrun(int(", without))
    with Sandbox() as one:
        assert not one.layers["metered threads"] and one.layers["seccomp"]
        assert one.run_tests(RIGHT, TESTS, seconds=PATIENCE).passed
        told = one.run_tests("import os\ndef f(x): os.chmod('/', 0)", TESTS, seconds=PATIENCE).message
        assert "Operation not permitted" in told


def test_a_limit_of_the_programs_is_its_own_fault() -> None:
    """The kernel enforces the limit of CPU time by the same signal as the shortage of memory."""
    with Sandbox(Limits(seconds=0.1), namespaces=False) as one:
        first = one._lanes[0]
        ended = one.run_script("while True: pass", seconds=PATIENCE)
        assert ended.outcome is Outcome.CRASHED
        assert one._lanes[0] is first, "it ran again"


def test_scratch_folders_are_where_the_user_wants_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sandbox(namespaces=False) as one:
        told = one.run_script("import os, tempfile\nprint(os.getcwd())\nprint(tempfile.gettempdir())").text
        here, temporary = told.splitlines()
        assert Path(here).parents[2] == tmp_path and temporary == here
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_killed_server_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sandbox(namespaces=False) as one:
        die(one._lanes[0])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: a disk may need milliseconds for every folder that it removes."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def test_a_tree_of_any_depth_is_removed_and_nothing_else(memory_folder: Path) -> None:
    outside, top = memory_folder / "outside", memory_folder / "top"
    (outside / "kept").mkdir(parents=True)
    top.mkdir()
    (top / "link").symlink_to(outside)
    for name in ("0", "1", "2"):
        (top / name / "0" / "1").mkdir(parents=True)
        (top / name / "file").write_text("x")
    folder = os.open(top, os.O_RDONLY)
    for _ in range(2500):  # 5,000 bytes of path, and more folders than Python calls functions
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.mkdir("closed", 0, dir_fd=folder)
    os.close(folder)
    remove_tree(str(top))
    assert not top.exists() and (outside / "kept").exists()
    remove_tree(str(top))
