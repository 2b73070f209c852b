"""Our step against TRL's: the same rows, model, batch and machine, in turns, each run in a process of its own.

    python -m benchmarks.against_trl --peer .venv-peer/bin/python [--model smollm2-135m-instruct] [--rounds 3]

Prints one table and writes it as JSON to benchmarks/results.json, which belongs to the machine and is not committed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from benchmarks import text
from benchmarks.record import GIGABYTE, ROOT, Record, read_rows, run_module

RESULTS = ROOT / "benchmarks" / "results.json"
LOSSES_AGREE = 1e-3
"""Both sides train on the same ids with the same optimizer; a larger gap means that they do different things."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured: Task("dpo", batch=4, steps=6, speed=3.0, memory=0.35)."""

    name: str
    batch: int
    steps: int
    speed: float
    """Aim: the peer's seconds per step over ours, at least."""
    memory: float
    """Aim: our peak memory over the peer's, at most."""


TASKS = (
    Task("dpo", 4, 6, speed=3.0, memory=0.35),
    Task("sft", 8, 6, speed=1.5, memory=0.30),
    Task("reward", 4, 6, speed=2.5, memory=0.40),
)
FLOOR_SHARE = 0.80
"""Aim: the matrix-multiply floor over our seconds per step, at least."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The medians of one task over all rounds."""

    task: Task
    peer_seconds: float
    our_seconds: float
    peer_peak: int
    our_peak: int
    peer_loaded: int
    our_loaded: int
    loss_gap: float
    """Largest difference of the two losses at any step."""
    first_losses: tuple[float, float]
    floor_seconds: float | None = None

    @property
    def speed(self) -> float:
        return self.peer_seconds / self.our_seconds

    @property
    def memory(self) -> float:
        return self.our_peak / self.peer_peak

    @property
    def floor_share(self) -> float | None:
        return None if self.floor_seconds is None else self.floor_seconds / self.our_seconds


def compare(task: Task, peer: Sequence[Record], ours: Sequence[Record], floor_seconds: float | None) -> Comparison:
    """The rounds of both sides as one comparison: medians of times, the largest of the peaks.

    Raises:
        ValueError: the two sides logged different numbers of losses.
    """
    pairs = [pair for ps, os_ in zip(peer, ours, strict=True) for pair in zip(ps.losses, os_.losses, strict=True)]
    return Comparison(
        task,
        statistics.median(record.seconds for record in peer),
        statistics.median(record.seconds for record in ours),
        max(record.peak_bytes for record in peer),
        max(record.peak_bytes for record in ours),
        max(record.loaded_bytes for record in peer),
        max(record.loaded_bytes for record in ours),
        max(abs(theirs - mine) for theirs, mine in pairs),
        pairs[0],
        floor_seconds,
    )


def table(comparisons: Sequence[Comparison]) -> str:
    """
    step      s TRL  s ours  faster    aim  GB TRL  GB ours  of it    aim  of floor  loss gap
    dpo       45.10   14.20    3.18  >=3.0   14.10     4.60   0.33  <=0.35       81%   1.0e-05
    """
    head = f"{'step':<7}{'s TRL':>8}{'s ours':>8}{'faster':>8}{'aim':>7}"
    head += f"{'GB TRL':>9}{'GB ours':>9}{'of it':>8}{'aim':>8}{'of floor':>10}{'aim':>7}{'loss gap':>10}"
    lines = [head]
    for c in comparisons:
        share = "" if c.floor_share is None else f"{c.floor_share:.0%}"
        line = f"{c.task.name:<7}{c.peer_seconds:8.2f}{c.our_seconds:8.2f}{c.speed:8.2f}{'>=' + str(c.task.speed):>7}"
        line += (
            f"{c.peer_peak / GIGABYTE:9.2f}{c.our_peak / GIGABYTE:9.2f}{c.memory:8.2f}{'<=' + str(c.task.memory):>8}"
        )
        line += f"{share:>10}{f'>={FLOOR_SHARE:.0%}':>7}{c.loss_gap:10.1e}"
        lines.append(line)
    return "\n".join(lines)


def run_rounds(
    task: Task, peer: str, arguments: Sequence[str], our_arguments: Sequence[str], rounds: int
) -> Iterator[tuple[Record, Record]]:
    """The peer first, then ours, `rounds` times; one line on stderr for each run."""
    counts = ["--batch", str(task.batch), "--steps", str(task.steps)]
    for number in range(1, rounds + 1):
        theirs = Record.parse(run_module(peer, f"benchmarks.peer_{task.name}", [*arguments, *counts]))
        _say(task, number, theirs)
        mine = Record.parse(
            run_module(sys.executable, f"benchmarks.ours_{task.name}", [*arguments, *counts, *our_arguments])
        )
        _say(task, number, mine)
        yield theirs, mine


