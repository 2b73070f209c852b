"""What a small experiment costs: `python -m benchmarks.quick [--rounds 5]`, and `--profile` for where it goes.

DPO of 6 steps on the embedded model, from Python, in a process that has trained once before (a sweep in a notebook):
with everything on, with the fast preflight, and with neither preflight nor export. Seconds of the clock and of the
processor; the weights of all three are the same.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import posttrain as pt

MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "fast preflight": {"preflight": "fast"},
    "fast preflight, no export": {"preflight": "fast", "export": "none"},
    "no preflight, no export": {"preflight": "off", "export": "none"},
}


def once(options: dict[str, Any], pairs: Any) -> tuple[float, float]:
    """(seconds, seconds of processor) of one run into a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        stage = pt.DPO(steps=6, rows_per_step=8, learning_rate=1e-4, audit={"on_error": "off"}, **options)
        clock, processor = time.perf_counter(), time.process_time()
        pt.train(stage, "embedded", pairs, out=Path(folder) / "run", progress=False)
        return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", metavar="MODE", help="of one mode, where the time goes")
    parser.add_argument("--only", help="one mode")
    arguments = parser.parse_args()
    pairs = pt.read("package://preferences.jsonl")
    modes = {name: options for name, options in MODES.items() if arguments.only in (None, name)}
    once({}, pairs)  # imports, and whatever else only the first run of a process pays
    if arguments.profile:
        profiler = cProfile.Profile()
        profiler.runcall(once, MODES[arguments.profile], pairs)
        pstats.Stats(profiler).sort_stats("cumtime").print_stats(60)
        return
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in modes}
    for _ in range(arguments.rounds):  # in turns, since the machine may be busy
        for name, options in modes.items():
            times[name].append(once(options, pairs))
    for name, found in times.items():
        clock, processor = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:<28}{clock:6.2f} s {processor:6.2f} s of processor")


if __name__ == "__main__":
    main()
