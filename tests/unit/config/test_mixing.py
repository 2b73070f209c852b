"""`data: {sources: [...]}` in a recipe: what it may say, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.config import DPO, GRPO, SFT, Correction, Data, Recipe, load_recipe
from posttrain.config.fingerprint import stage_fingerprint, what_changed
from posttrain.config.mixing import step_of
from posttrain.config.yaml_text import parse
from posttrain.errors import ConfigError


def sources(*items: Any, **options: Any) -> Data:
    return Data(sources=list(items), **options)


@pytest.mark.parametrize(
    ("data", "mixes_by"),
    [
        ({"sources": ["a.jsonl", "b.jsonl"]}, "concatenate"),
        ({"sources": ["a.jsonl", {"path": "b.jsonl", "repeat": 2}]}, "concatenate"),
        ({"sources": [{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 1}]}, "weights"),
        ({"sources": ["a.jsonl", "b.jsonl"], "temperature": 2}, "temperature"),
        ({"sources": ["a.jsonl", {"path": "b.jsonl", "epochs": 1}]}, "proportional"),
        ({"sources": ["a.jsonl", {"path": "b.jsonl", "from": 10}]}, "proportional"),
        ({"sources": ["a.jsonl", "b.jsonl"], "epoch": "first_exhausted"}, "proportional"),
        ({"sources": ["a.jsonl", "b.jsonl"], "mixing": "proportional"}, "proportional"),
    ],
)
def test_shares_come_from_what_is_written(data: dict[str, Any], mixes_by: str) -> None:
    assert Data(**data).mixes_by == mixes_by


def test_names_of_sources() -> None:
    data = sources(
        "x/maths.jsonl",
        {"stage": "made"},
        {"path": "owner/hub-set:config"},
        {"path": ["a b.jsonl", "c"]},
        "prose/*.jsonl",
        "code/train/**/*",
    )
    assert [source.name for source in data.sources] == ["maths", "made", "config", "a-b", "prose", "train"]


def test_keys_of_reading_are_shared() -> None:
    data = sources("a.jsonl", {"path": "b.jsonl", "columns": {"prompt": "own"}}, columns={"prompt": "q"})
    assert [source.columns for source in data.sources] == [{"prompt": "q"}, {"prompt": "own"}]


def test_a_point_of_the_run() -> None:
    assert [step_of(moment, 94) for moment in (0, 30, "0%", "50%", "100%")] == [0, 30, 0, 47, 94]


TWO = [{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 1}]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sources": TWO, "path": "c.jsonl"}, "`path` belongs to one of the `sources`"),
        ({"sources": TWO, "limit": 5}, "`limit` belongs to one"),
        ({"sources": TWO, "temperature": 2}, "a source has a `weight`"),
        ({"sources": TWO, "mixing": "proportional"}, "takes shares from elsewhere"),
        ({"sources": [TWO[0], "b.jsonl"]}, "the source `b` has no `weight`"),
        ({"sources": ["a.jsonl", "b.jsonl"], "mixing": "weights"}, "the source `a` has no `weight`"),
        ({"sources": ["a.jsonl"], "mixing": "temperature"}, "needs a temperature"),
        ({"sources": ["a.jsonl"], "mixing": "concatenate", "temperature": 2}, "has no effect with"),
        ({"sources": ["x/a.jsonl", "y/a.jsonl"]}, "two sources are named `a`"),
        ({"sources": [{"path": "a.jsonl", "weight": 0}]}, "greater than 0"),
        ({"sources": [{"path": "a.jsonl", "from": 0.5}]}, "neither a step nor a share"),
        ({"sources": [{"path": "a.jsonl", "until": "101%"}]}, "neither a step nor a share"),
        ({"sources": [{"path": "a.jsonl", "from": 9, "until": 9}]}, "the source `a` is never on"),
        ({"sources": [{"path": "a.jsonl", "until": 0}]}, "the source `a` is never on"),
        ({"sources": [{"path": "a.jsonl", "from": 9}], "mixing": "concatenate"}, "`from` needs turns"),
        ({"sources": [{"path": "a.jsonl", "epochs": 2}], "epoch": "first_exhausted"}, "is not known of a pool"),
        ({"sources": ["a.jsonl"], "mixing": "concatenate", "epoch": "first_exhausted"}, "is not known of a pool"),
        ({"sources": [{"weight": 1}]}, "give one of the two"),
        ({"path": "a.jsonl", "temperature": 2}, "`temperature` is of several `sources`"),
        ({"path": "a.jsonl", "stage": "made"}, "give one of the three"),
        ({"sources": [{"path": "a.jsonl", "wieght": 1}]}, "did you mean `weight`"),
    ],
)
def test_contradictions_are_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Data(**data)
    assert words in str(caught.value) and caught.value.remedy


def test_stages_that_take_no_sources_say_why() -> None:
    with pytest.raises(ConfigError, match=r"`grpo` takes no `sources`: it asks more tasks"):
        GRPO(data={"sources": ["a.jsonl", "b.jsonl"]})
    with pytest.raises(ConfigError, match=r"`correction` takes no `sources`: it reads its rows once"):
        Correction(data={"sources": ["a.jsonl", "b.jsonl"]})


def test_held_out_rows_have_no_turns() -> None:
    held_out = SFT(data="a.jsonl", held_out={"sources": ["b.jsonl", "c.jsonl"]}).held_out
    assert isinstance(held_out, Data) and [part.path for part in held_out.parts] == [("b.jsonl",), ("c.jsonl",)]
    with pytest.raises(ConfigError, match="held-out rows are all measured, so `weight` has no effect"):
        SFT(data="a.jsonl", held_out={"sources": TWO})
    with pytest.raises(ConfigError, match="`mixing` has no effect"):
        SFT(data="a.jsonl", held_out={"sources": ["b.jsonl"], "mixing": "proportional"})


def test_steps_and_the_end_of_an_epoch_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="`epoch` has no effect"):
        DPO(data={"sources": TWO, "epoch": "all_exhausted"}, steps=10)


# ---------------------------------------------------------------- recipes


def recipe_of(folder: Path, data: str) -> Recipe:
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text('{"prompt": "Q?", "completion": "A."}\n')
    text = f"schema: 1\nmodel: embedded\nstages:\n  - {{method: sft, data: {data}}}\n"
    (folder / "mine.yaml").write_text(text)
    return load_recipe(folder / "mine.yaml")


def test_paths_are_found_and_a_written_recipe_reads_back(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "{sources: [{path: a.jsonl, weight: 2, from: 50%}, {path: b.jsonl, weight: 1}]}")
    data = recipe.stages[0].data
    assert data is not None
    assert [part.path for part in data.parts] == [(str(tmp_path / "a.jsonl"),), (str(tmp_path / "b.jsonl"),)]
    (tmp_path / "written.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "written.yaml").stages == recipe.stages


def test_a_file_that_is_not_there_is_named_with_its_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`sft\.data\.sources\.1` names a file") as caught:
        recipe_of(tmp_path, "{sources: [a.jsonl, {path: c.jsonl}]}")
    assert "line 4" in str(caught.value)


def test_a_source_may_be_a_stage_that_comes_before(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no earlier stage named `made` writes data"):
        recipe_of(tmp_path, "{sources: [a.jsonl, {stage: made}]}")


def test_where_a_source_lies_is_no_part_of_what_a_stage_is() -> None:
    def hashed(**first: Any) -> str:
        stage = SFT(data={"sources": [{"path": "a.jsonl", "name": "a", "weight": 2, **first}, TWO[1]]})
        return stage_fingerprint(stage, data=["x", "y"], start_model="m", seed=0)

    assert hashed() == hashed(path="elsewhere/a.jsonl")
    assert hashed() != hashed(weight=3) and hashed() != hashed(until=5) and hashed() != hashed(name="other")


def test_a_stored_mixture_is_no_change(tmp_path: Path) -> None:
    """`from` is written as such, and compared as such."""
    stage = recipe_of(tmp_path, "{sources: [{path: a.jsonl, from: 3}, b.jsonl]}").stages[0]
    from posttrain.config.schema import stage_yaml

    before = parse(stage_yaml(stage, seed=0, split_seed=0), "config.yaml").value
    assert what_changed(before, stage, seed=0, split_seed=0) == []


@pytest.mark.parametrize(
    "value", [{"path": [{"prompt": "a"}]}, {"sources": [[{"prompt": "a"}], "b.jsonl"]}, [{"prompt": "a"}]]
)
def test_rows_in_memory_are_no_path(value: Any) -> None:
    with pytest.raises(ConfigError, match="rows in memory have no place in `path`") as caught:
        SFT(data=value)
    assert "write_jsonl" in str(caught.value)
