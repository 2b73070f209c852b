"""Tasks drawn by pass rate: hand-worked weights, a floor, forgetting, the same draws after a resume, and learning."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.config.curriculum import PassRateCurriculum
from posttrain.config.online import GRPO
from posttrain.errors import ConfigError
from posttrain.training.rl.curriculum import Curriculum
from tests.online import WHOLE, lines, loop_of, run, save_start, source_of, tasks_of, untimed


def curriculum(tasks: int = 4, prompts: int = 2, seed: int = 0, **settings: Any) -> Curriculum:
    return Curriculum(PassRateCurriculum(**settings), tasks, prompts, seed)


def test_weights_by_hand() -> None:
    """Prior 2 at 0.5, 2 completions each, no forgetting: passed 2, 1, 0 of 2 is p = 3/4, 1/2, 1/4; unseen is 1/2.

    4 p (1 - p) = 0.75, 1, 0.75, 1: sum 3.5. Floor 0.1: 0.025 + 0.9 w / 3.5.
    """
    one = curriculum(prior=2.0, half_life=1e12)
    for task, passed in enumerate((2, 1, 0)):
        one.observe(0, task, passed=passed, of=2)
    assert one.pass_rates(1) == pytest.approx([0.75, 0.5, 0.25, 0.5])
    expected = [0.025 + 0.9 * weight / 3.5 for weight in (0.75, 1.0, 0.75, 1.0)]
    assert one.probabilities(1) == pytest.approx(expected)


def test_another_aim_by_hand() -> None:
    """Aim 2/3: weight p^2 (1 - p), 4/27 at its best; p = 1/2 has (1/8) / (4/27) = 27/32."""
    one = curriculum(tasks=2, aim=2 / 3, prior=1e-9, floor=1e-9, half_life=1e12)
    one.observe(0, 0, passed=1, of=2)
    first, second = one.probabilities(0)
    assert first / second == pytest.approx(27 / 32, abs=1e-6)


def test_observations_are_forgotten() -> None:
    """Prior 1 at 0.5 and 0 of 4: 0.5 / 5 = 0.1; one half-life later 0.5 / 3; long after, unknown again."""
    one = curriculum(half_life=10)
    one.observe(0, 1, passed=0, of=4)
    assert one.pass_rates(0)[1] == pytest.approx(0.1)
    assert one.pass_rates(10)[1] == pytest.approx(0.5 / 3)
    assert one.pass_rates(1000)[1] == pytest.approx(0.5)
    one.observe(10, 1, passed=4, of=4)  # 2 + 4 tried, 4 passed
    assert one.pass_rates(10)[1] == pytest.approx(4.5 / 7)


def test_no_task_falls_below_the_floor() -> None:
    one = curriculum(tasks=100, floor=0.2, half_life=1e12)
    for step in range(50):
        for task in range(1, 100):
            one.observe(step, task, passed=0 if task % 2 else 8, of=8)
    probabilities = one.probabilities(50)
    assert probabilities.sum() == pytest.approx(1)
    assert probabilities.min() >= 0.2 / 100
    assert probabilities[0] > 0.5  # the only one that was never asked


def test_draws_follow_the_probabilities() -> None:
    """Each task's share of single draws, over many steps, within four standard errors."""
    one = curriculum(prompts=1, prior=2.0, half_life=1e12)
    for task, passed in enumerate((8, 4, 0)):
        one.observe(0, task, passed=passed, of=8)
    wanted, draws = one.probabilities(0), 4000
    found = Counter(index for step in range(draws) for index in one.at(step))
    for task in range(4):
        assert found[task] / draws == pytest.approx(wanted[task], abs=4 * (wanted[task] / draws) ** 0.5)


def test_a_step_asks_different_tasks_and_all_before_any_twice() -> None:
    one = curriculum(tasks=5, prompts=3)
    assert len(set(one.at(0))) == 3
    assert sorted(one.at(1) + one.more(1, 1, 2, one.at(1))) == [0, 1, 2, 3, 4]
    assert len(one.more(1, 1, 2, range(5))) == 2  # all were asked: some are asked again
    assert Counter(curriculum(tasks=2, prompts=5).at(0)).most_common()[0][1] == 3


