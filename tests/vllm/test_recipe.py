"""A recipe whose stage starts its own servers: it trains, a killed one is replaced, and nobody survives the trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.vllm.conftest import PYTHON

TASKS = [{"prompt": f"Add {n} and {n + 1}.", "answer": str(2 * n + 1)} for n in range(8)]
RECIPE = {
    "schema": 1,
    "name": "launched",
    "model": "embedded",
    "stages": [
        {
            "name": "grpo",
            "method": "grpo",
            "data": "tasks.jsonl",
            "held_out": 0,
            "rewards": [{"kind": "function", "function": "letters.py:vowels"}],
            "prompts_per_step": 2,
            "completions_per_prompt": 4,
            "learning_rate": 1.0e-3,
            "sampling": {"max_new_tokens": 24},
            "engine": {"kind": "vllm_served", "launch": {"servers": 2, "python": PYTHON}},
        }
    ],
}


def written(folder: Path, steps: int) -> Path:
    stage = {**RECIPE["stages"][0], "steps": steps}  # type: ignore[index]
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "stages": [stage]}))
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in TASKS))
    (folder / "letters.py").write_text("def vowels(prompt, completion, task):\n    return completion.count('e') / 10\n")
    return folder / "runs" / "launched" / "grpo"


def started(folder: Path) -> subprocess.Popen[str]:
    with (folder / "out.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "posttrain", "run", "recipe.yaml"], cwd=folder, stdout=log, stderr=log, text=True
        )


def metrics(stage: Path) -> list[dict[str, Any]]:
    path = stage / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def servers_of(run: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(run.pid).children(recursive=True)
    return [one for one in found if "vllm.entrypoints" in " ".join(one.cmdline()) or "VLLM" in one.name()]


def wait_for(what: Callable[[], bool], run: subprocess.Popen[str], folder: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert run.poll() is None and time.monotonic() < deadline, (folder / "out.log").read_text()[-4000:]
        time.sleep(0.2)


def test_it_trains_loses_a_server_and_leaves_nobody_behind(tmp_path: Path) -> None:
    stage = written(tmp_path, steps=2000)
    run = started(tmp_path)
    try:
        wait_for(lambda: len(metrics(stage)) >= 2, run, tmp_path)
        assert (stage / "servers" / "server-1.log").read_text().startswith("--- server 1, start 1, port ")
        leaders = [one for one in servers_of(run) if "vllm.entrypoints" in " ".join(one.cmdline())]
        assert len(leaders) >= 2
        first = next(one for one in leaders if os.getpgid(one.pid) == one.pid)
        os.killpg(first.pid, signal.SIGKILL)
        at = len(metrics(stage))
        # The other one answers in the meantime.
        wait_for(lambda: len(metrics(stage)) >= at + 3, run, tmp_path)
        wait_for(lambda: metrics(stage)[-1]["values"].get("engine_restarts", 0) >= 1, run, tmp_path)
        wait_for(lambda: metrics(stage)[-1]["values"]["engine_servers"] == 2, run, tmp_path)
        values = [line["values"] for line in metrics(stage)]
        gaps = [value["sync_gap"] for value in values]
        print(f"\n{len(values)} steps, sync gap {max(gaps):.1e} at most, {values[-1]['seconds_sync']:.2f} s a sync")
        assert max(gaps) < 1e-4 and any(value["grad_norm"] > 0 for value in values)
        left = servers_of(run)
        assert len(left) >= 4  # two servers and their engines
        run.kill()  # nobody is told
        run.wait()
        _, alive = psutil.wait_procs(left, timeout=20)
        assert not alive
    finally:
        run.kill()


def test_three_steps_and_the_servers_are_gone(tmp_path: Path) -> None:
    stage = written(tmp_path, steps=3)
    run = started(tmp_path)
    seen: set[psutil.Process] = set()
    while run.poll() is None:
        seen.update(servers_of(run))
        time.sleep(0.5)
    assert run.returncode == 0, (tmp_path / "out.log").read_text()[-4000:]
    values = [line["values"] for line in metrics(stage)]
    assert len(values) == 3 and max(value["sync_gap"] for value in values) < 1e-4
    assert len(seen) >= 4 and not [one for one in seen if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert (stage / "model" / "model.safetensors").is_file()
