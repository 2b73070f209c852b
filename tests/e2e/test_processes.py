"""A recipe on two processes, as a user starts it: it ends well, a killed rank is started again, a signal saves, and a
rank that cannot write ends all of them with one error."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from posttrain.runs.folder import RunFolder
from posttrain.runs.records.logs import MetricsLine

pytestmark = [pytest.mark.slow, pytest.mark.long]

LONGEST = 400.0
RECIPE = """schema: 1
model: embedded
evaluate: {suites: []}
stages:
- method: dpo
  data: {path: package://preferences.jsonl, limit: 60}
  epochs: 4
  rows_per_step: 8
  checkpoint: {every_steps: 4}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return tmp_path


def started(place: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "posttrain", "run", "toy.yaml", "--processes", "2", *options]
    return subprocess.Popen(
        command,
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def end_of(job: subprocess.Popen[str]) -> str:
    try:
        said, _ = job.communicate(timeout=LONGEST)
    finally:
        for child in psutil.Process(job.pid).children(recursive=True) if psutil.pid_exists(job.pid) else ():
            child.kill()
        job.kill()
    return said


def ranks(job: subprocess.Popen[str]) -> dict[int, int]:
    """{rank: process}"""
    found = {}
    for child in psutil.Process(job.pid).children():
        rank = child.environ().get("RANK")
        if rank is not None:
            found[int(rank)] = child.pid
    return found


def until_checkpoint(place: Path) -> None:
    deadline = time.monotonic() + LONGEST
    while not list(place.glob("runs/toy/dpo/checkpoints/step-*")):
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.1)


def losses(place: Path) -> dict[int | None, float | None]:
    lines = RunFolder(place / "runs" / "toy").stage("dpo").lines(MetricsLine)
    return {line.step: line.values["loss"] for line in lines if line.split == "train"}


def test_a_killed_rank_is_started_again_and_the_numbers_are_the_same(place: Path) -> None:
    job = started(place, "--restarts", "1")
    until_checkpoint(place)
    os.kill(ranks(job)[1], signal.SIGKILL)
    said = end_of(job)
    assert job.returncode == 0, said
    assert len(re.findall(r"rank 1 of 2 on \S+ failed \(.*\): the process was killed by SIGKILL", said)) == 1
    assert "starting all 2 processes again (1 of 1 restarts)" in said
    run = RunFolder(place / "runs" / "toy").run()
    assert (run.status, run.processes) == ("done", 2)
    assert [restart.rank for restart in run.restarts or ()] == [1]
    assert "the process was killed by SIGKILL" in (place / "runs" / "toy" / "report.html").read_text()

    other = place / "whole"
    other.mkdir()
    (other / "toy.yaml").write_text(RECIPE)
    whole = started(other)
    assert whole.wait(LONGEST) == 0
    end_of(whole)
    assert losses(place) == losses(other)  # bit for bit


def test_a_signal_saves_and_the_same_command_goes_on(place: Path) -> None:
    job = started(place, "--restarts", "2")
    until_checkpoint(place)
    job.send_signal(signal.SIGTERM)
    said = end_of(job)
    assert job.returncode == 143
    found = re.search(r"stopped by SIGTERM after step (\d+) of (\d+), with a checkpoint", said)
    assert found is not None and said.count("stopped by") == 1, said
    step = int(found[1])
    assert (place / "runs" / "toy" / "dpo" / "checkpoints" / f"step-{step:08}").is_dir()
    again = started(place)
    said = end_of(again)
    assert again.returncode == 0, said
    assert sorted(losses(place)) == list(range(1, int(found[2]) + 1))


def test_a_rank_with_a_full_disk_ends_all_with_one_error(place: Path) -> None:
    """No file of this job may become larger than 200 kB: the checkpoint does not fit."""
    job = started(place, "--restarts", "2")
    until = time.monotonic() + LONGEST
    while len(found := ranks(job)) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    for process in found.values():
        resource.prlimit(process, resource.RLIMIT_FSIZE, (200_000, 200_000))
    said = end_of(job)
    assert job.returncode == 2, said
    # The line that the steps could not be saved, as of one process, and the error that ends the job: once.
    assert said.count("could not be saved") == said.count("\n  ranks:    0\n") == 1
    assert "processes again" not in said and "Traceback" not in said
    assert json.loads((place / "runs" / "toy" / "run.json").read_text())["status"] == "failed"


def test_a_rank_with_other_data_is_refused(place: Path) -> None:
    """The machines of a cluster with a copy each: the second one's differs in a letter."""
    script = place / "other.py"
    script.write_text(
        "import os, pathlib, runpy, sys\n"
        "os.chdir(os.environ['RANK'])\n"
        "sys.argv = ['posttrain', 'run', 'toy.yaml', '--out', os.environ['OUT']]\n"
        "runpy.run_module('posttrain', run_name='__main__')\n"
    )
    for rank, answer in enumerate(("4", "5")):
        (place / str(rank)).mkdir()
        (place / str(rank) / "toy.yaml").write_text(RECIPE.replace("package://preferences.jsonl", "rows.jsonl"))
        row = f'{{"prompt": "2 + 2?", "chosen": "{answer}", "rejected": "6"}}\n'
        (place / str(rank) / "rows.jsonl").write_text(row * 40)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(script)],
        cwd=place,
        env={**os.environ, "OUT": str(place / "runs"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert done.returncode != 0
    assert "the processes of this job are not the same: 1 of 2 differ" in done.stderr
    assert not (place / "runs" / "toy" / "dpo").exists()