def test_draws_are_a_function_of_seed_step_and_what_was_seen() -> None:
    one, same, other = curriculum(tasks=50), curriculum(tasks=50), curriculum(tasks=50, seed=1)
    one.observe(0, 3, passed=1, of=3)
    same.load_state_dict(json.loads(json.dumps(one.state_dict())))
    other.load_state_dict(one.state_dict())
    assert [one.at(step) for step in range(9)] == [same.at(step) for step in range(9)]
    assert [one.at(step) for step in range(9)] != [other.at(step) for step in range(9)]
    assert np.array_equal(one.probabilities(7), same.probabilities(7))


def test_it_samples_the_learnable_tasks_of_a_bandit_and_solves_them_sooner() -> None:
    """A third of the tasks is solved, a third is hopeless, a third is learnt by being asked: its pass rate rises with
    each visit. The curriculum asks the last third most, and passes more of it than equal shares do."""

    def play(guided: bool) -> tuple[float, float]:
        rng, asked = np.random.default_rng(0), np.zeros(90)
        rate = np.repeat([1.0, 0.0, 0.2], 30)
        one = curriculum(tasks=90, prompts=6, half_life=20)
        for step in range(60):
            drawn = one.at(step) if guided else rng.permutation(90)[:6].tolist()
            for task in drawn:
                asked[task] += 1
                one.observe(step, task, passed=int(rng.binomial(8, rate[task])), of=8)
                rate[task] = min(1.0, rate[task] + (0.1 if 0 < rate[task] < 1 else 0.0))
        return asked[60:].sum() / asked.sum(), float(rate[60:].mean())

    (share, learnt), (plain, less) = play(True), play(False)
    assert plain == pytest.approx(1 / 3, abs=0.08)
    assert share > 0.45 and learnt > less + 0.1, (share, learnt, less)


# ---------------------------------------------------------------- in the loop


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


def by_level(prompt: Any, completion: str, task: Any) -> float:
    """Level 0 always passes, level 1 never, level 2 by what the completion is."""
    return (1.0, 0.0, float(sum(map(ord, completion)) % 2))[task.metadata["level"]]


OPTIONS: dict[str, Any] = {
    **WHOLE,
    "rewards": [by_level],
    "curriculum": {"pass_at": 1.0, "floor": 0.05, "prior": 0.5},
    "held_out": 0,
    "learning_rate": 1e-5,
}


def test_the_loop_asks_what_can_be_learnt(start: Path, tmp_path: Path) -> None:
    loop = run(loop_of(start, tmp_path, steps=24, tasks=tasks_of(24), **OPTIONS))
    asked = Counter(int(line["answer"]) % 3 for line in lines(tmp_path, "rollouts.jsonl") if line["step"] > 12)
    assert asked[2] > 1.5 * max(asked[0], asked[1]), asked
    first, *_, last = (record.values for record in loop.folder.metrics("train"))
    assert first["curriculum_unseen_share"] == 1.0 and first["curriculum_pass_rate"] is None
    assert last["curriculum_unseen_share"] < 1 and 0 <= last["curriculum_pass_rate"] <= 1


def test_a_resumed_curriculum_is_the_uninterrupted_one(start: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "steps": 6, "checkpoint": {"every_steps": 2}, "choices": {"groups": "resample"}}
    whole = run(loop_of(start, tmp_path / "whole", **options))
    half = loop_of(start, tmp_path / "halves", **options)
    score = source_of(half).setup.rubric.score

    def killed(items: Any) -> Any:
        if half.step == 3:
            raise KeyboardInterrupt
        return score(items)

    source_of(half).setup.rubric.score = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(half)
    resumed = run(loop_of(start, tmp_path / "halves", **options))
    assert lines(tmp_path / "halves", "rollouts.jsonl") == lines(tmp_path / "whole", "rollouts.jsonl")
    assert untimed(resumed.folder.metrics()) == untimed(whole.folder.metrics())
    assert source_of(resumed).state_dict() == source_of(whole).state_dict()
    pairs = zip(whole.work.policy.parameters(), resumed.work.policy.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_ways_to_write_it() -> None:
    assert GRPO(data="a.jsonl").curriculum is None
    short = GRPO(data="a.jsonl", curriculum="pass_rate").curriculum
    assert short == GRPO(data="a.jsonl", curriculum={"aim": 0.5}).curriculum == PassRateCurriculum()
    with pytest.raises(ConfigError, match="aim"):
        GRPO(data="a.jsonl", curriculum={"aim": 1.0})
