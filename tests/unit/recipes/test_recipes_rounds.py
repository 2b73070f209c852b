"""The recipes that sample and train in rounds: on what the policy before wrote, and measured on other sums."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.config import load_recipe
from posttrain.config.base import MakingStage
from posttrain.data import read
from posttrain.data.questions import question

RECIPES = Path(__file__).parents[3] / "recipes"
NAMES = ("rejection_sampling_rounds", "iterated_dpo", "rejection_sampling_smollm2")


@pytest.mark.parametrize("name", NAMES)
def test_every_round_trains_on_what_the_policy_before_it_wrote(name: str) -> None:
    stages = load_recipe(RECIPES / f"{name}.yaml").stages
    making = [place for place, stage in enumerate(stages) if isinstance(stage, MakingStage)]
    assert len(making) >= 2
    for place in making:
        data = stages[place + 1].data
        assert data is not None and data.stage == stages[place].name
        assert stages[place + 1].OUTPUTS == "policy"


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of a sum in any order, since 3 + 4 tells what 4 + 3 is."""
    return tuple(sorted(map(int, re.findall(r"\d+", text))))


@pytest.mark.parametrize("name", NAMES)
def test_no_sum_that_is_asked_was_sampled_from(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    sampled = {
        question(row).text
        for stage in recipe.stages
        if isinstance(stage, MakingStage) and stage.data is not None
        for path in stage.data.path
        for row in read(path)
    }
    for suite in recipe.evaluate.suites:
        asked = [question(row) for row in read(suite.prompts)]
        assert asked and not sampled & {one.text for one in asked}
        if name.endswith("smollm2"):
            assert not set(map(numbers, sampled)) & {numbers(one.text) for one in asked}
            assert all(sum(numbers(one.text)) == int(one.answer or 0) for one in asked)
