"""What a rank compares with the others before it begins, and the restart that it notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.load import load_recipe
from posttrain.launching.worker import input_facts, note_restart, recipe_facts
from posttrain.parallel.failure import Failure
from posttrain.report import write_report
from posttrain.runs.folder import RunFolder

RECIPE = """schema: 1
model: embedded
stages:
- {name: prefer, method: dpo, data: rows.jsonl}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n')
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def test_every_value_of_the_recipe_by_its_key(recipe: Path) -> None:
    facts = recipe_facts(load_recipe(recipe, ["prefer.beta=0.2"]))
    assert facts["prefer.beta"] == "0.2" and facts["model"] == '"embedded"'
    other = recipe_facts(load_recipe(recipe, []))
    assert {key for key in facts if facts[key] != other[key]} == {"prefer.beta"}


def test_every_file_that_it_names(recipe: Path) -> None:
    loaded = load_recipe(recipe, [])
    before = input_facts(loaded)
    rows = recipe.parent / "rows.jsonl"
    assert f"file {rows}" in before
    rows.write_text('{"prompt": "2 + 3?", "chosen": "5", "rejected": "4"}\n')
    after = input_facts(loaded)
    assert {key for key in after if after[key] != before[key]} == {f"file {rows}"}


def test_the_users_modules_and_not_the_project_around_them(recipe: Path) -> None:
    (recipe.parent / "rewards.py").write_text("def short(answer): return 1.0\n")
    (recipe.parent / "notes.txt").write_text("x")
    (recipe.parent / "runs" / "mine" / "prefer").mkdir(parents=True)
    (recipe.parent / "runs" / "mine" / "prefer" / "metrics.jsonl").write_text("{}\n")
    names = {
        Path(key.removeprefix("file ")).name for key in input_facts(load_recipe(recipe, [f"out={recipe.parent}/runs"]))
    }
    assert "metrics.jsonl" not in names and "notes.txt" not in names
    # What a run has made may lie on one machine alone, and is rank 0's to judge.
    made = recipe.parent / "runs" / "mine" / "made.jsonl"
    made.write_text('{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}\n')
    own = input_facts(load_recipe(recipe, [f"out={recipe.parent}/runs", f"prefer.data={made}"]))
    assert not any("made.jsonl" in key for key in own)


def test_a_restart_is_in_the_run_folder_and_in_the_report(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "mine")
    note_restart(run, None)  # it had not begun
    assert not run.path.exists()
    run.path.mkdir()
    run.write_run(name="mine", status="running", stages=(), processes=4)
    failure = Failure(2, 4, "node1", "`score`, at 3 of 8 steps of grpo: training", "the process was killed\nmore")
    note_restart(run, failure)
    note_restart(run, None)
    first, second = run.run().restarts or ()
    assert first.said == "rank 2 (`score`, at 3 of 8 steps of grpo: training): the process was killed"
    assert second.said == "the cause is not known"
    (tmp_path / "mine" / "prefer").mkdir()
    run.stage("prefer").write_stage(name="prefer", method="dpo", status="running")
    page = write_report(run.path).read_text()
    assert "2 times" in page and "rank 2 (`score`" in page
