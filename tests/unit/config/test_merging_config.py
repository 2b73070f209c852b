"""The settings of a merge: an option exists where its method uses it, and every mistake is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import merge_settings, parse_recipe
from posttrain.config.chain import continued
from posttrain.config.merge_methods import MERGE_METHODS
from posttrain.config.merging import MERGES, CheckpointAverage, Merge
from posttrain.config.paths import models_of
from posttrain.config.varied import Filtered, numbers_of
from posttrain.errors import ConfigError, UnknownKeyError

RECIPE = """
schema: 1
name: two
model: embedded
stages:
- {name: maths, method: sft, data: package://preferences.jsonl}
- {name: code, method: sft, data: package://preferences.jsonl, adapter: {rank: 4}, export: {merge: false}}
- {name: both, method: merge, merge: {kind: ties, models: [{stage: maths}, {stage: code, weight: 0.5}], base: {stage: start}}}
- {name: after, method: dpo, data: package://preferences.jsonl}
"""  # noqa: E501


def test_a_recipe_merges_its_stages() -> None:
    recipe = parse_recipe(RECIPE)
    stage = recipe.stage("both")
    assert isinstance(stage, Merge)
    assert [(source.label, source.stage) for source in stage.merge.sources] == [
        ("start", "start"), ("maths", "maths"), ("code", "code"),
    ]  # fmt: skip
    assert (stage.merge.of_model(0, "weight"), stage.merge.of_model(1, "weight")) == (None, 0.5)
    assert (stage.merge.common("weight"), stage.merge.common("density"), stage.merge.common("lambda")) == (1, 0.2, 1)
    assert parse_recipe(recipe.to_yaml()).stages == recipe.stages
    # A merge is whole weights, whatever it merged: the stage after it goes on with no adapter.
    assert continued(recipe.stages, "both") is not None and continued(recipe.stages, "after") is None


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("stage: maths}", "stage: math}", "no earlier stage named `math` makes a policy"),
        ("{stage: maths}", "{stage: after}", "no earlier stage named `after` makes a policy"),
        ("method: merge,", "method: merge, data: x.jsonl,", "a merge reads no rows"),
        ("method: merge,", "method: merge, search: {suite: maths},", "no suite of this recipe is called `maths`"),
        (
            "kind: ties,",
            "kind: ties, gamma: 0.1,",
            "`gamma` is not a key of ties; breadcrumbs and breadcrumbs_ties have it",
        ),
        ("weight: 0.5", "wieght: 0.5", "did you mean `weight`"),
        ("kind: ties", "kind: tise", "did you mean `ties`"),
        ("kind: ties", "kind: ties, tokens: union, rescale: l2", "expected: one of paper, l1, none"),
    ],
)
def test_mistakes_of_a_recipe(before: str, after: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(RECIPE.replace(before, after))
    assert problem in str(caught.value)
    assert "line 8" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "models", "options", "problem"),
    [
        ("slerp", ["a"], {}, "`slerp` merges another number of models"),
        ("model_stock", ["a"], {}, "expected: at least 2 beside the base"),
        ("nearswap", ["a"], {}, "`t` is missing"),
        ("linear", ["a", "b"], {"base": "c"}, "merges the weights themselves"),
        ("ties", ["a", "b"], {"base": "b"}, "the base `b` is also one of the models"),
        ("linear", [{"model": "a"}, {"model": "b", "weight": -1}], {}, "the weights sum to 0"),
        ("task_arithmetic", [{"model": "a", "weight": 0}], {"normalize": True}, "the weights sum to 0"),
        ("ties", ["a"], {"density": [0.1, 3]}, "a number >= 0 and <= 1 is needed here"),
        ("ties", ["a"], {"density": [{"filter": "mlp", "value": 2}]}, "a number >= 0 and <= 1 is needed here"),
        ("ties", ["a"], {"density": True}, "a number is needed here"),
        ("ties", ["a"], {"density": []}, "at least one"),
        ("ties", ["a"], {"density": [{"filter": "mlp"}]}, "`density.0.value` is missing"),
        ("della", ["a"], {"density": 0.1}, "write `epsilon: 0.1` or less"),
        ("ties", [{"model": "a", "stage": "b"}], {}, "`model` and `stage` both name one"),
        ("ties", [{"weight": 1}], {}, "nothing says which model this is"),
        ("ties", [{"stage": "start", "checkpoints": 3}], {}, "the start of a recipe has no checkpoints"),
        ("ties", [{"stage": "a", "checkpoints": {"decay": 0.5}}], {}, "checkpoints that count alike have no `decay`"),
        ("ties", [], {}, "at least one item"),
        ("linear", ["a", "b"], {"missing_tokens": "pieces"}, "write `tokens: union` with it"),
    ],
)
def test_mistakes(kind: str, models: list[Any], options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merge_settings(kind, models, **options)
    assert problem in str(caught.value)


def test_weights_that_cancel_are_fine_where_nothing_is_divided() -> None:
    models = [{"model": "a"}, {"model": "b", "weight": -1}]
    assert merge_settings("linear", models, normalize=False)
    assert merge_settings("task_arithmetic", models, normalize=True)  # divided by the sum of sizes
    assert merge_settings("ties", models)


@pytest.mark.parametrize("kind", MERGES)
def test_an_option_exists_only_where_it_is_used(kind: str) -> None:
    record, row = MERGES[kind], MERGE_METHODS[kind]
    own = {option.alias or name for name, option in record.model_fields.items()}
    shared = {"kind", "models", "base", "dtype", "tokens", "missing_tokens", "template"}
    assert own == shared | row.per_model.keys() | row.options.keys() | ({"seed"} if row.random else set())
    count = max(row.models[0], 1)
    needed = {name: 0.5 for name, known in row.options.items() if known.default is None}
    settings = merge_settings(kind, ["abc"[at] for at in range(count)], **needed)
    assert record.model_validate(json.loads(settings.model_dump_json(by_alias=True))) == settings
    assert settings.draws_from(7) == 7


def test_a_method_that_is_not_known() -> None:
    with pytest.raises(UnknownKeyError, match="did you mean `task_arithmetic`"):
        merge_settings("task_arithmatic", ["a"])
    with pytest.raises(ConfigError, match="`sce` has no weights to search"):
        Merge(merge={"kind": "sce", "models": ["a", "b"]}, search={"suite": "maths"})


def test_a_seed_of_its_own() -> None:
    assert merge_settings("dare_ties", ["a"], seed=3).draws_from(7) == 3


def test_numbers_of_a_value() -> None:
    settings = merge_settings("ties", [{"model": "a", "weight": {"filter": "mlp", "value": [0, 2]}}])
    weight = settings.of_model(0, "weight")
    assert weight == (Filtered(filter="mlp", value=(0.0, 2.0)),)
    assert list(numbers_of(weight)) == [0, 2]
    assert weight[0].fits("model.layers.0.mlp.up_proj.weight") and not weight[0].fits("model.norm.weight")


def test_weights_of_checkpoints() -> None:
    assert CheckpointAverage(last=5).weights(4) == (0.25,) * 4
    assert CheckpointAverage(average="ema").decay == 0.9
    # m = 0.5 (0.5 a + 0.5 b) + 0.5 c
    assert CheckpointAverage(average="ema", decay=0.5).weights(3) == (0.25, 0.25, 0.5)
    assert sum(CheckpointAverage(average="ema").weights(7)) == pytest.approx(1)


def test_models_of_a_merge_are_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    text = RECIPE.replace("{stage: maths}", "{model: ./tuned}").replace("{stage: start}", "./tuned")
    with pytest.raises(ConfigError, match="also one of the models"):
        parse_recipe(text, folder=tmp_path)
    recipe = parse_recipe(RECIPE.replace("{stage: maths}", "./tuned"), folder=tmp_path)
    assert dict(models_of(recipe))["both.merge.models.0.model"] == str(tmp_path / "tuned")
    with pytest.raises(ConfigError, match="missing"):
        parse_recipe(RECIPE.replace("{stage: maths}", "./missing"), folder=tmp_path)


def test_settings_load_no_torch() -> None:
    code = "import sys, posttrain.config.merging, posttrain.config.mergekit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("search", "merge", "words"),
    [
        ({"over": "density"}, {"kind": "linear"}, "`linear` has no density to search"),
        ({"over": "t"}, {"kind": "ties"}, "`ties` has no t to search"),
        ({"over": "density", "values": [0.5, 2.0]}, {"kind": "ties"}, "a number .* is needed here"),
        ({}, {"kind": "linear", "weight": [0.0, 1.0]}, "`weight` differs between layers or tensors"),
    ],
)
def test_searches_that_have_nothing_to_try(search: dict[str, Any], merge: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Merge(merge={**merge, "models": ["a", "b"]}, search={"suite": "maths", **search})  # type: ignore[arg-type]
    assert Merge(merge={"kind": "slerp", "t": 0.5, "models": ["a", "b"]}, search={"suite": "maths", "over": "t"})  # type: ignore[arg-type]
