"""Retention: its rows, its figures, its line; and the same of a run and of `posttrain eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.suites import Evaluation
from posttrain.config.text_suites import RetentionSuite
from posttrain.data import read
from posttrain.data.questions import as_task
from posttrain.errors import ConfigError
from posttrain.evaluate.detectable import detectable
from posttrain.evaluate.paired_changes import changes_of_run
from posttrain.evaluate.runner import what_it_can_show
from posttrain.evaluate.suites import load_suite
from posttrain.evaluate.suites.retention import INSTRUCTIONS, METRICS, TEXT, Retention
from posttrain.report.evaluation import Movement, judge
from posttrain.rewards.instructions import CONSTRAINTS, constraints, instructions
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.records.evaluation import AnswerLine, Figure, SuiteMeanings, SuiteScores
from posttrain.training.evaluating import evaluate_alone

SETTINGS = RetentionSuite(name="retention", kind="retention")


def test_the_rows_of_the_package() -> None:
    loaded = load_suite(SETTINGS)  # every sum's answer is accepted by its own judge
    assert isinstance(loaded, Retention)
    assert [(part.metric, len(part.tasks)) for part in loaded.parts] == [("instructions", 60), ("arithmetic", 60)]
    texts = [text.text for text in loaded.texts.texts]
    assert len(set(texts)) == 40 and all(len(text.split()) >= 30 for text in texts)
    tasks = [as_task(example) for example in read(INSTRUCTIONS)]
    assert len({task.prompt for task in tasks}) == 60
    for task in tasks:
        # Known by name, with arguments that fit, and none of them needs a further package; silence meets none.
        wanted = constraints(task)
        assert wanted and all(
            name in CONSTRAINTS and "case" not in name and "language" not in name for name, _ in wanted
        )
        assert instructions(task.prompt, "", task, partial=False) == 0
    assert what_it_can_show(SETTINGS, loaded) == detectable("retention", {"instructions": 60, "arithmetic": 60})


def test_a_recipe_asks_for_it_in_one_word() -> None:
    given: Any = {"suites": [{"name": "sums", "kind": "number", "prompts": "x.jsonl"}], "retention": True}
    asked = Evaluation(**given)
    assert [suite.name for suite in asked.suites] == ["sums", "retention"]
    # As it is written to the run's folder and read again: once, not twice.
    assert Evaluation(**asked.model_dump()).suites == asked.suites
    assert Evaluation(retention=True).suites == (SETTINGS,)
    taken: Any = [{"name": "retention", "kind": "number", "prompts": "x"}]
    with pytest.raises(ConfigError, match="retention"):
        Evaluation(retention=True, suites=taken)


def written(folder: Path, change: Figure, rights: list[float]) -> StageFolder:
    stage = StageFolder(folder)
    (folder / "evaluations").mkdir(parents=True)
    share = Figure(sum(rights) / len(rights), 0.0, 1.0, len(rights))
    figures = {"text_perplexity_change": change, "instructions": share, "arithmetic": share}
    stage.write(SuiteScores({"kept": figures}))
    lines = [
        AnswerLine(f"{name} {i}", "", None, right, 1, "stop_token", by_metric={name: (right,)}).to_json()
        for name in ("instructions", "arithmetic")
        for i, right in enumerate(rights)
    ]
    (folder / "evaluations" / "kept.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    meanings = SuiteMeanings({"kept": METRICS}).to_json()
    (folder / "evaluations" / "metrics.json").write_text(json.dumps(meanings))
    return stage


def test_the_line_that_says_what_training_cost(tmp_path: Path) -> None:
    start = written(tmp_path / "start", Figure(0.0, 0.0, 0.0, 40), [1.0] * 30)
    stage = written(tmp_path / "sft", Figure(0.031, 0.02, 0.04, 40), [0.0] * 20 + [1.0] * 10)
    found = changes_of_run([start, stage])
    assert found.cost["sft"].startswith(
        "what did sft cost? general text: perplexity change +3.1 % [+2.0 %, +4.0 %] (worse); "
        "instructions followed -66.7 points [-83.3, -50.0] (worse); arithmetic -66.7 points"
    )
    by_metric = {change.metric: change for change in found.changes}
    assert by_metric["instructions"].said.startswith(
        "kept, instructions followed: 100.0 % to 33.3 %, -66.7 points [-83.3, -50.0] on the same 30 items, p = 0.0001"
    )
    assert by_metric["text_perplexity_change"].p is None and by_metric["text_perplexity_change"].n == 40
    # Of what did not change it is said how large a change would have shown.
    few = changes_of_run([start, written(tmp_path / "dpo", Figure(0.0, -0.01, 0.01, 40), [1.0] * 28 + [0.0] * 2)])
    assert "(no clear change)" in few.cost["dpo"]
    assert "not clear; a change of 13.0 points would have shown four times in five" in few.changes[1].said


def test_a_model_is_asked_without_training(tmp_path: Path) -> None:
    """The embedded model against itself: nothing changed, and nothing cost."""
    found = evaluate_alone(
        "embedded", [SETTINGS.changed(limit=2)], tmp_path / "out", against="embedded", progress=False
    )
    assert found.titles == {"start": "embedded", "embedded": "embedded"}
    evaluations = RunFolder(tmp_path / "out").evaluations()
    assert list(evaluations) == ["start", "embedded"]
    before, after = (evaluations[name].suites["retention"] for name in ("start", "embedded"))
    assert after["text_perplexity_change"] == Figure(0.0, 0.0, 0.0, 2)
    assert before["instructions"] == after["instructions"] and before["text_perplexity"] == after["text_perplexity"]
    paired = found.run.paired_changes()
    assert paired.cost["embedded"].count("(no change)") == 3
    assert {change.p for change in paired.changes} == {None, 1.0}
    assert next(iter(read(TEXT))) is not None


def test_nothing_is_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is asked"):
        evaluate_alone("embedded", [], tmp_path)


def test_the_table_and_the_line_agree_on_what_is_worse() -> None:
    how, start = METRICS["text_perplexity_change"], Figure(0.0, 0.0, 0.0, 40)
    assert judge(start, Figure(0.031, 0.02, 0.04, 40), how, None)[0] is Movement.WORSE
    assert judge(start, Figure(-0.5, -0.6, -0.4, 40), how, None)[0] is Movement.BETTER
    assert judge(start, Figure(0.01, -0.01, 0.03, 40), how, None)[0] is Movement.UNCLEAR
