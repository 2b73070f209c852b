"""The KL that steers a run is that of the policy that sampled, over all that it sampled; and a teacher is no start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.rewards.rubric import Scored
from posttrain.rollout.engine import Completion, FinishReason
from posttrain.training.rl.rollouts import Group, Prompt, Response, Rollout, decide
from posttrain.types import Message, RowRef, Task
from tests.online import WHOLE, early_letters, lines, loop_of, run, save_start


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


def sampled_kl(folder: Path, step: int, own: str) -> float:
    """By hand, of the responses as they were written down."""
    sums = [
        float(np.sum(np.array(line[own]) - np.array(line["reference_logprobs"])))
        for line in lines(folder, "rollouts.jsonl")
        if line["step"] == step and line["ids"]
    ]
    assert len(sums) == 12
    return float(np.mean(sums))


def by_step(loop: Any, name: str) -> list[float]:
    return [record.values[name] for record in loop.folder.metrics("train")]


def some(prompt: Any, completion: str, task: Task) -> float:
    """Two tasks in three have a signal; the groups of the others are left out."""
    return early_letters(prompt, completion, task) if task.metadata["level"] else 0.0


DROPPING: dict[str, Any] = {"rewards": [some], "choices": {"groups": "drop"}}


@pytest.mark.parametrize(
    ("method", "options", "own"),
    [
        ("ppo", {"updates_per_rollout": 6}, "old_logprobs"),
        ("grpo", {"updates_per_rollout": 4, **DROPPING}, "old_logprobs"),
        ("rloo", DROPPING, "sampler_logprobs"),
        ("grpo", {}, "sampler_logprobs"),
    ],
)
def test_the_kl_that_is_fed_is_of_the_policy_that_sampled(
    start: Path, tmp_path: Path, method: str, options: dict[str, Any], own: str
) -> None:
    options = {"steps": 3, "held_out": 0, "kl_target": 5.0, "kl_beta": 0.05, **options}
    loop = run(loop_of(start, tmp_path, method, **options))
    told = by_step(loop, "kl_sequence_reference")
    assert abs(told[0]) < 1e-4  # the policy is its start; several updates used to make it negative here
    assert told == pytest.approx([sampled_kl(tmp_path, step, own) for step in (1, 2, 3)], abs=2e-4)
    assert abs(told[1]) > 0.05  # it has moved
    beta = 0.05
    for measured, used in zip(told, by_step(loop, "kl_coefficient"), strict=True):
        assert used == pytest.approx(beta)
        beta *= 1 + 0.1 * min(max(measured / 5.0 - 1, -0.2), 0.2)


def test_it_is_a_mean_over_all_that_was_said_whatever_becomes_of_it() -> None:
    def response(finish: FinishReason, reward: float | None, apart: float) -> Response:
        one = Response(Completion((5, 6), (-1.0, -1.0), finish), "", Scored(reward), reward)
        one.columns["reference_logprobs"] = np.array([-1.0 - apart, -1.0], dtype=np.float32)
        return one

    cut, ended, aborted = FinishReason.LENGTH, FinishReason.STOP_TOKEN, FinishReason.ABORTED
    responses = (
        response(cut, 1.0, 3.0),
        response(ended, 0.0, 1.0),
        response(ended, None, 2.0),
        response(aborted, None, 9.0),
    )
    task = Task((Message("user", "?"),), answer="4", row=RowRef("t.jsonl", 1))
    rollout = Rollout((Group(Prompt(task, (1,), 0), responses),), 1, 0)
    decide(rollout.groups, drop_truncated=True)
    assert [one.trains for one in responses] == [False, True, False, False]
    assert rollout.sequence_kl("sampler_logprobs", "reference_logprobs") == pytest.approx(2.0)


def test_the_end_waits_for_the_same_kl(start: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**WHOLE, "held_out": 0, "steps": 8, "updates_per_rollout": 4}
    told = by_step(run(loop_of(start, tmp_path / "a", **options)), "kl_sequence_reference")
    bound = 0.5 * max(told)
    crossed = next(step for step, value in enumerate(told, start=1) if value > bound)
    loop = run(loop_of(start, tmp_path / "b", stop={"kl_above": bound}, **options))
    assert loop.step == crossed < 8


def test_a_teacher_and_the_start_are_two_models(start: Path, tmp_path: Path) -> None:
    teacher = save_start(tmp_path / "teacher", seed=7)
    options: dict[str, Any] = {"teacher": str(teacher), "rewards": (), "steps": 2, "held_out": 0}
    for kl in ("k2", "exact"):
        loop = run(loop_of(start, tmp_path / kl, "distil_reverse_kl", choices={"kl": kl}, **options))
        first, second = (record.values for record in loop.folder.metrics("train"))
        assert abs(first["kl_sequence_reference"]) < 1e-4 and abs(first["kl_k1_reference"]) < 1e-5
        assert abs(first["kl_loss"]) < 1e-5 and second["kl_loss"] > 1e-5  # pulled to the start, not to the teacher
        assert first["kl_k1_teacher"] == pytest.approx(-first["advantage_mean"], abs=1e-5)
        assert first["advantage_magnitude"] > 0.01
    for line in lines(tmp_path / "k2", "rollouts.jsonl"):
        if line["step"] == 1:
            assert line["reference_logprobs"] == pytest.approx(line["sampler_logprobs"], abs=1e-4)
            assert line["advantages"] == pytest.approx(
                np.array(line["teacher_logprobs"]) - np.array(line["sampler_logprobs"]), abs=1e-5
            )


def test_without_a_kl_there_is_no_reference(start: Path, tmp_path: Path) -> None:
    teacher = save_start(tmp_path / "teacher", seed=7)
    loop = run(
        loop_of(start, tmp_path / "run", "distil_reverse_kl", teacher=str(teacher), rewards=(), steps=1, held_out=0)
    )
    (values,) = [record.values for record in loop.folder.metrics("train")]
    assert not [name for name in values if name.endswith("_reference")] and "kl_k3_teacher" in values
