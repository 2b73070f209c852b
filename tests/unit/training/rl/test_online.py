"""Online stages end to end on a tiny model: what is sampled, what is written, when it stops, what is kept."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.config.online import ONLINE_STAGES
from posttrain.errors import ConfigError, EmptyDatasetError, RewardError
from posttrain.runs.progress import Progress
from posttrain.runs.records.preflight import PreflightRecord
from posttrain.runs.records.stage import BestExamination
from posttrain.types import Task
from tests.online import WHOLE, early_letters, lines, loop_of, run, save_start, source_of, tasks_of


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_start(tmp_path_factory.mktemp("start"))


class Said(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def zero(prompt: Any, completion: str, task: Task) -> float:
    return 0.0


def weights(loop: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in loop.work.policy.model.named_parameters()}


def batches_of(loop: Any) -> Any:
    """What the first step trains on."""
    try:
        return source_of(loop).at(0)
    finally:
        loop.folder.close()


@pytest.mark.parametrize("method", [*(name for name in ONLINE_STAGES if name not in ("maxrl", "distil_reverse_kl"))])
def test_every_row_of_the_table_trains(start: Path, tmp_path: Path, method: str) -> None:
    loop = loop_of(start, tmp_path, method, steps=1, held_out=0)
    before = weights(loop)
    run(loop)
    (values,) = [record.values for record in loop.folder.metrics("train")]
    assert np.isfinite(values["loss"]) and values["grad_norm"] > 0
    assert any(not torch.equal(before[name], p) for name, p in loop.work.policy.model.named_parameters())


def test_maxrl_takes_rewards_of_0_and_1(start: Path, tmp_path: Path) -> None:
    def right(prompt: Any, completion: str, task: Task) -> float:
        return float(completion < "P")

    run(loop_of(start, tmp_path / "a", "maxrl", rewards=[right], steps=1))
    with pytest.raises(ConfigError, match="right"):
        run(loop_of(start, tmp_path / "b", "maxrl", steps=1))


def test_a_teacher_needs_no_reward(start: Path, tmp_path: Path) -> None:
    teacher = save_start(tmp_path / "teacher", seed=7)
    loop = loop_of(start, tmp_path / "run", "distil_reverse_kl", teacher=str(teacher), rewards=(), steps=15, held_out=0)
    run(loop)
    divergence = [record.values["kl_k1_teacher"] for record in loop.folder.metrics("train")]
    assert np.mean(divergence[-3:]) < 0.8 * np.mean(divergence[:3])


# ---------------------------------------------------------------- what is written


def test_the_line_says_what_a_step_is(start: Path, tmp_path: Path) -> None:
    loop = loop_of(start, tmp_path)
    assert loop.arithmetic().startswith(
        "3 prompts x 4 completions = 12 completions a step, 1 update on all 3 prompts; 9 tasks, 0.667 epochs, 2 steps"
    )


def test_phases_are_timed_and_counted(start: Path, tmp_path: Path) -> None:
    loop = run(loop_of(start, tmp_path))
    for record in loop.folder.metrics("train"):
        values = record.values
        phases = [values[f"seconds_{name}"] for name in ("sync", "generate", "score", "logprobs", "update")]
        assert min(phases) >= 0 and values["seconds_generate"] > 0 and values["seconds_update"] > 0
        assert values["completions"] == 12 and values["groups"] == 3
        assert 0 <= values["zero_signal_share"] <= 1 and values["reward/early_letters"] == values["reward"]


def test_the_first_step_explains_its_zero_loss(start: Path, tmp_path: Path) -> None:
    said = Said()
    run(loop_of(start, tmp_path, progress=said, kl_beta=0.0))
    assert any("Watch the reward, not the loss" in line for line in said.lines)


def test_answers_of_the_held_out_tasks_are_kept(start: Path, tmp_path: Path) -> None:
    loop = run(loop_of(start, tmp_path))
    examined = lines(tmp_path, "examinations.jsonl")
    assert {line["step"] for line in examined} == {0, 2}
    trained = {line["row"] for line in lines(tmp_path, "rollouts.jsonl")}
    assert not trained & {line["row"] for line in examined}
    scores = [record.values["score"] for record in loop.folder.metrics("held_out")]
    means = [np.mean([line["score"] for line in examined if line["step"] == step]) for step in (0, 2)]
    assert scores == pytest.approx(means)


# ---------------------------------------------------------------- groups


def test_a_step_without_any_signal_updates_nothing_and_says_so(start: Path, tmp_path: Path) -> None:
    said = Said()
    loop = loop_of(start, tmp_path, "dapo", rewards=[zero], progress=said, steps=1, choices={"shaping": "none"})
    before = weights(loop)
    run(loop)
    (values,) = [record.values for record in loop.folder.metrics("train")]
    assert values["zero_signal_share"] == 1 and values["groups_trained"] == 0 and "loss" not in values
    assert values["groups"] == 12  # three, and three rounds of others in their place
    assert all(torch.equal(before[name], p) for name, p in loop.work.policy.model.named_parameters())
    assert any("no update: no group has a signal" in line for line in said.lines)


def test_resampled_groups_fill_the_step(start: Path, tmp_path: Path) -> None:
    def some(prompt: Any, completion: str, task: Task) -> float:
        return early_letters(prompt, completion, task) if task.metadata["level"] else 0.0

    options: dict[str, Any] = {"steps": 1, "choices": {"shaping": "none"}, "resample_rounds": 4}
    values = run(loop_of(start, tmp_path / "a", "dapo", rewards=[some], **options)).folder.metrics("train")[0].values
    assert values["groups_trained"] == 3 <= values["groups"]
    dropped = (
        run(loop_of(start, tmp_path / "b", rewards=[some], steps=1, choices={"groups": "drop"}))
        .folder.metrics("train")[0]
        .values
    )
    assert dropped["groups"] == 3
    assert dropped["groups_trained"] == round(3 * (1 - dropped["zero_signal_share"]))


def test_updates_use_each_completion_equally_often(start: Path, tmp_path: Path) -> None:
    loop = loop_of(start, tmp_path, updates_per_rollout=6, prompts_per_update=1, steps=1)
    batches = batches_of(loop)
    assert [len(batch) for batch in batches] == [1] * 6
    keys = sorted(tree.key for batch in batches for tree in batch)
    assert keys[0::2] == keys[1::2] and len(set(keys)) == 3
    assert "old_logprobs" in batches[0][0].branches[0].columns


def test_a_group_larger_than_a_microbatch_is_taken_apart(start: Path, tmp_path: Path) -> None:
    loop = loop_of(start, tmp_path, compute={"tokens_per_microbatch": 30}, steps=1)
    (batch,) = batches_of(loop)
    assert len(batch) > 3 and sum(len(tree.branches) for tree in batch) == 12
    largest = max(len(tree.branches) for tree in batch)
    assert all(tree.num_tokens <= 30 or len(tree.branches) == 1 for tree in batch) and largest < 4


def test_soft_overlong_is_a_part_of_the_reward(start: Path, tmp_path: Path) -> None:
    run(loop_of(start, tmp_path, "dapo", rewards=[zero], steps=1, choices={"groups": "keep"}))
    for line in lines(tmp_path, "rollouts.jsonl"):
        assert line["reward"] == line["parts"]["overlong"] == (-1.0 if len(line["ids"]) == 6 else 0.0)


def test_abstained_responses_do_not_train(start: Path, tmp_path: Path) -> None:
    asked = count()

    def every_other(prompt: Any, completion: str, task: Task) -> float | None:
        return None if next(asked) % 2 else early_letters(prompt, completion, task)

    loop = run(loop_of(start, tmp_path, rewards=[every_other], steps=1))
    assert loop.folder.metrics("train")[0].values["abstained_share"] == 0.5
    for line in lines(tmp_path, "rollouts.jsonl"):
        assert all(line["mask"]) == (line["reward"] is not None)


# ---------------------------------------------------------------- stopping, keeping


def test_the_best_weights_are_kept(start: Path, tmp_path: Path) -> None:
    judged = {"calls": 0}

    def falling(prompt: Any, completion: str, task: Task) -> float:
        """Examinations get worse: the policy is asked at the start, at step 1 and at step 2."""
        return early_letters(prompt, completion, task)

    loop = loop_of(start, tmp_path, rewards=[falling], steps=3, examine={"every_steps": 1})
    examiner = source_of(loop).setup.examiner
    scores, seen = iter([0.1, 0.9, 0.2, 0.3]), {}
    judge = examiner._judge

    def told(step: int, score: float) -> None:
        judge(step, next(scores))
        seen[step] = weights(loop)
        judged["calls"] += 1

    examiner._judge = told  # type: ignore[method-assign]
    run(loop)
    assert judged["calls"] == 4 and examiner.best == (1, 0.9)
    assert all(torch.equal(seen[1][name], p) for name, p in loop.work.policy.model.named_parameters())
    assert loop.folder.stage().best == BestExamination(1, 0.9)


def test_an_examination_that_nobody_judged_is_none(start: Path, tmp_path: Path) -> None:
    """NaN first: the best is found all the same, and patience counts from there."""
    loop = loop_of(start, tmp_path, steps=8, stop={"patience": 2}, examine={"every_steps": 1})
    examiner = source_of(loop).setup.examiner
    found = []
    for step, score in enumerate([float("nan"), 0.1, float("nan"), 0.9, float("nan"), 0.5, float("nan"), 0.4]):
        examiner._judge(step, score)
        found.append((examiner.best, examiner.stop() is not None))
    loop.folder.close()
    bests = [None, (1, 0.1), (1, 0.1), (3, 0.9), (3, 0.9), (3, 0.9), (3, 0.9), (3, 0.9)]
    assert found == [(best, step == 7) for step, best in enumerate(bests)]


@pytest.mark.parametrize(
    ("stop", "steps", "why"),
    [
        ({"target_score": 0.0}, 0, "was wanted"),
        ({"patience": 1}, None, "no better held-out score"),
        ({"kl_above": 1e-9}, None, "nats a response, above"),
    ],
)
def test_stop_conditions(start: Path, tmp_path: Path, stop: dict[str, Any], steps: int | None, why: str) -> None:
    said = Said()
    reward = [zero] if "patience" in stop else [early_letters]
    loop = loop_of(start, tmp_path, rewards=reward, steps=20, examine={"every_steps": 1}, stop=stop, progress=said)
    run(loop)
    assert loop.step < 20 if steps is None else loop.step == steps
    assert any(why in line for line in said.lines)
    assert loop.run() == loop.step  # resumed, it is over


def test_an_adaptive_kl_moves_its_weight(start: Path, tmp_path: Path) -> None:
    loop = run(loop_of(start, tmp_path, kl_target=1e-6, kl_beta=0.1, steps=3))
    used = [record.values["kl_coefficient"] for record in loop.folder.metrics("train")]
    assert used[0] == 0.1 and used[2] > used[1]


# ---------------------------------------------------------------- PPO


@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "rank": 4}])
@pytest.mark.parametrize("backbone", ["train", "freeze"])
def test_ppo_learns_values_too(start: Path, tmp_path: Path, adapter: Any, backbone: str) -> None:
    options: dict[str, Any] = {**WHOLE, "updates_per_rollout": 2, "prompts_per_update": 3, "completions_per_prompt": 2}
    loop = loop_of(start, tmp_path, "ppo", adapter=adapter, value_backbone=backbone, steps=6, **options)
    critic, _ = loop.hooks.parts["value"]
    shared = {id(p) for p in loop.work.policy.model.parameters()} & {id(p) for p in critic.parameters()}
    assert bool(shared) == (adapter is not None)
    trains = [name for name, p in critic.named_parameters() if p.requires_grad]
    assert (trains == ["score.weight"]) == (backbone == "freeze")
    run(loop)
    values = [record.values for record in loop.folder.metrics("train")]
    assert values[-1]["value_loss"] < values[0]["value_loss"]
    first = [line for line in lines(tmp_path, "rollouts.jsonl") if line["step"] == 1]
    assert {value for line in first for value in line["values"]} == {0.0}
    assert all(v["value_grad_norm"] > 0 and np.isfinite(v["value_loss"]) for v in values)


# ---------------------------------------------------------------- pairs and imitation


def test_online_dpo_trains_on_the_best_and_the_worst(start: Path, tmp_path: Path) -> None:
    loop = loop_of(start, tmp_path, "online_dpo", parameters={"beta": 0.1}, steps=1)
    (batch,) = batches_of(loop)
    rewards: dict[tuple[str, tuple[int, ...]], float] = {}
    for line in lines(tmp_path, "rollouts.jsonl"):
        rewards[line["row"], tuple(line["ids"])] = line["reward"]
    for tree in batch:
        of_row = [reward for (row, _), reward in rewards.items() if row == str(tree.row)]
        chosen, rejected = (rewards[str(tree.row), tuple(b.ids.tolist())] for b in tree.branches)
        assert (chosen, rejected) == (max(of_row), min(of_row))
    run(loop_of(start, tmp_path / "run", "online_dpo", steps=2))


def test_online_dpo_takes_the_reward_gap_as_odpos_margin(start: Path, tmp_path: Path) -> None:
    loop = run(loop_of(start, tmp_path, "online_dpo", objective="odpo", steps=1, held_out=0))
    assert loop.folder.metrics("train")[0].values["grad_norm"] > 0


def test_rft_imitates_what_is_good_enough(start: Path, tmp_path: Path) -> None:
    loop = loop_of(start, tmp_path, "rft", least_reward=0.3, most_per_prompt=2, steps=1)
    batches = batches_of(loop)
    good = {tuple(line["ids"]) for line in lines(tmp_path, "rollouts.jsonl") if line["reward"] >= 0.3}
    trained = [tuple(branch.ids.tolist()) for tree in batches[0] for branch in tree.branches]
    assert trained and set(trained) <= good and all(len(tree.branches) <= 2 for tree in batches[0])
    run(loop_of(start, tmp_path / "run", "rft", least_reward=0.3, steps=2))


# ---------------------------------------------------------------- what is refused


def test_a_stage_without_rewards_is_refused(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing says what a good completion is"):
        loop_of(start, tmp_path, rewards=())


def test_a_reward_that_fails_names_itself_and_the_row(start: Path, tmp_path: Path) -> None:
    def broken(prompt: Any, completion: str, task: Task) -> float:
        raise KeyError("level")

    with pytest.raises(RewardError, match=r"`broken` raised KeyError"):
        run(loop_of(start, tmp_path, rewards=[broken]))


def test_prompts_that_leave_no_room_are_dropped_and_counted(start: Path, tmp_path: Path) -> None:
    with pytest.raises(EmptyDatasetError, match="no task is left"):
        loop_of(start, tmp_path / "a", max_length=8)
    with pytest.raises(ConfigError, match="leave no room"):
        loop_of(start, tmp_path / "b", max_length=6)
    tasks = tasks_of()
    long = Task((tasks[0].prompt[0].__class__("user", "x" * 80),), "1", tasks[0].row)
    loop = loop_of(start, tmp_path / "c", tasks=[long, *tasks[1:]], max_length=60)
    assert source_of(loop).setup.order.tasks < 12
    check = next(one for one in loop.folder.document(PreflightRecord).checks if one.name == "data")  # type: ignore[index]
    assert check.evidence["dropped"] == {"too_long": 1} and re.search("1 dropped", check.detail)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_experts_are_balanced_while_sampling(tmp_path: Path, method: str) -> None:
    """With the model's own weight, as TRL's GRPO and RLOO; a step of many micro-batches counts its shares first."""
    start = save_start(tmp_path / "start", arch="qwen3_moe", router_aux_loss_coef=0.05)
    loop = loop_of(start, tmp_path / "stage", method, steps=1)
    run(loop)
    assert loop.work.algorithm.router is not None and loop.work.algorithm.router.coefficient == 0.05
    (values,) = (line.values for line in loop.folder.metrics("train"))
    assert 1.9 < values["router_aux_loss"] < 4 and values["router_load_max"] >= 1
