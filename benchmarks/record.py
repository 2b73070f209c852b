"""What one measured process reports, and how it is told to the process that started it.

Standard library only: the peer's environment reads it too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GIGABYTE = 1e9


@dataclass(frozen=True, slots=True)
class Record:
    """Record("trl", step_seconds=(9.1, 8.7, 8.8), losses=(0.6931, ...), loaded_bytes=1.9e9, peak_bytes=9.3e9)."""

    who: str
    step_seconds: tuple[float, ...]
    """Forward, backward, clipping and update; the first step also pays for what is set up once."""
    losses: tuple[float, ...]
    loaded_bytes: int
    """Largest resident size when imports and loading were done, before the first step."""
    peak_bytes: int
    """Largest resident size of the process."""
    tokens: tuple[int, ...] = ()
    """Tokens that went through the model in each step; empty where the side does not tell."""

    @property
    def seconds(self) -> float:
        """Median of the steps after the first."""
        return statistics.median(self.step_seconds[1:] or self.step_seconds)

    def emit(self) -> None:
        """The last line of the process's output."""
        print(json.dumps(asdict(self)), flush=True)

    @classmethod
    def parse(cls, output: str) -> Record:
        """From all that the process printed."""
        values = json.loads(output.strip().splitlines()[-1])
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**(values | lists))


def peak_rss() -> int:
    """The largest resident size that this process has had, in bytes.

    On Linux it is VmHWM, because `ru_maxrss` of a child begins at the size of the process that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kilobytes


def run_module(python: str, module: str, arguments: Sequence[str]) -> str:
    """Run `python -m module arguments` at the project's root; what it printed.

    Raises:
        RuntimeError: it failed; the message ends with what it wrote to stderr.
    """
    done = subprocess.run(
        [python, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{python} -m {module} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def step_arguments(batch: int, steps: int) -> argparse.ArgumentParser:
    """The options that both sides share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder of the model, as transformers reads it")
    parser.add_argument("--data", required=True, type=Path, help="rows as `benchmarks.text` writes them")
    parser.add_argument("--batch", type=int, default=batch, help="rows per step")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--max-length", type=int, default=1024)
    return parser


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
