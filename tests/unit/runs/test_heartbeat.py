"""The heartbeat: what is under way is in the run's folder, a hang is told by its name, and nothing is ended by it."""

from __future__ import annotations

import io
import json
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.online import GRPO
from posttrain.runs.folder import StageFolder
from posttrain.runs.heartbeat import Heartbeat
from posttrain.runs.progress import PlainProgress, Progress
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.run import run_stage
from tests.online import SMALL, early_letters, save_start, tasks_of


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def pulse(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "heartbeat.json").read_text()))


def test_the_pulse_says_what_is_under_way(tmp_path: Path) -> None:
    now = Clock()
    progress = Progress(now=now)
    beat = Heartbeat(tmp_path, progress)
    with progress.phase("grpo: training", total=30, unit="steps", done=3):
        now.time += 7
        with progress.doing("score"):
            now.time += 12
            beat.beat()
            found = pulse(tmp_path)
            assert (found["status"], found["phase"], found["activity"]) == ("running", "grpo: training", "score")
            assert (found["activity_seconds"], found["silent_seconds"]) == (12.0, 12.0)
            assert (found["done"], found["total"], found["unit"]) == (3, 30, "steps")
        now.time += 1
        beat.beat()
        assert (pulse(tmp_path)["activity"], pulse(tmp_path)["silent_seconds"]) == (None, 1.0)
    assert not (tmp_path / "stalls.txt").exists()


def test_a_stall_is_said_once_and_again_when_it_doubles(tmp_path: Path) -> None:
    now, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, stall_after=None, now=now)
    beat = Heartbeat(tmp_path / "grpo", progress, stall_after=60)
    with beat, progress.phase("grpo: training", total=30, unit="steps") as phase:
        with progress.doing("score"):
            for _ in range(13):
                now.time += 20
                beat.beat()
        said = [line for line in stream.getvalue().splitlines() if "stalled" in line]
        assert [line.split("for ")[1].split(" ")[0] for line in said] == ["1:00", "2:00", "4:00"]
        assert "`score`, at 0 of 30 steps of grpo: training" in said[0] and "nothing was stopped" in said[0]
        assert pulse(tmp_path / "grpo")["status"] == "stalled"
        phase.advance()
        beat.beat()
        assert "grpo: goes on" in stream.getvalue() and pulse(tmp_path / "grpo")["status"] == "running"


def test_ticks_inside_a_step_are_progress(tmp_path: Path) -> None:
    now, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, stall_after=None, now=now)
    beat = Heartbeat(tmp_path, progress, stall_after=60)
    with progress.phase("sft", total=2, unit="steps") as phase, progress.doing("update"):
        for _ in range(10):
            now.time += 50
            phase.advance(0, tokens=100)
            beat.beat()
    assert "stalled" not in stream.getvalue()


@pytest.mark.parametrize(("error", "status"), [(False, "ended"), (True, "failed")])
def test_the_last_beat_says_how_it_ended(tmp_path: Path, error: bool, status: str) -> None:
    threads = threading.active_count()
    try:
        with Heartbeat(tmp_path, Progress()):
            assert pulse(tmp_path)["status"] == "running"
            if error:
                raise ValueError
    except ValueError:
        pass
    assert pulse(tmp_path)["status"] == status
    assert threading.active_count() == threads


def test_a_stall_of_the_progress_names_its_activity(tmp_path: Path) -> None:
    now, stream = Clock(), io.StringIO()
    progress = PlainProgress(stream, stall_after=30, now=now)
    with progress, progress.phase("grpo: training", total=3, unit="steps"), progress.doing("generate"):
        now.time += 31
        progress.check_stall()
    assert "grpo: training: no progress for 0:31 (`generate`, at 0 steps)" in stream.getvalue()


def test_a_reward_that_hangs_is_seen(tmp_path: Path) -> None:
    """A planted slow reward: while it hangs, the pulse and the stack name it; then the run ends as if nothing was."""
    stream, seen = io.StringIO(), []

    def judge_that_hangs(prompt: Any, completion: str, task: Any) -> float:
        if not seen:
            for _ in range(200):  # until the watchdog has looked; a second of slowness is enough on an idle machine
                time.sleep(0.05)
                if (tmp_path / "grpo" / "stalls.txt").exists() and pulse(tmp_path / "grpo")["status"] == "stalled":
                    break
            seen.append(pulse(tmp_path / "grpo"))
        return early_letters(prompt, completion, task)

    stage = GRPO(**{**SMALL, "steps": 1, "preflight": {"on_failure": "warn"}, "log": {"stall_after": 1.0}})
    folder = StageFolder(tmp_path / "grpo")
    with PlainProgress(stream, stall_after=None) as progress, closing(folder):
        start = save_start(tmp_path / "start")
        ctx = StageContext(stage, start, folder, 0, progress, examples=tasks_of(), rewards=[judge_that_hangs])
        outcome = run_stage(ctx)
    assert outcome is not None and outcome.steps == 1
    (found,) = seen
    assert found["status"] == "stalled" and found["activity"] == "score" and found["activity_seconds"] >= 1.0
    # Of this reward: on a machine that is busy enough, whatever else takes a second is rightly said as well.
    (said,) = [line for line in stream.getvalue().splitlines() if "stalled" in line and "`score`" in line]
    assert "grpo: stalled: no progress for 0:0" in said and "stalls.txt" in said
    stack = (tmp_path / "grpo" / "stalls.txt").read_text()
    assert "judge_that_hangs" in stack and "the one that trains" in stack
    assert pulse(tmp_path / "grpo")["status"] == "ended"
