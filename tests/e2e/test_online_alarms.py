"""Alarms in real training runs of a tiny model, with a fault planted in the run itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.training.loop import Loop
from posttrain.training.objectives import Algorithm
from posttrain.training.stages import sampling
from tests.online import loop_of, run, save_start, tasks_of

OPTIONS: dict[str, Any] = {
    "steps": 25,
    "prompts_per_step": 4,
    "completions_per_prompt": 6,
    "examine": {"every_steps": 5},
    "held_out": 0.3,
    "preflight": {"on_failure": "warn"},
}


NEVER = {"kind": "regex", "pattern": "no such text"}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"), num_hidden_layers=2)


def trained(start: Path, folder: Path, **more: Any) -> Loop:
    return run(loop_of(start, folder, "grpo", tasks=tasks_of(24), **{**OPTIONS, **more}))


def names(loop: Loop) -> set[str]:
    return {alarm.name for alarm in loop.folder.alarms()}


def test_a_reward_that_rises_before_a_judge_that_is_never_pleased(start: Path, tmp_path: Path) -> None:
    loop = trained(start, tmp_path, examine={"every_steps": 5, "rewards": [NEVER]})
    (alarm,) = [one for one in loop.folder.alarms() if one.name == "reward_hacking"]
    assert alarm.step >= 20 and alarm.evidence["reward"] > alarm.evidence["reward_at_start"] + 0.1
    assert loop.folder.stage().alarms_not_watched == {}


def test_the_same_run_with_its_own_judge_is_silent(start: Path, tmp_path: Path) -> None:
    assert not names(trained(start, tmp_path)) & {"reward_hacking", "length_hacking", "sampler_mismatch", "negative_kl"}


def test_a_trainer_of_another_temperature_than_the_engine(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = sampling.objective_of

    def colder(*arguments: Any, **options: Any) -> Algorithm:
        objective = plain(*arguments, **options)
        return replace(objective, wants=replace(objective.wants, temperature=0.3))

    monkeypatch.setattr(sampling, "objective_of", colder)
    loop = trained(start, tmp_path, steps=4)
    (alarm,) = [one for one in loop.folder.alarms() if one.name == "sampler_mismatch"]
    assert alarm.step == 3 and alarm.evidence["sampler_kl"] > 0.01


def test_without_a_kl_and_without_held_out_tasks_the_run_says_what_it_cannot_see(start: Path, tmp_path: Path) -> None:
    loop = trained(start, tmp_path, steps=1, held_out=0, choices={"kl": "none"})
    blind = loop.folder.stage().alarms_not_watched
    assert set(blind) == {"kl_bounds", "negative_kl", "reward_hacking", "length_hacking"}
    assert "kl_beta" in blind["kl_bounds"] and "held_out" in blind["reward_hacking"]


def test_distillation_without_rewards_is_not_told_that_it_has_none(start: Path, tmp_path: Path) -> None:
    loop = run(loop_of(start, tmp_path, "distil_reverse_kl", rewards=(), steps=12, teacher=str(start)))
    assert "no_reward_signal" not in names(loop)
    assert "reward_deviation" in loop.folder.stage().alarms_not_watched["no_reward_signal"]
