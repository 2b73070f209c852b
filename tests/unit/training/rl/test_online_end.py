"""What a stage that samples says of itself: rows that nobody can judge, no update at all, the start handed back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import posttrain as pt
from posttrain.cli.tables import held_out_table
from posttrain.errors import PreflightError
from posttrain.report.online_verdict import online_findings
from posttrain.report.verdict import verdict
from posttrain.rewards import resolve, unjudged
from posttrain.rewards.rubric import Rubric
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.read import read_run
from posttrain.training.checks.gold import check_gold
from posttrain.training.pipeline import check_recipe, run_recipe
from posttrain.training.rl.rollouts import Prompt
from posttrain.training.stages.sampling_end import conclude
from posttrain.types import Message, RowRef, Task
from tests.fake_online import OnlinePlan, write_online_run
from tests.online import early_letters, tasks_of
from tests.unit.training.rl.test_online_session import SETTINGS, quick_export, start

__all__ = ["quick_export", "start"]


def recipe_of(folder: Path, recipe: dict[str, Any]) -> pt.Recipe:
    (folder / "r.yaml").write_text(json.dumps(recipe))
    return pt.load_recipe(folder / "r.yaml")


def without_answers(count: int = 4, **metadata: Any) -> list[Task]:
    return [Task((Message("user", f"{i}?"),), None, RowRef("t.jsonl", i + 1), metadata) for i in range(count)]


def gold_of(tasks: list[Task], *specs: dict[str, Any]) -> Any:
    prompts = [Prompt(task, (1,), index) for index, task in enumerate(tasks)]
    return check_gold(prompts, Rubric([resolve(spec) for spec in specs]), every=True)


def test_a_verifier_without_any_answer_to_check_fails_the_preflight() -> None:
    check = gold_of(without_answers(solution="4"), {"kind": "math"})
    assert check.status == "fail" and "can judge none of 4 rows" in check.detail and "'solution'" in check.detail
    assert "columns: {answer: solution}" in check.remedy


def test_rows_without_an_answer_are_counted_apart() -> None:
    tasks = [*tasks_of(3), *without_answers(2)]
    check = gold_of(tasks, {"kind": "exact"})
    assert check.status == "warn" and "all of 3 tasks" in check.detail and "2 rows have no answer" in check.detail
    assert check.evidence["unjudged"] == 2
    both = gold_of(tasks, {"kind": "exact"}, {"kind": "think_tags"})  # another reward judges those rows
    assert both.status == "pass" and "2 rows have no answer" in both.detail


def test_a_reward_that_reshapes_a_verifier_is_checked_as_that() -> None:
    cosine = {"kind": "cosine", "of": {"kind": "exact"}, "max_length": 8}
    assert gold_of(without_answers(), cosine).status == "fail"
    assert gold_of(tasks_of(3), cosine).detail == "all of 3 tasks"


def test_tests_without_a_solution_are_judged_all_the_same() -> None:
    tasks = without_answers(2, tests="assert f() == 1")
    with Rubric([resolve({"kind": "code"})]) as rubric:
        assert unjudged(tasks, rubric.scorers) == []


def test_check_names_the_column_that_holds_the_answers(start: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "2 + 2?", "solution": "4"}\n' * 4)
    stage = {**SETTINGS, "method": "grpo", "data": str(tmp_path / "t.jsonl"), "rewards": [{"kind": "math"}]}
    recipe = {"schema": 1, "name": "r", "model": str(start), "out": str(tmp_path / "runs"), "stages": [stage]}
    (gold,) = [one for one in check_recipe(recipe_of(tmp_path, recipe))["grpo"].checks if one.name == "gold"]
    assert gold.status == "fail" and "{answer: solution}" in str(gold.remedy)
    with pytest.raises(PreflightError, match="can judge none of"):
        run_recipe(recipe_of(tmp_path, recipe))


class Saying:
    """What a run said, line by line."""

    def __init__(self) -> None:
        from posttrain.runs.progress import Progress

        heard = self.lines = list[str]()

        class Listening(Progress):
            def say(self, text: str) -> None:
                heard.append(text)

        self.progress = Listening()


def abstains(prompt: Any, completion: str, task: Task) -> None:
    return None


def always_one(prompt: Any, completion: str, task: Task) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("reward", "step_line", "why"),
    [
        (abstains, "every reward abstained from all completions of the step", "every reward abstained"),
        (always_one, "no group has a signal (the rewards of each are all equal)", "no step had anything to learn from"),
    ],
)
def test_a_stage_without_an_update_is_not_just_saved(
    reward: Callable[..., Any], step_line: str, why: str, start: Path, tmp_path: Path
) -> None:
    saying = Saying()
    run = pt.train(
        pt.GRPO(**SETTINGS, held_out=0, choices={"groups": "drop"}),
        start,
        tasks_of(),
        rewards=[reward],
        out=tmp_path / "run",
        progress=saying.progress,
    )
    said = saying.lines
    assert sum(f"no update: {step_line}" in line for line in said) == 2
    assert any(line.startswith("WARNING: grpo: not one update was made in 2 steps") and why in line for line in said)
    assert said.index("saved") < next(i for i, line in enumerate(said) if line.startswith("WARNING"))
    alarms = [alarm for alarm in run.alarms() if alarm["name"] == "no_update"]
    assert len(alarms) == 1 and alarms[0]["severity"] == "critical"
    record = RunFolder(tmp_path / "run")
    assert record.stage("grpo").stage().updates == 0
    assert "not one update" in record.run().stages[0].warnings[0]
    judged = verdict(read_run(run.folder), _no_table())
    assert (judged.kind, judged.grade) == ("bad", "needs attention")


def _no_table() -> Any:
    from posttrain.report.evaluation import Table

    return Table([], [])


def test_a_stage_with_updates_warns_of_nothing(start: Path, tmp_path: Path) -> None:
    run = pt.train(pt.GRPO(**SETTINGS, held_out=0), start, tasks_of(), rewards=[early_letters], out=tmp_path / "run")
    stage = RunFolder(run.folder).stage("grpo").stage()
    assert stage.updates == 2 and stage.warnings == () and RunFolder(run.folder).warnings() == []
    assert RunFolder(run.folder).run().stages[0].warnings is None


def test_the_start_handed_back_is_said_with_its_interval(tmp_path: Path) -> None:
    folder = write_online_run(tmp_path / "run", replace(OnlinePlan(), start=0.9, end=0.1, best=0))
    (warning,) = conclude(StageFolder(folder / "grpo"))
    assert "hands back the start's weights" in warning and "95 % interval" in warning
    assert "20 tasks are too few to tell" in warning
    (stage,) = read_run(folder).stages
    said = [finding for finding in online_findings(stage) if "hands back" in finding.text]
    assert [finding.kind for finding in said] == ["warn"] and "95 % interval" in said[0].detail
    assert "20 tasks" in said[0].detail
    better = write_online_run(tmp_path / "better")
    assert conclude(StageFolder(better / "grpo")) == []
    assert not any("hands back" in finding.text for finding in online_findings(read_run(better).stages[0]))


def test_the_held_out_score_is_in_the_summary_and_in_a_table(start: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i}?", "answer": f"{i}"}) + "\n" for i in range(8))
    )
    (tmp_path / "mine.py").write_text("def short(prompt, completion, task):\n    return float(len(completion) < 4)\n")
    stage = {
        **SETTINGS,
        "method": "grpo",
        "data": str(tmp_path / "t.jsonl"),
        "rewards": [{"kind": "function", "function": "mine:short"}],
        "held_out": 0.25,
        "examine": {"every_steps": 1},
    }
    recipe = {"schema": 1, "name": "r", "model": str(start), "out": str(tmp_path / "runs"), "stages": [stage]}
    result = run_recipe(recipe_of(tmp_path, recipe))
    assert set(result.summary["grpo"]) == {f"held_out.{name}" for name in ("start", "best", "last", "kept")}
    scores = RunFolder(result.folder).held_out_scores()
    assert scores["grpo"].start.step == 0 and scores["grpo"].last.step == 2
    assert result.summary["grpo"]["held_out.best"] == max(
        score.value for score in (scores["grpo"].start, scores["grpo"].best, scores["grpo"].last)
    )
    console = Console(width=160, record=True)
    console.print(held_out_table(scores))
    text = console.export_text()
    assert "at step 0" in text and "at step 2" in text and "%" in text
    assert not any(one.evaluated.scores for one in read_run(result.folder).stages)  # no suite was asked


def test_the_verdict_repeats_what_became_of_the_reach(tmp_path: Path) -> None:
    folder = write_online_run(tmp_path / "run")
    said = "grpo only sharpened what sft could do already: pass@1 rose, pass@8 stayed within noise; 40 prompts."
    (folder / "pass_at_k.json").write_text(
        json.dumps({"changes": [{"suite": "sums", "verdict": "sharpened", "said": said}]})
    )
    judged = verdict(read_run(folder), _no_table())
    assert f"sums: {said}" in [finding.text for finding in judged.found]


def test_a_verifier_says_what_its_rows_lack() -> None:
    """Rows with answers and no constraints: the answers are not at fault, and no column of answers would help."""
    check = gold_of(tasks_of(3), {"kind": "instructions"})
    assert check.status == "fail" and "`instructions` can judge none of 3 rows" in check.detail
    assert "no constraints, in `instructions` or `instruction_id_list`" in check.detail
    assert "columns:" not in check.remedy and "docs/rewards.md" in check.remedy
    assert "no column `pattern`" in gold_of(tasks_of(2), {"kind": "regex"}).detail
    assert "no tests, in `tests`" in gold_of(tasks_of(2), {"kind": "code"}).detail
