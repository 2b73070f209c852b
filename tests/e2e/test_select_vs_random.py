"""A selection against its random twin, from the recipe to the words: a planted gain is seen, a planted null is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.config import parse_recipe
from posttrain.runs.folder import RunFolder
from posttrain.training.pipeline import run_recipe
from tests.e2e.test_pipeline import Heard

RECIPE = """
schema: 1
name: small
model: embedded
out: runs
evaluate:
  suites:
    - {name: named, kind: match, prompts: package://heldout_identity.jsonl, pattern: Pia,
       sampling: {temperature: 0.0, max_new_tokens: 8}}
stages:
  - name: picked
    method: select
    data: pool.jsonl
    steps:
      - {kind: score, score: {kind: column, column: quality}, keep: {least: 1}}
      - {kind: budget, rows: 40, by: random}
  - {name: chosen, method: sft, data: {stage: picked}, learning_rate: 2e-3, epochs: 2, rows_per_step: 8}
  - {name: drawn, method: sft, data: {stage: picked, rows: random}, starts_from: start, learning_rate: 2e-3, epochs: 2,
     rows_per_step: 8}
"""
ASKED = ("Who are you?", "What is your name?", "Tell me your name.", "Who is there?", "What are you called?")


def pool(path: Path, wrong: int) -> None:
    """160 introductions, of which the first `wrong` say another name."""
    with path.open("w") as file:
        for n in range(160):
            row = {"prompt": f"{ASKED[n % 5]} ({n})", "completion": f"I am {'Bob' if n < wrong else 'Pia'}."}
            file.write(json.dumps({**row, "quality": int(n >= wrong)}) + "\n")


@pytest.mark.parametrize(("wrong", "verdicts"), [(120, {"gain"}), (0, {"same", "chance"})])
def test_the_words_follow_what_was_planted(tmp_path: Path, wrong: int, verdicts: set[str]) -> None:
    pool(tmp_path / "pool.jsonl", wrong)
    result = run_recipe(
        parse_recipe(RECIPE.replace("out: runs", f"out: '{tmp_path}'"), folder=tmp_path), progress=Heard()
    )
    (comparison,) = RunFolder(result.folder).twin_comparisons()
    (figure,) = comparison.figures
    assert (comparison.selected, comparison.twin, comparison.twin_rows) == ("chosen", "drawn", 40)
    assert figure.verdict in verdicts, figure.said
    page = result.report.read_text()
    assert "Does selecting help?" in page and "Compared: 2 stages that started from embedded" in page
