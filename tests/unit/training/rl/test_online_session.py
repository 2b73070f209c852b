"""Online stages from Python and from a recipe: plain functions, tasks that a program made, a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.config import parse_recipe
from posttrain.data.read import read
from posttrain.rewards import Scorer
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.preflight import PreflightRecord
from posttrain.training.pipeline import check_recipe, run_recipe
from posttrain.training.rl.tasks import TaskOrder, read_tasks, tasks_fingerprint
from posttrain.types import Task
from tests.online import early_letters, lines, save_start, tasks_of


class Export:
    """An export that is done at once; the real one starts a process."""

    def __init__(self, folder: Path):
        self.folder = folder

    def wait(self) -> str:
        self.folder.mkdir(parents=True)
        return "saved"

    def discard(self) -> None:
        pass


@pytest.fixture(autouse=True)
def quick_export(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "posttrain.training.stages.policy.begin_save", lambda model, tokenizer, folder, *a, **k: Export(folder)
    )
    yield


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return save_start(tmp_path / "start")


SETTINGS: dict[str, Any] = {
    "steps": 2,
    "prompts_per_step": 2,
    "completions_per_prompt": 3,
    "sampling": {"max_new_tokens": 4},
    "learning_rate": 1e-3,
}


def test_train_takes_tasks_and_plain_functions(start: Path, tmp_path: Path) -> None:
    run = pt.train(pt.GRPO(**SETTINGS), start, tasks_of(), rewards=[early_letters], out=tmp_path / "run")
    assert run.steps == 2 and run.report.exists() and run.model.is_dir()
    assert len(lines(tmp_path / "run" / "grpo", "rollouts.jsonl")) == 12
    record = RunFolder(tmp_path / "run").stage("grpo").stage()
    assert record.arithmetic.startswith("2 prompts x 3 completions = 6 completions a step")
    assert record.reference == "live" and record.status == "done"


def test_the_same_from_a_file_and_with_a_loaded_model(start: Path, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "answer": str(i)}) + "\n" for i in range(6)))
    policy = pt.load(start, adapter=pt.LoRA(rank=4))
    run = pt.train(pt.Online("rloo", **SETTINGS), policy, path, rewards=[early_letters], out=tmp_path / "run")
    assert run.steps == 2 and RunFolder(tmp_path / "run").stage("rloo").stage().reference == "adapter_off"
    stage = pt.PPO(**{**SETTINGS, "completions_per_prompt": 1})
    pt.train(stage, start, read(path), rewards=[early_letters], out=tmp_path / "run")
    assert [stage.name for stage in RunFolder(tmp_path / "run").stages()] == ["rloo", "ppo"]


def test_a_recipe_with_a_function_beside_it(start: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def few(prompt, completion, task, *, most=3):\n    return float(len(completion) <= most)\n"
    )
    (tmp_path / "tasks.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}?", "answer": str(i)}) + "\n" for i in range(6))
    )
    text = f"""
schema: 1
name: r
model: {start}
out: {tmp_path / "runs"}
stages:
  - method: grpo
    data: tasks.jsonl
    rewards: [{{kind: function, function: "mine:few", parameters: {{most: 2}}, weight: 2.0}}, {{kind: exact}}]
    steps: 1
    prompts_per_step: 2
    completions_per_prompt: 3
    sampling: {{max_new_tokens: 4}}
"""
    (tmp_path / "r.yaml").write_text(text)
    recipe = pt.load_recipe(tmp_path / "r.yaml")
    checks = {check.name: check for check in check_recipe(recipe)["grpo"].checks}
    assert checks["gold"].status == "pass" and "all of 6 tasks" in checks["gold"].detail
    assert not (tmp_path / "runs").exists()
    run_recipe(recipe)
    written = lines(tmp_path / "runs" / "r" / "grpo", "rollouts.jsonl")
    assert len(written) == 6 and set(written[0]["parts"]) == {"few", "exact"}
    assert all(line["reward"] == 2 * line["parts"]["few"] + line["parts"]["exact"] for line in written)


def test_rows_whose_own_answer_is_refused_are_named(start: Path, tmp_path: Path) -> None:
    tasks = [Task(task.prompt, "1/", task.row) if index == 3 else task for index, task in enumerate(tasks_of(8))]

    def digits(prompt: Any, completion: str, task: Task) -> float:
        return float(completion.isdigit())

    verifier = Scorer("digits", digits, gold=lambda task: task.answer)
    pt.train(pt.GRPO(**SETTINGS, held_out=0), start, tasks, rewards=[verifier], out=tmp_path / "run")
    preflight = RunFolder(tmp_path / "run").stage("grpo").document(PreflightRecord)
    assert preflight is not None
    gold = next(check for check in preflight.checks if check.name == "gold")
    assert gold.status == "warn" and "1 of 8 fail; tasks.jsonl, row 4" in gold.detail


def test_made_tasks_are_their_own_content() -> None:
    stages = "[{method: grpo, rewards: [{kind: reasoning_gym}], data: DATA}]"
    text = f"schema: 1\nname: a\nmodel: embedded\nstages: {stages}\n"
    pytest.importorskip("reasoning_gym")
    address = "reasoning_gym:chain_sum?size=5&seed=1"
    (stage,) = parse_recipe(text.replace("DATA", f'"{address}"')).stages
    assert stage.data is not None and stage.data.path == (address,)
    tasks = list(read_tasks(stage.data))
    assert len(tasks) == 5 and tasks[0].metadata["reasoning_gym"]["name"] == "chain_sum"
    other = stage.data.model_copy(update={"path": (address.replace("seed=1", "seed=2"),)})
    assert tasks_fingerprint(stage.data) != tasks_fingerprint(other)


def test_the_order_is_a_function_of_seed_and_step() -> None:
    order = TaskOrder.plan(10, 4, epochs=2, steps=None, seed=3)
    asked = [index for step in range(5) for index in order.at(step)]
    assert sorted(asked[:10]) == sorted(asked[10:20]) == list(range(10))
    assert asked == [index for step in range(5) for index in TaskOrder(10, 4, 99, 3).at(step)]
    more = order.more(2, 1, 3, order.at(2))
    assert more == order.more(2, 1, 3, order.at(2)) != order.more(2, 2, 3, order.at(2))
    assert not set(more) & set(order.at(2))
    assert len(order.more(2, 1, 3, range(10))) == 3  # all were asked: some are asked again
