"""A process reward model in the report: figures against the untrained head, scores of right and wrong steps."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from posttrain.evaluate.steps import StepScores, evaluate_steps, write_step_evaluation
from posttrain.report import write_report
from posttrain.report.page import render
from posttrain.report.reward_steps import steps_view
from posttrain.runs.read import read_run
from tests.fake_run import Plan, write_fake_run, write_json

PLAN = Plan(steps=12, pairs=8, prompts=8, alarms=False, warn=False, dropped=False)
LABELS = [[1.0, 0.0], [1.0, 1.0], [0.9, 0.0]]


def add_step_stage(run: Path) -> None:
    """A process reward model that judges all but one step right, over an untrained head that calls all right."""
    rows = [f"steps.jsonl, row {row}" for row in (1, 2, 3)]
    trained = StepScores.of([[2.0, -1.0], [1.0, 3.0], [0.5, 0.25]], LABELS, rows)
    untrained = StepScores.of([[0.1, 0.1]] * 3, LABELS, rows)
    folder = run / "steps"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "posttrain_reward.json").write_text("{}")
    write_json(folder / "stage.json", {"schema": 1, "name": "steps", "method": "reward", "status": "done"})
    write_step_evaluation(folder, evaluate_steps(trained, untrained=untrained), trained, untrained=untrained)
    record = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", record | {"stages": [{"name": "steps", "method": "reward", "status": "done"}]})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = write_fake_run(tmp_path / "run", PLAN)
    add_step_stage(folder)
    return folder


def step_stage(folder: Path):
    return next(stage for stage in read_run(folder).stages if stage.name == "steps")


def test_the_section_by_hand(run: Path) -> None:
    found = steps_view(step_stage(run))
    assert found is not None and (found.steps, found.responses, found.has_untrained) == ("6", "3", True)
    figures = {row.title: row for row in found.figures}
    assert figures["steps judged right"].trained[0] == "83.3\u202f%"  # 5 of 6
    assert figures["steps judged right"].untrained[0] == "66.7\u202f%"
    assert figures["first error found"].trained[0] == "66.7\u202f%"
    assert figures["first error found"].untrained[0] == "33.3\u202f%"
    assert figures["first error found"].trained[1] != "" and figures["standard deviation"].trained[1] == ""
    assert found.said[0] == "To call every step right would judge 66.7\u202f% of them rightly."
    assert found.said[1].startswith("Steps judged right, against the untrained head: +16.7 points (")
    titles = [chart.title for chart in found.charts]
    assert titles == ["Scores of steps, trained head", "Scores of steps, untrained head"]
    # right: 2, 1, 3, 0.5; wrong: -1, 0.25
    assert "median right 1.50, wrong −0.375" in found.charts[0].caption
    assert "above zero: 100.0\u202f% of 4 right steps; 50.0\u202f% of 2 wrong steps" in found.charts[0].caption


def test_the_page_shows_it_and_how_to_score(run: Path) -> None:
    for path in [path for path in run.glob("*/model") if path.parent.name != "steps"]:
        shutil.rmtree(path)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Process reward model" in page and "Scores of steps, trained head" in page
    assert "posttrain score" in page and "pt.load_reward" in page
    assert "vllm serve" not in page and "AutoModelForCausalLM" not in page


def test_its_figures_in_the_summary_are_no_suites(run: Path) -> None:
    for path in run.glob("*/evaluation.json"):
        path.unlink()
    write_json(run / "summary.json", {"steps": {"untrained.mean": 0.1, "trained.mean": 1.0, "identity.match": 0.5}})
    assert list(step_stage(run).evaluated.scores) == ["identity"]


def test_a_run_without_one_has_no_section(tmp_path: Path) -> None:
    plain = write_fake_run(tmp_path / "plain", PLAN)
    assert "Process reward model" not in write_report(plain).read_text(encoding="utf-8")
    assert steps_view(read_run(plain).stages[0]) is None


def test_no_broken_file_keeps_the_report_from_being_written(run: Path) -> None:
    stream = random.Random(4)
    junk = [None, 7, -1.5, "text", [], {}, [None], {"a": None}, True, 1e300, float(np.nan), [{"a": [1]}]]

    def spoiled(content):
        if stream.random() < 0.15:
            return stream.choice(junk)
        if isinstance(content, dict):
            return {key: spoiled(value) for key, value in content.items()}
        return [spoiled(value) for value in content] if isinstance(content, list) else content

    paths = [run / "steps" / "step_evaluation.json", run / "steps" / "step_scores.jsonl"]
    originals = {path: path.read_text(encoding="utf-8") for path in paths}
    for _ in range(20):
        for path, text in originals.items():
            lines = text.splitlines() if path.suffix == ".jsonl" else [text]
            broken = "\n".join(json.dumps(spoiled(json.loads(line))) for line in lines)
            path.write_text(stream.choice([broken, broken, text[: stream.randrange(len(text))]]), encoding="utf-8")
        assert "</html>" in render(read_run(run))
