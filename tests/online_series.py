"""Metric series of online runs: healthy ones drawn at random, and faults planted in them.

A series yields (metrics of a step, metrics of the examination after it or None). Rewards are drawn answer by answer
from tasks of different difficulty, so that their noise, ties and held-out scores hang together as in a real run; real
ones are in tests/data/online_series.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from posttrain.diagnostics.alarms import Alarm, Alarms

Values = dict[str, float]
Point = tuple[Values, Values | None]


@dataclass(frozen=True)
class Run:
    """What a healthy run is like."""

    steps: int = 120
    groups: int = 16
    size: int = 8
    every: int = 10
    held_out: int = 75
    skill: float = -0.5
    """Log-odds of the typical task at the start."""
    learned: float = 1.5
    """Log-odds gained by the end."""
    entropy: float = 0.5
    entropy_left: float = 0.4
    length: float = 120.0
    growth: float = 0.1
    """Log of the growth of answers; they get better with it."""
    kl: float = 8.0
    """Nats per response at the end."""
    truncated: float = 0.05
    malformed: float = 0.02
    refused: float = 0.01
    clipped: float = 0.05
    engine_gap: float = 1e-3
    off_policy: bool = False


def drawn(seed: int) -> Run:
    """One of the many healthy runs that there may be."""
    random = np.random.default_rng(seed)
    groups, size = [(16, 8), (8, 4), (64, 1), (8, 16), (4, 8)][int(random.integers(5))]
    return Run(
        steps=int(random.choice([30, 60, 120, 300])),
        groups=groups,
        size=size,
        every=int(random.choice([5, 10, 20])),
        held_out=int(random.choice([32, 75, 200])),
        skill=random.uniform(-1.5, 0.5),
        learned=random.choice([0.0, 1.0, 2.0]),
        entropy=random.uniform(0.1, 1.5),
        entropy_left=random.uniform(0.25, 1.1),
        length=(length := random.uniform(15, 600)),
        growth=random.uniform(-0.15, 0.25),
        kl=random.uniform(0.0, min(25.0, 0.3 * length)),
        truncated=random.uniform(0, 0.2),
        malformed=random.uniform(0, 0.2),
        refused=random.uniform(0, 0.1),
        clipped=random.uniform(0, 0.15),
        engine_gap=random.choice([0.0, 1e-3]),
        off_policy=bool(random.integers(2)),
    )


def healthy(run: Run, seed: int) -> Iterator[Point]:
    random = np.random.default_rng([seed, 7])
    tasks = random.normal(0, 1.5, run.held_out)
    for step in range(run.steps):
        done = 1 - math.exp(-3 * step / run.steps)
        values = _step(run, random, step, done)
        examined = None
        if step % run.every == 0 or step == run.steps - 1:
            answers = random.random(run.held_out) < _chance(tasks + run.skill + run.learned * done)
            error = float(answers.std(ddof=1)) / math.sqrt(run.held_out)
            examined = {"score": float(answers.mean()), "score_error": error}
        yield values, examined


def _step(run: Run, random: np.random.Generator, step: int, done: float) -> Values:
    count = run.groups * run.size
    chances = _chance(random.normal(0, 1.5, run.groups) + run.skill + run.learned * done)
    rewards = (random.random((run.groups, run.size)) < chances[:, None]).astype(float)
    lengths = np.exp(random.normal(math.log(run.length) + run.growth * done, 0.5, count))
    tokens = float(lengths.sum())
    kl = run.kl * done / run.length
    moved = 0.01 * run.off_policy * math.exp(random.normal(0, 0.3))
    noise = random.normal(0, math.sqrt(2 * (kl + moved) / tokens))
    tied = float((rewards.min(1) == rewards.max(1)).mean()) if run.size > 1 else math.nan
    possible = 1 - 1 / run.size
    k1 = kl - moved + noise  # after updates the tokens are no longer the policy's own
    gap = run.engine_gap * math.exp(random.normal(0, 0.3))
    return {
        "loss": random.normal(0, 0.01),
        "grad_norm": 0.3 * math.exp(random.normal(0, 0.3)),
        "learning_rate": 1e-6,
        "supervised_tokens": tokens,
        "reward": float(rewards.mean()),
        "reward_deviation": float(rewards.std()),
        "abstained_share": 0.0,
        "zero_signal_share": tied,
        "groups": run.groups,
        "groups_trained": run.groups,
        "completions": count,
        "length_sampled": tokens / count,
        "length_generated": tokens / count,
        "entropy_sampled": run.entropy * (1 - (1 - run.entropy_left) * done) * math.exp(random.normal(0, 0.25)),
        "duplicate_share": possible * min(1.0, max(0.0, random.normal(0.2 + 0.4 * done, 0.06))),
        "truncated_share": random.binomial(count, run.truncated) / count,
        "malformed_share": random.binomial(count, run.malformed) / count,
        "refusal_share": random.binomial(count, run.refused) / count,
        "empty_share": 0.0,
        "clip_share_low": run.clipped * random.random(),
        "clip_share_high": run.clipped * random.random(),
        "ratio_mean": random.normal(1, 0.002),
        "kl_k1_old": moved,
        "kl_k1_reference": k1,
        "kl_k3_reference": kl * math.exp(random.normal(0, 0.5)),
        "kl_sequence_reference": k1 * tokens / count,
        "sampler_kl": gap,
        "sampler_ratio_mean": random.normal(1, math.sqrt(2 * gap / tokens)),
        "sampler_effective_size": 1 / (1 + 2 * gap),
    }


def _chance(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


# ---------------------------------------------------------------- planted faults

PLANTED_AT = 40
Fault = Callable[[int, Values], Values]
"""(steps since it was planted, the healthy values) -> what changes."""

BASE = Run()
"""Learns from 0.4 to 0.65 in 120 steps."""


def planted(fault: Fault, seed: int, run: Run = BASE) -> Iterator[Point]:
    for step, (values, examined) in enumerate(healthy(run, seed)):
        yield values | (fault(step - PLANTED_AT, values) if step >= PLANTED_AT else {}), examined


def gamed(
    seed: int, *, score: Callable[[int], float], length: Callable[[int], float] = lambda step: 1.0
) -> Iterator[Point]:
    """The reward rises as it should; the held-out score and the lengths do what they are told."""
    random = np.random.default_rng([seed, 9])
    run = replace(BASE, learned=3.0, growth=0.0)
    for step, (values, examined) in enumerate(healthy(run, seed)):
        tokens = values["length_sampled"] * length(step)
        told = None if examined is None else {"score": score(step) + random.normal(0, 0.025), "score_error": 0.05}
        yield values | {"length_sampled": tokens, "length_generated": tokens}, told


def slowly(step: int, last: float, over: int = 40) -> float:
    """From 0 to `last` in `over` steps, and there it stays."""
    return last * min(1.0, step / over)


def watch(points: Iterator[Point], every: int = 20) -> list[Alarm]:
    """What rings over a run that saves a checkpoint every `every` steps."""
    alarms, raised = Alarms(), []
    for step, (values, examined) in enumerate(points):
        checkpoint = f"step-{step - step % every}" if step >= every else None
        raised += alarms.check(step, values, last_good_checkpoint=checkpoint)
        if examined is not None:
            raised += alarms.check(step, examined, split="held_out", last_good_checkpoint=checkpoint)
    return raised
