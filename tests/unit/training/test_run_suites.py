"""Which suites of a run a model is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.budget import BudgetSuite
from posttrain.config.suites import NumberSuite
from posttrain.runs.folder import RunFolder
from posttrain.runs.progress import Progress
from posttrain.training.evaluation import RunSuites

NUMBER = NumberSuite(kind="number", name="sums", prompts="sums.jsonl")


@pytest.mark.parametrize(
    ("models", "asked"),
    [((), ["start", "sft", "dpo"]), (("sft",), ["sft"]), (("start", "dpo"), ["start", "dpo"])],
)
def test_a_budget_is_measured_of_the_models_that_it_names(tmp_path: Path, models, asked) -> None:
    run = RunFolder(tmp_path)
    budget = BudgetSuite(kind="budget", name="spent", prompts="sums.jsonl", samples=4, models=models)
    suites = RunSuites(run, (NUMBER, budget), seed=0)
    folders = [run.start, run.stage("sft"), run.stage("dpo")]
    names = {folder.name: [suite.name for suite in suites._askable(folder, Progress())] for folder in folders}
    assert [name for name, own in names.items() if "spent" in own] == asked
    assert all("sums" in own for own in names.values())
