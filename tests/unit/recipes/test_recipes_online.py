"""The recipes that learn by reinforcement: read, and true to what their comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.config import load_recipe
from posttrain.config.online import OnlineStage
from posttrain.config.suites import PassAtKSuite
from posttrain.data import read
from posttrain.evaluate.suites import load_suite
from posttrain.evaluate.suites.pass_at_k import PassAtK
from posttrain.training.rl.tasks import read_tasks
from tools.embedded.arithmetic import Problem, is_held_out

RECIPE = Path(__file__).parents[3] / "recipes" / "grpo_arithmetic.yaml"


@pytest.mark.parametrize("name", ["grpo_arithmetic_smollm2", "ppo_arithmetic_smollm2"])
def test_the_sums_of_smollm2_are_different_and_few_enough_to_divide(name: str) -> None:
    (stage,) = load_recipe(RECIPE.with_name(f"{name}.yaml")).stages
    assert isinstance(stage, OnlineStage) and stage.data is not None and isinstance(stage.held_out, float)
    questions = [task.prompt[-1].content for task in read_tasks(stage.data)]
    asked = stage.examine.limit
    assert len(set(questions)) == len(questions) and asked is not None  # so that no held-out sum is trained on
    assert stage.held_out * len(questions) >= asked >= 150


def test_the_recipe_is_as_its_comments_say() -> None:
    found = load_recipe(RECIPE)
    _, stage = found.stages
    assert isinstance(stage, OnlineStage) and stage.data is not None
    tasks = list(read_tasks(stage.data))
    assert len(tasks) == 1500 and all(task.answer is not None for task in tasks)
    assert stage.prompts_per_step * stage.completions_per_prompt == 128
    assert int(len(tasks) * float(stage.held_out)) == 75


def test_no_question_of_the_suite_is_trained_on() -> None:
    found = load_recipe(RECIPE)
    _, stage = found.stages
    assert stage.data is not None
    trained = {task.prompt[-1].content for task in read_tasks(stage.data)}
    for suite in found.evaluate.suites:
        assert not trained & {row.prompt[-1].content for row in read(suite.prompts)}  # type: ignore[union-attr]


def test_the_sums_of_the_reach_are_hard_right_and_in_no_training_text() -> None:
    reach = load_recipe(RECIPE).evaluate.suites[1]
    assert isinstance(reach, PassAtKSuite) and (reach.samples, reach.k[-1]) == (64, 64)
    suite = load_suite(reach)  # refuses rows whose own answer is wrong in form
    assert isinstance(suite, PassAtK) and len(suite.tasks) == 40
    for task in suite.tasks:
        numbers = [int(number) for number in re.findall(r"\d+", task.prompt[-1].content or "")]
        signs = re.findall(r"[+-]", task.prompt[-1].content or "")
        problem = Problem(tuple(numbers), tuple(signs))
        assert len(numbers) == 3 and min(numbers) > 9 and str(problem.result) == task.answer
        assert is_held_out(problem)
