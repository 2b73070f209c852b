"""The stage `select`: its rows and their random twin are what later stages read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import parse_recipe
from posttrain.config.fingerprint import stage_fingerprint
from posttrain.config.select import Select
from posttrain.config.settings import Data
from posttrain.config.stages import SFT
from posttrain.errors import ConfigError
from posttrain.runs.files import read_json, read_jsonl
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.selection import SelectionManifest
from posttrain.training.pipeline import _with_data
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.select import SELECT
from posttrain.training.stages.table import kind_of_stage

STEPS: list[dict[str, Any]] = [{"kind": "deduplicate"}, {"kind": "budget", "rows": 3}]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{n % 8}?", "completion": "yes", "n": n} for n in range(10)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    return path


def context(stage: Select, folder: Path) -> StageContext[Select]:
    return StageContext(stage, "embedded", StageFolder(folder / "run" / stage.name), 0, Progress())


def test_the_stage_writes_both_and_counts_all(tmp_path: Path, rows: Path) -> None:
    stage = Select(name="picked", data={"path": str(rows), "bad_rows": "skip"}, steps=STEPS)
    assert kind_of_stage(stage) is SELECT
    ctx = context(stage, tmp_path)
    counts = SELECT.make(ctx, SELECT.inputs(ctx))
    out = ctx.folder.path
    # rows 9 and 10 have no `yes` of their own: they repeat 1 and 2 but for the column `n`
    assert (counts.read, counts.kept, counts.dropped) == (11, 3, {"bad_json": 1, "duplicate": 2, "over_budget": 5})
    assert len(read_jsonl(out / "data.jsonl")) == len(read_jsonl(out / "random.jsonl")) == 3
    assert len(read_jsonl(out / "rejected.jsonl")) == 8
    assert SelectionManifest.from_json(read_json(out / "manifest.json")).read == 11


def test_a_stand_in_has_the_form_of_the_output(tmp_path: Path, rows: Path) -> None:
    stage = Select(name="picked", data={"path": str(rows), "bad_rows": "skip"}, steps=STEPS)
    ctx = context(stage, tmp_path)
    assert SELECT.stand_in is not None
    said = SELECT.stand_in(ctx, SELECT.inputs(ctx))
    assert said.startswith("10 rows are read; 2 steps choose among them (deduplicate, budget)")
    assert len(read_jsonl(ctx.folder.path / "random.jsonl")) == 10


RECIPE = """
schema: 1
name: mine
model: embedded
stages:
  - {name: picked, method: select, data: rows.jsonl, steps: [{kind: deduplicate}, {kind: budget, rows: 3}]}
  - {method: sft, data: {stage: picked}}
  - {name: twin, method: sft, data: {stage: picked, rows: random}}
"""


def test_a_later_stage_reads_the_selection_or_its_twin(tmp_path: Path, rows: Path) -> None:
    recipe = parse_recipe(RECIPE, folder=tmp_path)
    run = RunFolder(tmp_path / "run")
    picked, twin = (_with_data(recipe.stage(name), run).data for name in ("sft", "twin"))
    assert picked is not None and twin is not None
    assert picked.path == (str(tmp_path / "run" / "picked" / "data.jsonl"),)
    assert twin.path == (str(tmp_path / "run" / "picked" / "random.jsonl"),) and twin.rows is None


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ("data: {stage: picked, rows: random_tokens}", "writes no random rows of as many tokens"),
        ("data: {stage: own, rows: random}", "it does not select"),
        ("data: {path: rows.jsonl, rows: random}", "only a stage that selects rows"),
    ],
)
def test_a_twin_that_there_is_not(tmp_path: Path, rows: Path, stage: str, problem: str) -> None:
    own = "  - {name: own, method: correction, data: rows.jsonl}\n"
    text = RECIPE.replace("  - {method: sft, data: {stage: picked}}\n", own)
    text = text.replace("data: {stage: picked, rows: random}", stage)
    with pytest.raises(ConfigError, match=problem):
        parse_recipe(text, folder=tmp_path)


def test_paths_are_beside_the_recipe_and_names_stay_names(tmp_path: Path, rows: Path) -> None:
    steps = "[{kind: decontaminate, against: [rows.jsonl, embedded, HumanEval]}]"
    text = RECIPE.replace("[{kind: deduplicate}, {kind: budget, rows: 3}]", steps)
    stage = parse_recipe(text, folder=tmp_path).stage("picked")
    assert isinstance(stage, Select)
    assert stage.steps[0].against == (str(rows), "embedded", "HumanEval")  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="names a file that is not there"):
        parse_recipe(text.replace("[rows.jsonl,", "[row.jsonl,"), folder=tmp_path)


def test_what_a_file_of_tests_holds_is_part_of_the_identity(tmp_path: Path, rows: Path) -> None:
    stage = Select(data=str(rows), steps=[{"kind": "decontaminate", "against": [str(rows), "embedded"]}])
    before = SELECT.content(stage)
    assert list(before) == ["steps.0.against.0"]
    rows.write_text(rows.read_text() + "\n")
    assert SELECT.content(stage) != before


def test_the_key_rows_is_no_part_of_the_hash() -> None:
    """What the file holds that it leads to is; with the key, finished stages of older runs would run again."""
    hashes = {
        stage_fingerprint(SFT(data=Data(stage="a", rows=rows)), data=["x"], start_model="m", seed=0)
        for rows in (None, "random")
    }
    assert len(hashes) == 1
