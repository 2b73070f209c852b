"""Which stages of a recipe are a selection and its random twin: found by what they read, not by their names."""

from __future__ import annotations

from pathlib import Path

from posttrain.config import parse_recipe
from posttrain.config.twins import TwinPair, twin_pairs

HEAD = """
schema: 1
name: mine
model: embedded
stages:
  - {name: picked, method: select, data: rows.jsonl, token_twin: true, steps: [{kind: budget, rows: 3}]}
"""
SELECTED = "  - {name: a, method: sft, data: {stage: picked}}\n"
TWIN = "  - {name: b, method: sft, data: {stage: picked, rows: random}, starts_from: start}\n"


def pairs(tmp_path: Path, stages: str) -> list[TwinPair]:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1?", "completion": "one"}\n')
    return twin_pairs(parse_recipe(HEAD + stages, folder=tmp_path).stages)


def test_siblings_on_a_selection_and_its_twin_are_a_pair(tmp_path: Path) -> None:
    tokens = TWIN.replace("name: b", "name: c").replace("rows: random", "rows: random_tokens")
    assert pairs(tmp_path, SELECTED + TWIN + tokens) == [
        TwinPair("picked", "random", "a", "b", differs=(), unlike=None),
        TwinPair("picked", "random_tokens", "a", "c", differs=(), unlike=None),
    ]
    # The order in the recipe decides nothing.
    assert pairs(tmp_path, TWIN + SELECTED.replace("}}", "}, starts_from: start}")) == [
        TwinPair("picked", "random", "a", "b", differs=(), unlike=None)
    ]


def test_a_twin_without_a_sibling_on_the_selection_is_none(tmp_path: Path) -> None:
    assert pairs(tmp_path, TWIN) == []
    assert pairs(tmp_path, SELECTED) == []
    assert pairs(tmp_path, SELECTED.replace("stage: picked", "path: rows.jsonl") + TWIN) == []


def test_of_several_stages_on_the_selection_the_one_most_like_the_twin_counts(tmp_path: Path) -> None:
    other = SELECTED.replace("name: a", "name: faster").replace("}}", "}, learning_rate: 1e-3}")
    after = SELECTED.replace("name: a", "name: after")
    (pair,) = pairs(tmp_path, other + after + SELECTED.replace("}}", "}, starts_from: start}") + TWIN)
    assert (pair.selected, pair.differs, pair.unlike) == ("a", (), None)


def test_settings_that_differ_beside_the_rows_are_named(tmp_path: Path) -> None:
    twin = TWIN.replace("starts_from", "epochs: 1, starts_from").replace("random}", "random, limit: 2}")
    (pair,) = pairs(tmp_path, SELECTED.replace("}}", "}, epochs: 3}") + twin)
    assert pair.differs == ("`data.limit` none -> 2", "`epochs` 3.0 -> 1.0")


def test_a_twin_that_goes_on_from_the_selection_is_not_comparable(tmp_path: Path) -> None:
    """Without `starts_from` it trains the model that has seen the selection already."""
    (pair,) = pairs(tmp_path, SELECTED + TWIN.replace(", starts_from: start", ""))
    assert pair.unlike == "a starts from start, b from a: give the later one `starts_from: start`"
