"""The recipes of the offline family: what they train, and that their held-out prompts are nowhere in their rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from posttrain.config import Data, PreferenceStage, Recipe, TrainingStage, load_recipe
from posttrain.data import read
from posttrain.types import Demonstration, Feedback

RECIPES = Path(__file__).parents[3] / "recipes"
NAMES = ("kto_feedback", "orpo", "simpo")


def recipe(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_read_and_runs_on_what_ships(name: str) -> None:
    found = recipe(name)
    assert (found.name, found.model, found.notes) == (name, "embedded", ())
    last = found.stages[-1]
    assert isinstance(last, PreferenceStage) and last.method == name.split("_")[0]
    for stage in found.stages:
        assert isinstance(stage.data, Data) and all(Path(path).is_file() for path in stage.data.path)


def test_the_feedback_is_unpaired_and_its_weights_follow_the_papers_ratio() -> None:
    stage = recipe("kto_feedback").stages[-1]
    assert isinstance(stage, PreferenceStage) and stage.data is not None
    rows = [row for row in read(list(stage.data.path)) if isinstance(row, Feedback)]
    assert len({row.prompt for row in rows}) == len(rows), "one answer to each question"
    count = Counter(row.good for row in rows)
    assert (count[True], count[False]) == (240, 160)
    ratio = count[True] * stage.parameters["desirable_weight"] / (count[False] * stage.parameters["undesirable_weight"])
    assert 1.0 <= ratio <= 4 / 3


@pytest.mark.parametrize("name", NAMES)
def test_what_is_measured_is_not_trained(name: str) -> None:
    found = recipe(name)
    asked = {text for suite in found.evaluate.suites for text in _prompts([suite.prompts])}
    for stage in found.stages:
        assert isinstance(stage, TrainingStage) and stage.data is not None
        assert not asked & _prompts(stage.data.path), stage.name


def _prompts(paths: list[str] | tuple[str, ...]) -> set[str]:
    texts = set()
    for row in read(list(paths)):
        turns = row.messages if isinstance(row, Demonstration) else row.prompt
        texts.add(next(turn.content for turn in turns if turn.role == "user"))
    return texts