def _say(task: Task, number: int, record: Record) -> None:
    steps = " ".join(f"{seconds:.2f}" for seconds in record.step_seconds)
    losses = " ".join(f"{loss:.5f}" for loss in record.losses)
    memory = f"{record.loaded_bytes / GIGABYTE:.2f} GB loaded, {record.peak_bytes / GIGABYTE:.2f} GB peak"
    print(
        f"{task.name} round {number} {record.who:>9}: {steps} s; {memory}; loss {losses}", file=sys.stderr, flush=True
    )


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures belong to, and how fast it multiplies."""

    processor: str
    cores: int | None
    threads: int
    python: str
    torch: str
    rates: str
    floor_seconds: dict[str, float]
    """Of each task's median step."""


def look_at_machine(model: str, data: Path, max_length: int, tasks: Sequence[Task]) -> Machine:
    """Measure the rates and count the FLOPs of the tasks' steps. Runs in a process of its own: the one that starts the
    runs stays small, so that they have the memory."""
    import torch

    from benchmarks import floor
    from benchmarks.trees import demonstration_trees, pair_trees
    from posttrain.models import Policy, load

    loaded = load(model)
    architecture = floor.read_architecture(Policy(loaded.model))
    rates = floor.measure_rates(architecture, tokens=1024)
    seconds = {}
    for task in tasks:
        if task.name == "reward":  # it has no projection to the vocabulary, which the floor counts
            continue
        build = pair_trees if task.name == "dpo" else demonstration_trees
        trees = build(read_rows(data), loaded.tokenizer, max_length)
        steps = [trees[i * task.batch : (i + 1) * task.batch] for i in range(1, task.steps)]
        works = [floor.Work.of(step, reference=task.name == "dpo") for step in steps]
        seconds[task.name] = statistics.median(floor.floor_seconds(architecture, work, rates) for work in works)
    return Machine(
        platform.processor() or platform.machine(),
        os.cpu_count(),
        torch.get_num_threads(),
        platform.python_version(),
        torch.__version__,
        floor.table(architecture, rates),
        seconds,
    )


def write(path: Path, machine: Machine, comparisons: Sequence[Comparison]) -> None:
    ratios = [{"speed": c.speed, "memory": c.memory, "floor_share": c.floor_share} for c in comparisons]
    rows = [asdict(c) | ratio for c, ratio in zip(comparisons, ratios, strict=True)]
    path.write_text(json.dumps({"machine": asdict(machine), "results": rows}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    from posttrain.models import resolve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, help="python of the environment that has TRL")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="catalogue name or folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps of each run; the first is not counted")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--task", choices=[task.name for task in TASKS], help="only this one")
    parser.add_argument("--tokens-per-microbatch", type=int, help="of ours; default: what a run would choose")
    given = parser.parse_args()

    tasks = [replace(task, steps=given.steps or task.steps) for task in TASKS if given.task in (None, task.name)]
    folder = str(resolve(given.model).folder.resolve())
    ours_only = ["--tokens-per-microbatch", str(given.tokens_per_microbatch)] if given.tokens_per_microbatch else []
    comparisons = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "rows.jsonl"
        text.write(data, 2 * max(task.batch * task.steps for task in tasks))  # some are too long and left out
        arguments = ["--model", folder, "--data", str(data), "--max-length", str(given.max_length)]
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
            machine = apart.submit(look_at_machine, folder, data, given.max_length, tasks).result()
        print(machine.rates, file=sys.stderr, flush=True)
        for task in tasks:
            if task.name == "reward":
                start = str(Path(scratch) / "reward")
                run_module(sys.executable, "benchmarks.reward_start", ["--model", folder, "--out", start])
                arguments = ["--model", start, *arguments[2:]]
            peer, ours = zip(*run_rounds(task, given.peer, arguments, ours_only, given.rounds), strict=True)
            comparisons.append(compare(task, peer, ours, machine.floor_seconds.get(task.name)))
    print(table(comparisons))
    write(RESULTS, machine, comparisons)
    disagreeing = [c.task.name for c in comparisons if c.loss_gap > LOSSES_AGREE]
    if disagreeing:
        sys.exit(f"the losses differ by more than {LOSSES_AGREE}: {', '.join(disagreeing)}")


if __name__ == "__main__":
    main()
