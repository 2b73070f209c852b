"""A recipe that alternates training and search, measures what strategies are worth, and is solved again by itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.config import load_recipe
from posttrain.errors import ConfigError
from posttrain.report import write_report
from posttrain.runs.progress import Progress
from posttrain.training.budgets import findings_of, solve_recipe
from posttrain.training.pipeline import run_recipe

RECIPE = """
model: embedded
evaluate:
  suites:
    - name: spent
      kind: budget
      prompts: package://heldout_arithmetic.jsonl
      limit: 6
      samples: 4
      scorers: {judge: {stage: judge}}
      strategies: [{name: best, kind: best_of_n, n: 2, scorer: {stage: judge}}]
      sampling: {max_new_tokens: 16}
stages:
  - {name: sft, method: sft, data: package://demonstrations.jsonl, steps: 12, rows_per_step: 8, learning_rate: 1.0e-3}
  - {name: judge, method: reward, data: package://preferences.jsonl, held_out: 0.1, steps: 4, rows_per_step: 8,
     learning_rate: 5.0e-4}
  - name: found
    method: search
    data: {path: package://tasks.jsonl, limit: 12}
    strategy: {kind: best_of_n, n: 4, scorer: {stage: judge}, sampling: {max_new_tokens: 24}}
  - {name: again, method: sft, data: {stage: found}, steps: 2, rows_per_step: 4, held_out: 0, learning_rate: 1.0e-4}
"""


class Lines(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.slow
def test_search_and_training_alternate_and_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"out: {tmp_path}\n{RECIPE}", encoding="utf-8")
    with pytest.raises(ConfigError, match="the stage `judge` scores in `spent`, and it is not trained yet"):
        solve_recipe(load_recipe(path), progress=False)
    shown = Lines()
    result = run_recipe(load_recipe(path), progress=shown)
    waits = [line for line in shown.lines if "is asked when `judge` is trained" in line]
    assert [line.split(":")[0] for line in waits] == ["start", "sft"]
    assert set(result.summary) == {"start", "sft", "judge", "again"}
    for policy in ("start", "sft", "again"):
        figures = result.summary[policy]
        assert {"spent.oracle_at_4", "spent.majority_at_4", "spent.best_of_4_judge", "spent.solved_by_best"} <= set(
            figures
        )
        written = result.folder / policy / "evaluations"
        trees = [json.loads(line) for line in (written / "spent.trees.jsonl").read_text().splitlines()]
        assert len(trees) == 6 and all(len(tree["nodes"]) == 2 for tree in trees)
    rows = (result.folder / "found" / "data.jsonl").read_text().splitlines()
    assert 0 < len(rows) <= 12
    page = result.report.read_text(encoding="utf-8")
    assert "Accuracy against budget" in page and "best of n by judge" in page

    again = Lines()
    assert run_recipe(load_recipe(path), progress=again).summary == result.summary
    assert not any("6 prompts" in line or "answers  " in line for line in again.lines), "nothing is asked twice"

    solved = solve_recipe(load_recipe(path), stage="sft", progress=False)
    assert solved.path == tmp_path / "mine.solve-sft"
    figures = solved.evaluations()["start"].suites["spent"]
    # The same model, prompts and seed as in the run: the same answers.
    assert figures["pass_at_1"].value == result.summary["sft"]["spent.pass_at_1"]
    assert findings_of(solved, ["spent"]) and write_report(solved.path).is_file()
    with pytest.raises(ConfigError, match="two models are given"):
        solve_recipe(load_recipe(path), stage="sft", model="embedded", progress=False)
