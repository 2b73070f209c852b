"""Tokens per second of one process with two threads, and of two processes with one thread each, in turns.

    python -m benchmarks.processes                                 # SmolLM2-135M, SFT, three turns
    python -m benchmarks.processes --model embedded --steps 40

Both run one recipe by `posttrain run RECIPE [--processes 2]`: the same rows, the same steps, and the same losses to
rounding, which is checked. Prints the median over the turns' medians of tokens per second, and their ratio. The first
step, in which memory is first touched, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

SETUPS = {"1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1)}
MOST_APART = 1e-3
"""Nats by which the two losses of a step may differ in fp32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rows", type=int, default=16, help="rows of a step")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {name: [] for name in SETUPS}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(arguments.turns):
            losses = []
            for name, (processes, threads) in SETUPS.items():
                lines = _run(Path(scratch) / f"{turn}-{processes}", processes, threads, arguments)
                speeds[name].append(statistics.median(line["values"]["tokens_per_second"] for line in lines[1:]))
                losses.append([line["values"]["loss"] for line in lines])
            apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
            if not apart <= MOST_APART:
                raise SystemExit(f"the two are not one run: losses are {apart:g} nats apart")
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    one, two = medians.values()
    print(json.dumps({"tokens_per_second": speeds, "medians": medians, "ratio": round(two / one, 3)}, indent=1))


def _run(folder: Path, processes: int, threads: int, arguments: Any) -> list[dict[str, Any]]:
    """The training lines of metrics.jsonl."""
    folder.mkdir(parents=True)
    stage = {
        "method": "sft",
        "data": {"path": "package://demonstrations.jsonl"},
        "steps": arguments.steps,
        "rows_per_step": arguments.rows,
        "held_out": 0,
        "export": "none",
        "compute": {"precision": "fp32"},
    }
    recipe = {"schema": 1, "model": arguments.model, "evaluate": {"suites": []}, "stages": [stage]}
    (folder / "speed.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "posttrain", "run", "speed.yaml", "--processes", str(processes)]
    done = subprocess.run(
        command[:-2] if processes == 1 else command,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    text = (folder / "runs" / "speed" / "sft" / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["split"] == "train"]


if __name__ == "__main__":
    main()
