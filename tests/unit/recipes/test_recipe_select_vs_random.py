"""The recipe that asks whether a selection helps: a fair twin, a pool that is what its maker makes, no leak."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from posttrain.config import load_recipe
from posttrain.config.select import Select
from posttrain.config.twins import twin_pairs
from posttrain.data import read
from posttrain.data.questions import question
from posttrain.runs.files import read_jsonl
from tools.selection_pool import pool

RECIPES = Path(__file__).parents[3] / "recipes"


def test_each_twin_differs_from_the_selection_in_its_rows_alone() -> None:
    pairs = twin_pairs(load_recipe(RECIPES / "select_vs_random.yaml").stages)
    assert [(pair.selected, pair.twin, pair.rows) for pair in pairs] == [
        ("on_picked", "on_random", "random"),
        ("on_picked", "on_random_tokens", "random_tokens"),
    ]
    assert all(pair.differs == () and pair.unlike is None for pair in pairs)


def test_the_pool_is_what_its_maker_makes() -> None:
    rows = read_jsonl(RECIPES / "data/mixed_pool.jsonl")
    assert rows == pool()
    assert Counter(row["fault"] for row in rows) == {
        None: 1659,
        "copy": 500,
        "cut": 350,
        "chatter": 250,
        "wrong_sum": 240,
    }


def test_no_question_that_is_asked_is_in_the_pool() -> None:
    recipe = load_recipe(RECIPES / "select_vs_random.yaml")
    stage = recipe.stage("picked")
    assert isinstance(stage, Select) and stage.data is not None
    trained = {question(row).text for row in read(list(stage.data.path))}
    for suite in recipe.evaluate.suites:
        asked = {question(row).text for row in read(suite.prompts)}
        assert asked and not asked & trained
