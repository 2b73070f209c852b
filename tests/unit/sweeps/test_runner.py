"""Runs in processes of their own: what each is told, what it answers, and what is said of one that cannot."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.errors import TrainingError
from posttrain.parallel.stopping import Stopped
from posttrain.runs.files import read_json
from posttrain.runs.progress import Progress
from posttrain.sweeps import runner, worker
from posttrain.sweeps.runner import Job, Outcome, Processes, environment_of, visible_cards
from posttrain.training.pausing import Pause

RECIPE = "{schema: 1, name: a, model: embedded, stages: [{method: sft, data: package://demonstrations.jsonl}]}"


class Ended:
    """A process that is over; `code` is set by the test, `signals` is what it was sent."""

    code = 0
    signals: tuple[int, ...] = ()

    def __init__(self, command: list[str], **_: Any):
        self.told = Path(command[-1])
        self.returncode = self.code

    def poll(self) -> int:
        return self.returncode

    def send_signal(self, number: int) -> None:
        type(self).signals += (number,)

    def wait(self) -> int:
        return self.returncode


@pytest.fixture
def job(tmp_path: Path) -> Job:
    path = tmp_path / "a.yaml"
    path.write_text(RECIPE)
    recipe = pt.load_recipe(path, [f"out={tmp_path / 'sweep'}"])
    return Job("a", recipe, Pause("sft", 1 / 3, "sums"), "sums.accuracy", 0)


def test_each_process_has_its_card_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 9)
    assert [environment_of(slot, 3, ["4", "7"], {})["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "7", "4"]
    assert environment_of(0, 2, ["4"], {}) == {"OMP_NUM_THREADS": "4"}  # one card is everybody's
    assert environment_of(0, 20, [], {})["OMP_NUM_THREADS"] == "1"
    assert environment_of(0, 2, [], {"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"
    assert visible_cards({"CUDA_VISIBLE_DEVICES": "2, 3"}) == ["2", "3"]
    assert visible_cards({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_a_worker_does_what_it_was_told_and_answers_by_a_file(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def run_job(given: Job, *more: Any) -> Outcome:
        asked.append((given.run, given.recipe, given.pause, given.by, *more[:2]))
        return Outcome("paused", 1.5, 0.25)

    monkeypatch.setattr(worker, "run_job", run_job)
    monkeypatch.setattr(runner.subprocess, "Popen", Ended)
    processes = Processes(tmp_path / "sweep", "2026-03-01", 2, lambda line: None)
    processes.start(job)
    assert worker.main(str(tmp_path / "sweep" / ".jobs" / "a.json")) == 0
    assert asked == [("a", job.recipe, job.pause, job.by, tmp_path / "sweep", "2026-03-01")]
    assert processes.outcome() == (job, Outcome("paused", 1.5, 0.25))
    assert processes.running == 0 and (job.recipe.folder / "sweep.log").exists()


def test_a_process_that_leaves_no_word_is_named_by_how_it_ended(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.subprocess, "Popen", Ended)
    processes = Processes(tmp_path / "sweep", "2026-03-01", 1, lambda line: None)
    for code, status, said in (
        (-signal.SIGKILL, "failed", "was killed by SIGKILL"),
        (1, "failed", "ended with the code 1"),
        (143, "interrupted", "ended with the code 143"),
    ):
        Ended.code = code
        # An answer that an earlier attempt left is none of this one's.
        (tmp_path / "sweep" / ".jobs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "sweep" / ".jobs" / "a.outcome.json").write_text('{"status": "done", "seconds": 1.0}')
        processes.start(job)
        _, outcome = processes.outcome()
        assert outcome.status == status and said in str(outcome.error) and "sweep.log" in str(outcome.error)
    Ended.code = 143
    processes.start(job)
    processes.stop()
    assert Ended.signals == (signal.SIGTERM,) and processes.running == 0


def test_a_worker_that_is_stopped_gives_the_code_of_its_signal(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.subprocess, "Popen", Ended)
    Processes(tmp_path / "sweep", "2026-03-01", 1, lambda line: None).start(job)
    told = tmp_path / "sweep" / ".jobs" / "a.json"
    for stop, code in ((KeyboardInterrupt(), 130), (Stopped(15), 143)):

        def run_job(*_: Any, stop: BaseException = stop) -> Outcome:
            raise stop

        monkeypatch.setattr(worker, "run_job", run_job)
        assert worker.main(str(told)) == code
    assert not told.with_suffix(".outcome.json").exists() and read_json(told)["run"] == "a"


def test_a_fault_that_nobody_foresaw_fails_one_run_and_leaves_its_traceback(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a library's own")

    monkeypatch.setattr(runner, "run_within", broken)
    outcome = runner.run_job(job, tmp_path / "sweep", "2026-03-01", Progress())
    assert outcome.status == "failed" and "an unexpected RuntimeError: a library's own" in str(outcome.error)
    assert "a library's own" in (job.recipe.folder / "traceback.txt").read_text()

    def refused(*_: Any, **__: Any) -> None:
        raise TrainingError("no room", remedy="make room")

    monkeypatch.setattr(runner, "run_within", refused)
    outcome = runner.run_job(job, tmp_path / "sweep", "2026-03-01", Progress())
    assert outcome.error == "no room\n  remedy:   make room"
