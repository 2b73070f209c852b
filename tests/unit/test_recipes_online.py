"""The recipes that learn by reinforcement: read, and true to what their comments say."""

from __future__ import annotations

from pathlib import Path

from posttrain.config import load_recipe
from posttrain.config.online import OnlineStage
from posttrain.data import read
from posttrain.training.tasks import read_tasks

RECIPE = Path(__file__).parents[2] / "recipes" / "grpo_arithmetic.yaml"


def test_the_recipe_is_as_its_comments_say() -> None:
    found = load_recipe(RECIPE)
    _, stage = found.stages
    assert isinstance(stage, OnlineStage) and stage.data is not None
    tasks = read_tasks(stage.data)
    assert len(tasks) == 1500 and all(task.answer is not None for task in tasks)
    assert stage.prompts_per_step * stage.completions_per_prompt == 128
    assert int(len(tasks) * float(stage.held_out)) == 75


def test_no_question_of_the_suite_is_trained_on() -> None:
    found = load_recipe(RECIPE)
    _, stage = found.stages
    assert stage.data is not None
    trained = {task.prompt[-1].content for task in read_tasks(stage.data)}
    assert not trained & {row.prompt[-1].content for row in read(found.evaluate.suites[0].prompts)}  # type: ignore[union-attr]
