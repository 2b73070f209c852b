"""A run folder of schema 1 still opens: an excerpt of two runs that the version before schema 2 wrote.

tests/data/run_folder_schema_1 has a few lines of each log, every whole file, no weights, and neutral names in the place
of a machine's own.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.config import SFT, load_recipe
from posttrain.report import write_report
from posttrain.runs.cursor import Cursor
from posttrain.runs.folder import RunFolder
from posttrain.runs.progress import Progress
from posttrain.runs.read import RunContents, read_run
from posttrain.runs.records.evaluation import SuiteScores
from posttrain.runs.records.files import RUN_FILES, STAGE_FILES
from posttrain.runs.records.logs import HeldOutRow, MetricsLine
from posttrain.runs.records.reward import RewardEvaluation
from posttrain.runs.records.run import SCHEMA
from posttrain.runs.samples import samples
from posttrain.training.pipeline import run_recipe
from posttrain.training.run_record import begin_run

OLD = Path(__file__).parents[2] / "data" / "run_folder_schema_1"
STAGES = {"quickstart": ["sft", "reward", "dpo", "grpo"], "golden": ["corrected", "ppo"]}
RUNS = [*STAGES]


@pytest.fixture
def copy(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name: str = getattr(request, "param", "quickstart")
    return Path(shutil.copytree(OLD / name, tmp_path / name))


def contents(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def missing(before: Any, after: Any, place: str) -> list[str]:
    """What the first says and the second does not, key by key."""
    if isinstance(before, dict) and isinstance(after, dict):
        lost = [f"{place}.{key}" for key in before if key not in after]
        return lost + [
            said for key in before if key in after for said in missing(before[key], after[key], f"{place}.{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [said for one, other in zip(before, after, strict=True) for said in missing(one, other, f"{place}[]")]
    return [] if before == after else [place]


# ---------------------------------------------------------------- read whole


@pytest.mark.parametrize("name", RUNS)
def test_the_records_hold_everything_that_the_files_say(name: str) -> None:
    lost, files = [], 0
    folders = [(OLD / name, RUN_FILES), *((OLD / name / stage, STAGE_FILES) for stage in [*STAGES[name], "start"])]
    for folder, table in folders:
        for pattern, record in table.items():
            for path in folder.glob(pattern.replace("<suite>", "*")):
                files += 1
                rows = contents(path)
                if pattern == "data.jsonl":  # rows of a data set: the record is what the report shows of them
                    rows = [{"prompt": row["prompt"][0]["content"]} for row in rows]
                for row in rows:
                    lost += missing(row, json.loads(json.dumps(record.from_json(row).to_json())), str(path))
    assert lost == [] and files > 10


@pytest.mark.parametrize("name", RUNS)
def test_it_is_read_without_a_problem(name: str) -> None:
    run = read_run(OLD / name)
    assert run.problems == []
    assert (run.about.schema, run.status, [stage.name for stage in run.stages]) == (1, "done", STAGES[name])
    assert all(stage.status == "done" and stage.seconds and stage.about.schema is None for stage in run.stages)
    assert run.environment.cpu == "Processor of an example" and run.environment.threads == 1


def stage_of(run: RunContents, name: str) -> Any:
    return next(stage for stage in run.stages if stage.name == name)


def test_each_kind_of_stage_gives_its_figures() -> None:
    run = read_run(OLD / "quickstart")
    sft, reward, dpo, grpo = run.stages
    first, *_, last = contents(OLD / "quickstart" / "sft" / "metrics.jsonl")
    assert sft.curves["held_out"]["loss"].values[0] == first["values"]["loss"]
    assert sft.curves["held_out"]["loss"].values[-1] == last["values"]["loss"] and sft.last_step == 297
    assert (sft.about.data.read, sft.about.data.held_out_rows, sft.about.parameters.total) == (1659, 82, 2066112)
    assert reward.reward.pairs and reward.reward.trained["accuracy"].value > reward.reward.untrained["accuracy"].value
    assert len(reward.reward_scores) == 12 and reward.reward_scores[0].untrained_chosen is not None
    assert len(dpo.pairs["start"]) == len(dpo.pairs["end"]) == 10 and not dpo.judged
    assert dpo.pairs["end"][0].side("logprob", "chosen") < 0 < dpo.pairs["end"][0].side("tokens", "rejected")
    assert grpo.sampled.steps == 2 and grpo.sampled.completions == 8
    score = grpo.about.held_out_score
    assert (score.start.value, score.last.value, score.kept.step) == (0.4166666666666667, 0.5, 26)
    assert run.start.scores["sums"].keys() == grpo.evaluated.scores["sums"].keys()
    assert [change.verdict for change in run.pass_at_k] and run.cross_scores.policies[0] == "start"
    other = read_run(OLD / "golden")
    assert len(stage_of(other, "corrected").written) == 6
    assert stage_of(other, "corrected").about.data.answers == 24 and stage_of(other, "corrected").dropped
    assert stage_of(other, "ppo").sampled.completions == 8 and "value_loss" in stage_of(other, "ppo").curves["train"]


@pytest.mark.parametrize("copy", RUNS, indirect=True)
def test_its_page_shows_its_figures(copy: Path) -> None:
    page = re.sub(r"[\u202f\u00a0]", " ", write_report(copy).read_text(encoding="utf-8"))
    assert "What is missing from this folder" not in page
    for folder in RunFolder(copy).stages():
        evaluation = folder.document(SuiteScores)
        for metrics in evaluation.suites.values() if evaluation else ():
            for metric in ("match", "accuracy", "win_rate"):
                if metric in metrics:
                    assert f"{100 * metrics[metric].value:.1f} %" in page
    if copy.name == "quickstart":
        scores: dict[int, list[float]] = {}
        for line in contents(copy / "grpo" / "examinations.jsonl"):  # an excerpt of the tasks
            scores.setdefault(line["step"], []).append(line["score"])
        first, last = (100 * sum(scores[step]) / len(scores[step]) for step in (0, 26))
        assert f"held-out score {first:.1f} % at step 0 → {last:.1f} % at step 26" in page
        record = RunFolder(copy).stage("reward").document(RewardEvaluation)
        assert record is not None and f"{100 * record.trained['accuracy'].value:.1f} %" in page
        assert "1,577 rows, 16 a step" in page


# ---------------------------------------------------------------- the verbs and the interfaces


def test_samples_shows_what_it_sampled() -> None:
    found = samples(OLD / "quickstart", steps=[1], best=1, worst=0, random=0)
    assert found.stage == "grpo" and found.steps[0].shown[0].sample.reward == 1.0
    result = CliRunner().invoke(app, ["samples", str(OLD / "quickstart"), "--json", "--best", "2"])
    assert result.exit_code == 0 and result.stderr == ""
    shown = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(shown) == 4 and {one["step"] for one in shown} == {1, 26}
    held_out = CliRunner().invoke(app, ["samples", str(OLD / "golden" / "ppo"), "--held-out"])
    assert held_out.exit_code == 0 and "gold" in held_out.stdout


def test_report_writes_it_anew(copy: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(copy)])
    assert result.exit_code == 0 and result.stdout.strip() == str(copy / "report.html")


def test_the_folder_gives_its_records() -> None:
    run = RunFolder(OLD / "quickstart")
    assert [*run.evaluations()] == ["start", "sft", "dpo", "grpo"]
    assert [*run.reward_evaluations()] == ["reward"] and run.step_evaluations() == {} == dict(run.warnings())
    assert run.held_out_scores()["grpo"].best.step == 26
    assert run.summary()["grpo"]["held_out.best"] == 0.5
    assert {row.when for row in run.stage("reward").lines(HeldOutRow)} == {"start", "end"}
    assert {answer.finish for answer in run.stage("dpo").answers("arithmetic")} == {"stop_token"}
    news = Cursor(OLD / "quickstart" / "dpo" / "metrics.jsonl").read(MetricsLine)
    assert [line.step for line in news.records] == [line.step for line in run.stage("dpo").metrics()]


def test_a_run_that_goes_on_brings_it_to_the_present_schema_and_keeps_what_it_said(copy: Path) -> None:
    run = RunFolder(copy)
    before = run.run()
    begin_run(run, "quickstart", [SFT(name="sft")], keep_others=True)
    after = run.run()
    assert (after.schema, after.created, after.date) == (SCHEMA, before.created, "2026-03-01")
    assert {entry.name: entry.status for entry in after.stages} == dict.fromkeys(STAGES["quickstart"], "done")
    folder = run.stage("dpo")
    old = json.loads((copy / "dpo" / "stage.json").read_text())
    folder.write_stage(error=None)
    new = json.loads((copy / "dpo" / "stage.json").read_text())
    assert new["schema"] == SCHEMA and missing(old, new, "stage.json") == []


def test_a_newer_folder_is_shown_and_its_schema_is_said_once(copy: Path) -> None:
    content = json.loads((copy / "run.json").read_text()) | {"schema": 9}
    (copy / "run.json").write_text(json.dumps(content))
    said = [problem for problem in read_run(copy).problems if "layout 9" in problem.message]
    assert len(said) == 1 and said[0].where == "run.json" and f"up to {SCHEMA}" in said[0].message
    assert write_report(copy).read_text().count("layout 9") == 1


# ---------------------------------------------------------------- a recipe that goes on from one

RECIPE = """
schema: 1
name: small
model: embedded
stages:
  - {method: sft, data: {path: package://demonstrations.jsonl, limit: 16}, steps: 1, rows_per_step: 4, held_out: 0}
"""


class Heard(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def as_schema_1(folder: Path) -> None:
    """What the version before wrote: no schema in stage.json, and no key that the stage had nothing to say for."""
    for path in folder.glob("*/stage.json"):
        stage = json.loads(path.read_text())
        path.write_text(
            json.dumps({key: value for key, value in stage.items() if key != "schema" and value is not None})
        )
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | {"schema": 1}))


def test_a_stage_that_an_older_version_finished_is_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "small.yaml", [f"out={tmp_path / 'runs' / 'small'}"])
    folder = run_recipe(recipe).folder
    as_schema_1(folder)
    before, heard = (folder / "sft" / "metrics.jsonl").read_bytes(), Heard()
    run_recipe(recipe, progress=heard)
    assert any("sft: done before" in line for line in heard.lines)
    assert (folder / "sft" / "metrics.jsonl").read_bytes() == before
    assert (RunFolder(folder).run().schema, RunFolder(folder).stage("sft").stage().schema) == (SCHEMA, SCHEMA)
