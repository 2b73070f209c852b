"""Online training must raise its score on tasks that it does not train on; with frozen weights it must not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from posttrain.training.optimizer import Optimizer
from posttrain.types import Task
from tests.online import early_letters, lines, loop_of, run, save_start, tasks_of

OPTIONS: dict[str, Any] = {
    "steps": 25,
    "prompts_per_step": 4,
    "completions_per_prompt": 6,
    "examine": {"every_steps": 25, "keep": "last"},
    "held_out": 0.3,
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"), num_hidden_layers=2)


def scores(start: Path, folder: Path, method: str, **more: Any) -> tuple[float, float]:
    loop = run(loop_of(start, folder, method, tasks=tasks_of(24), **{**OPTIONS, **more}))
    first, last = (record.values["score"] for record in loop.folder.metrics("held_out"))
    return first, last


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("grpo", {"choices": {"kl": "none"}}),
        ("rloo", {"kl_beta": 0.0}),
        ("ppo", {"completions_per_prompt": 2, "prompts_per_step": 8, "updates_per_rollout": 2, "kl_beta": 0.0}),
        ("online_dpo", {"learning_rate": 3e-3}),
        ("rft", {"least_reward": 0.4}),
    ],
)
def test_the_held_out_score_rises(start: Path, tmp_path: Path, method: str, more: dict[str, Any]) -> None:
    first, last = scores(start, tmp_path, method, **more)
    assert last > first + 0.15, (first, last)


def noise(prompt: Any, completion: str, task: Task) -> float:
    """A reward that has nothing to do with what is right: the same for the same answer, and otherwise a lottery."""
    return hashlib.sha256(f"{task.answer} {completion}".encode()).digest()[0] / 255


def judged(folder: Path, step: int) -> float:
    """Mean of the reward that was meant, over the answers of an examination."""
    found = [line for line in lines(folder, "examinations.jsonl") if line["step"] == step]
    return sum(early_letters(None, line["completion"], None) for line in found) / len(found)  # type: ignore[arg-type]


def test_a_reward_that_is_a_lottery_teaches_nothing(start: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "choices": {"kl": "none"}, "examine": {**OPTIONS["examine"], "completions_per_prompt": 4}}
    run(loop_of(start, tmp_path / "real", "grpo", tasks=tasks_of(24), **options))
    run(loop_of(start, tmp_path / "lottery", "grpo", tasks=tasks_of(24), rewards=(noise,), **options))
    rise = {name: judged(tmp_path / name, 25) - judged(tmp_path / name, 0) for name in ("real", "lottery")}
    assert rise["real"] > 0.15 and rise["lottery"] < rise["real"] / 3, rise


def test_a_learning_rate_of_nothing_changes_nothing(start: Path, tmp_path: Path) -> None:
    first, last = scores(start, tmp_path, "grpo", choices={"kl": "none"}, learning_rate=1e-12, steps=6)
    assert last == first


def test_a_frozen_policy_does_not_rise(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Optimizer.step

    def frozen(self: Optimizer, index: int, rows: Any = ()) -> Any:
        kept = [p.detach().clone() for _, p in self.named]
        update = step(self, index, rows)
        for (_, p), before in zip(self.named, kept, strict=True):
            p.data.copy_(before)
        return update

    monkeypatch.setattr(Optimizer, "step", frozen)
    first, last = scores(start, tmp_path, "grpo", choices={"kl": "none"})
    assert last == first
