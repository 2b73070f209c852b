"""The settings of a selection: which orders of steps are refused, and what a command line adds to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.config.select import Budget, Deduplicate, Keep, SelectSettings
from posttrain.config.select_file import load_select, step_of
from posttrain.errors import ConfigError, SourceError, UnknownKeyError

LENGTH = {"kind": "score", "score": {"kind": "length"}}
LEAKS = {"kind": "decontaminate", "against": "embedded"}
COPIES = {"kind": "deduplicate"}
FEW = {"kind": "budget", "rows": 3}


@pytest.mark.parametrize("before", [COPIES, LENGTH])
def test_decontamination_comes_first(before: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="decontaminated before anything else") as caught:
        SelectSettings(steps=[before, LEAKS])
    assert "keep its paraphrase" in str(caught.value)
    assert len(SelectSettings(steps=[LEAKS, LEAKS, before]).steps) == 3


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([FEW, COPIES], "a step after the budget"),
        ([LENGTH, {**FEW, "by": "lenght"}], "did you mean `length`"),
        ([{**FEW, "by": "length"}, LENGTH], "no score named `length`"),
        ([{**COPIES, "keep": "length"}], "no score named `length`"),
        ([LENGTH, LENGTH], "two scores are named `length`"),
        ([{"kind": "budget"}], "a budget has one size"),
        ([{**FEW, "share": 0.1}], "a budget has one size"),
        ([{**FEW, "by": "random", "lowest": True}], "no scores of which some are lowest"),
        ([{**LENGTH, "keep": {"top": 0.1, "bottom": 0.1}}], "the highest and the lowest"),
        ([{**LENGTH, "keep": {"least": 3, "most": 1}}], "no score is within these bounds"),
        ([{**LENGTH, "keep": {"top": 2}}], "top"),
        ([], r"write `steps: \[\{kind: deduplicate\}\]`"),
        (
            [
                {
                    "kind": "diversify",
                    "method": {"kind": "quotas", "by": "source", "shares": {"a": 0.9, "b": 0.9}},
                    "budget": 4,
                }
            ],
            r"`steps\.0\.method\.shares`",
        ),
    ],
)
def test_what_is_refused(steps: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        SelectSettings(steps=steps)


def test_scores_of_two_names_stand_beside_each_other() -> None:
    named = {"kind": "score", "score": {"kind": "length", "name": "prompt_length", "of": "prompt"}}
    settings = SelectSettings(steps=[LENGTH, named, {**FEW, "by": "prompt_length"}])
    assert [step.label for step in settings.steps] == ["score length", "score prompt_length", "budget"]


# ---------------------------------------------------------------- the command line


def test_a_step_as_it_is_typed() -> None:
    typed = 'score score.kind=column score.column="my score" keep.top=0.2'
    expected = {"kind": "score", "score": {"kind": "column", "column": "my score"}, "keep": {"top": 0.2}}
    assert step_of(typed) == expected
    with pytest.raises(UnknownKeyError, match="did you mean `deduplicate`"):
        step_of("deduplicates near=1")
    with pytest.raises(ConfigError, match="does not set anything"):
        step_of("deduplicate near")
    with pytest.raises(ConfigError, match="quotation marks"):
        step_of('deduplicate of="row')
    with pytest.raises(ConfigError, match="a value, not a group"):
        step_of("score score=form score.kind=form")


def test_what_is_typed_is_added_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "select.yaml"
    path.write_text(
        "order: choice\nsteps:\n  - {kind: deduplicate, near: 0.9}\n  - {kind: budget, share: 0.1, by: random}\n"
    )
    settings = load_select(path, ["score score=form"], budget=7, token_twin=True)
    assert settings.order == "choice" and settings.token_twin
    near, score, budget = settings.steps
    assert isinstance(near, Deduplicate) and near.near == 0.9 and score.label == "score form"
    assert isinstance(budget, Budget) and (budget.rows, budget.share, budget.by) == (7, None, "random")
    assert load_select(path).steps[1].share == 0.1  # type: ignore[union-attr]
    assert load_select(None, budget=5).steps == (Budget(kind="budget", rows=5),)


def test_a_mistake_in_the_file_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "select.yaml"
    path.write_text("steps:\n  - kind: deduplicate\n    naer: 0.9\n")
    with pytest.raises(UnknownKeyError, match="line 3") as caught:
        load_select(path)
    assert "did you mean `near`" in str(caught.value)
    path.write_text("- kind: deduplicate\n")
    with pytest.raises(ConfigError, match="a file of steps is a group of keys"):
        load_select(path)
    with pytest.raises(SourceError, match="cannot be read"):
        load_select(tmp_path / "nothing.yaml")


def test_files_are_beside_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "tests.jsonl").write_text("{}\n")
    path = tmp_path / "select.yaml"
    path.write_text("steps:\n  - {kind: decontaminate, against: [tests.jsonl, human-eval]}\n")
    (step,) = load_select(path).steps
    assert step.against == (str(tmp_path / "tests.jsonl"), "human-eval")  # type: ignore[union-attr]


def test_a_mistake_in_a_typed_step_names_what_was_typed() -> None:
    with pytest.raises(ConfigError) as caught:
        load_select(None, ["score score=form", "deduplicate near=3"])
    assert caught.value.where == "--step 'deduplicate near=3'"
    # The whole sentence: the first line of a description that goes on would end in the middle of it.
    assert "say nearly the same" in (caught.value.remedy or "")


def test_a_recipe_with_stages_is_no_file_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "rec.yaml"
    path.write_text("schema: 1\nmodel: embedded\nstages: []\n")
    with pytest.raises(ConfigError, match="a recipe with stages") as caught:
        load_select(path)
    assert "line 3" in str(caught.value.where) and "posttrain run" in (caught.value.remedy or "")


def test_nothing_that_chooses() -> None:
    with pytest.raises(ConfigError, match="nothing says how rows are chosen"):
        load_select(None)


def test_all_is_kept_by_default() -> None:
    assert Keep().model_dump() == {"least": None, "most": None, "top": None, "bottom": None, "unscored": "keep"}
