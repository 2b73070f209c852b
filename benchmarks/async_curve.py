"""What sampling beside training gains, and what it costs, on engines of chosen speed.

    python -m benchmarks.async_curve [--second 0.6] [--steps 14]

The asynchronous source and the one in turns as they are, on `tests.timed_engine`, whose requests take as long as they
are told, and a trainer that waits instead of computing: nothing here needs a core, so that the figures hold on a busy
machine. Three tables:

    curve   throughput against a run in turns, by the share of sampling; the bound is 1 / max(share, 1 - share)
    tail    the same where lengths scatter as those of reasoning do: in turns each step waits for its slowest completion
    waste   staleness, prompts that were dropped, and the mean length of what trained, by `max_staleness` and `late`
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.rollout.engine import Request
from posttrain.training.rl.learners import Imitation
from posttrain.training.rl.source import OnlineSource
from tests.online import loop_of, save_start, tasks_of
from tests.timed_engine import TimedEngine, with_engine

PROMPTS, COMPLETIONS = 8, 4
SHARES = (0.2, 0.35, 0.5, 0.65, 0.8)
WARM = 3
"""Steps that are not counted: the first of an asynchronous run fills its queue."""
COLD = 6
"""Steps of the stage that are not taken: towards its end a run asks no more, and trains on what waits."""
SIGMA = 0.8
"""Of the logarithm of a completion's seconds: the slowest of 32 then takes about five times the median."""

Seconds = Callable[[Request], float]


@dataclass(frozen=True, slots=True)
class Ran:
    """What some steps came to: Ran(seconds=0.41, staleness=0.9, dropped=0.02, waiting=0.3, length=0.11)."""

    seconds: float
    """Of a step, a mean after the first ones."""
    staleness: float
    dropped: float
    """Share of the prompts that were asked."""
    waiting: float
    """Share of the time in which the trainer waited."""
    length: float
    """Mean seconds that the completions took which trained."""


def steps_of(start: Path, rollout: Any, seconds: Seconds, slots: int, training: float, steps: int) -> Ran:
    """Some steps of one source, the updates replaced by `training` seconds of waiting."""
    with tempfile.TemporaryDirectory() as folder:
        loop = loop_of(
            start,
            Path(folder),
            rollout=rollout,
            tasks=tasks_of(200),
            steps=steps + COLD,
            prompts_per_step=PROMPTS,
            completions_per_prompt=COMPLETIONS,
            held_out=0,
            preflight={"mode": "off"},
        )
        source = with_engine(loop, TimedEngine(60, seconds, slots=slots)).source
        assert isinstance(source, OnlineSource)
        took: dict[tuple[Any, ...], float] = {}
        engine: Any = source.setup.sampler.engine
        engine.seconds = lambda request: took.setdefault((tuple(request.prompt), request.completion), seconds(request))
        source.setup = replace(source.setup, learner=Imitation(-math.inf, None))
        values, marks = [], [time.perf_counter()]
        for step in range(steps):
            source.at(step)
            time.sleep(training)
            values.append(source.hooks.end_of_step(step + 1, {}))
            marks.append(time.perf_counter())
        source.hooks.close()
        loop.folder.close()
        lines = (Path(folder) / "rollouts.jsonl").read_text().splitlines()
    trained = [_taken(took, line) for line in lines]
    dropped = sum(one.get("groups_dropped_stale", 0.0) for one in values)
    counted = values[WARM:]
    return Ran(
        (marks[-1] - marks[WARM]) / (steps - WARM),
        statistics.fmean(one["staleness"] for one in counted),
        dropped / (dropped + PROMPTS * steps),
        statistics.fmean(one.get("waiting_share", math.nan) for one in counted),
        statistics.fmean(trained),
    )


def _taken(took: dict[tuple[Any, ...], float], line: str) -> float:
    content = json.loads(line)
    return took[(tuple(content["prompt_ids"]), content["number"])]


def scattered(median: float, seed: int) -> Seconds:
    """A function of the request, so that both modes sample the same completions."""

    def of(request: Request) -> float:
        draw = np.random.default_rng([seed, *map(int, request.prompt), request.completion])
        return float(median * np.exp(SIGMA * draw.standard_normal()))

    return of


def beside(staleness: int, late: str = "drop") -> dict[str, Any]:
    return {"mode": "async", "max_staleness": staleness, "late": late}


# ---------------------------------------------------------------- the tables


def curve(start: Path, second: float, steps: int) -> list[str]:
    lines = ["| sampling | bound | max_staleness 1 | max_staleness 2 | in turns, s |", "|---|---|---|---|---|"]
    for share in SHARES:
        given = (lambda request, share=share: share * second), PROMPTS * COMPLETIONS, (1 - share) * second, steps
        turns = steps_of(start, "sync", *given)
        ratios = [turns.seconds / steps_of(start, beside(staleness), *given).seconds for staleness in (1, 2)]
        bound = 1 / max(share, 1 - share)
        cells = [f"{share:.0%}", f"{bound:.2f}", *(f"{ratio:.2f}" for ratio in ratios), f"{turns.seconds:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


def tail(start: Path, second: float, steps: int) -> list[str]:
    """Slots for a step and a half of completions, so that the next step's begin when the first are done."""
    lines = ["| median completion | in turns, s | max_staleness 1 | 2 | 4 |", "|---|---|---|---|---|"]
    for median in (0.05, 0.1, 0.2):
        given = scattered(median * second, 1), PROMPTS * COMPLETIONS * 3 // 2, 0.3 * second, steps
        turns = steps_of(start, "sync", *given)
        ratios = [turns.seconds / steps_of(start, beside(staleness), *given).seconds for staleness in (1, 2, 4)]
        lines.append(f"| {median * second:.3f} s | {turns.seconds:.3f} | {' | '.join(f'{r:.2f}' for r in ratios)} |")
        print(lines[-1], flush=True)
    return lines


def waste(start: Path, second: float, steps: int) -> list[str]:
    lines = [
        "| max_staleness | late | staleness | dropped | trainer waits | s a step | mean s of what trained |",
        "|---|---|---|---|---|---|---|",
    ]
    given = scattered(0.12 * second, 2), PROMPTS * COMPLETIONS * 3 // 2, 0.3 * second, steps
    for staleness, late in ((0, "drop"), (1, "drop"), (1, "wait"), (2, "drop"), (2, "wait"), (4, "drop")):
        ran = steps_of(start, beside(staleness, late), *given)
        waits = "" if math.isnan(ran.waiting) else f"{ran.waiting:.0%}"
        cells = [str(staleness), late, f"{ran.staleness:.2f}", f"{ran.dropped:.1%}", waits]
        lines.append(f"| {' | '.join(cells)} | {ran.seconds:.3f} | {ran.length:.3f} |")
        print(lines[-1], flush=True)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--second", type=float, default=0.6, help="seconds of a whole step in turns")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--only", choices=("curve", "tail", "waste"), default=None)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        start = save_start(Path(folder) / "start")
        for table in (curve, tail, waste):
            if given.only in (None, table.__name__):
                print(f"\n{table.__name__}", flush=True)
                print("\n".join(["", *table(start, given.second, given.steps)]))


if __name__ == "__main__":
    main()
