"""T73, online: a gamed reward and a dead one raise two different alarms, each with the last good checkpoint.

The proxy is the reward that trains; what it stands for is the score on held-out tasks (open-r1#255, the
reward-hacking-grpo post). A run in which both rise raises nothing.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from posttrain.diagnostics.alarms import Alarm, Alarms

Values = dict[str, float]


def watched(
    train: Callable[[int, Random], Values], score: Callable[[int], float], steps: int = 80, seed: int = 0
) -> list[Alarm]:
    """A checkpoint every 20 steps, an examination of 75 tasks every 10."""
    random, alarms, raised = Random(seed), Alarms(), []
    for step in range(steps):
        checkpoint = f"step-{step // 20 * 20}" if step >= 20 else None
        raised += alarms.check(step, train(step, random), last_good_checkpoint=checkpoint)
        if step % 10 == 0:
            held_out = {"score": score(step) + random.gauss(0, 0.01)}
            raised += alarms.check(step, held_out, split="held_out", last_good_checkpoint=checkpoint)
    return raised


def climbing(step: int, random: Random) -> Values:
    return {
        "loss": random.gauss(0, 0.01),
        "grad_norm": 0.3 * 2 ** random.gauss(0, 0.3),
        "learning_rate": 1e-6,
        "reward": 0.4 + 0.005 * step + random.gauss(0, 0.06),
        "reward_deviation": 0.4,
        "zero_signal_share": min(1.0, max(0.0, random.gauss(0.3, 0.1))),
        "truncated_share": 0.05,
        "length_generated": 30 + random.gauss(0, 1),
    }


@pytest.mark.parametrize("seed", range(5))
def test_t73_a_gamed_reward(seed: int) -> None:
    (alarm,) = watched(climbing, lambda step: 0.4 + 0.005 * min(step, 40) - 0.008 * max(0, step - 40), seed=seed)
    assert (alarm.name, alarm.severity) == ("reward_hacking", "warning")
    assert alarm.evidence["best_step"] in (30, 40, 50) and alarm.evidence["score"] < alarm.evidence["best_score"]
    assert alarm.last_good_checkpoint in ("step-20", "step-40")
    assert "rollouts.jsonl" in alarm.remedy


@pytest.mark.parametrize("seed", range(5))
def test_t73_a_reward_that_the_held_out_tasks_never_follow(seed: int) -> None:
    (alarm,) = watched(climbing, lambda step: 0.4, seed=seed)
    assert alarm.name == "reward_hacking" and alarm.step >= 30


@pytest.mark.parametrize("seed", range(5))
def test_t73_every_completion_at_the_limit(seed: int) -> None:
    def stuck(step: int, random: Random) -> Values:
        return (
            climbing(step, random)
            | {"reward": 0.0, "reward_deviation": 0.0}
            | ({"truncated_share": 1.0, "zero_signal_share": 1.0})
        )

    (alarm,) = watched(stuck, lambda step: 0.0, seed=seed)
    assert (alarm.name, alarm.severity, alarm.step) == ("no_reward_signal", "critical", 9)
    assert "100% of the completions are cut at the limit" in alarm.message and "max_new_tokens" in alarm.remedy


def test_t73_tasks_that_are_all_too_easy_are_told_from_the_limit() -> None:
    def solved(step: int, random: Random) -> Values:
        return climbing(step, random) | {"reward": 1.0, "reward_deviation": 0.0, "zero_signal_share": 1.0}

    (alarm,) = watched(solved, lambda step: 1.0)
    assert alarm.name == "no_reward_signal" and "limit" not in alarm.message and "tasks" in alarm.remedy


@pytest.mark.parametrize("seed", range(20))
def test_t73_silent_when_both_rise_or_nothing_does(seed: int) -> None:
    assert watched(climbing, lambda step: 0.3 + 0.003 * step, seed=seed) == []

    def still(step: int, random: Random) -> Values:
        return climbing(0, random)

    assert watched(still, lambda step: 0.4, seed=seed) == []
