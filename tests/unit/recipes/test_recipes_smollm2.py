"""The two recipes that teach SmolLM2 sums: one task set, and no held-out question among those that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.config import load_recipe
from posttrain.config.online import OnlineStage
from posttrain.training.rl.tasks import TaskSet, load_tasks

RECIPES = Path(__file__).parents[3] / "recipes"
NAMES = ("grpo_arithmetic_smollm2", "ppo_arithmetic_smollm2")


class Bytes:
    """Of an encoder, what tasks ask: a prompt's ids."""

    def prompt(self, messages: Any, tools: Any = ()) -> list[int]:
        return list(messages[-1].content.encode())


def stage_of(name: str) -> OnlineStage:
    (stage,) = load_recipe(RECIPES / f"{name}.yaml").stages
    assert isinstance(stage, OnlineStage)
    return stage


def tasks_of(name: str, folder: Path) -> TaskSet:
    pytest.importorskip("reasoning_gym")
    stage = stage_of(name)
    return load_tasks(stage.data, stage.held_out, None, Bytes(), folder=folder, longest=None, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_in_the_comments(name: str, tmp_path: Path) -> None:
    tasks = tasks_of(name, tmp_path)
    assert (len(tasks.train), len(tasks.held_out)) == (256, 208)
    asked = [prompt.task.prompt[-1].content or "" for prompt in (*tasks.train, *tasks.held_out)]
    assert len(set(asked)) == 464 and all(text.count("+") in (1, 2) for text in asked)
    assert stage_of(name).prompts_per_step * stage_of(name).completions_per_prompt == 64


def test_both_ask_and_examine_the_same(tmp_path: Path) -> None:
    first, second = (tasks_of(name, tmp_path) for name in NAMES)
    assert [prompt.ids for prompt in first.train] == [prompt.ids for prompt in second.train]
    assert [prompt.ids for prompt in first.held_out] == [prompt.ids for prompt in second.held_out]
    assert stage_of(NAMES[0]).examine == stage_of(NAMES[1]).examine
