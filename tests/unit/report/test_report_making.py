"""Stages that make rows or models and train nothing: what a report shows of them, and what it does not miss."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.report.sections import view
from posttrain.report.verdict import verdict_of
from posttrain.runs.read import RunContents, read_run
from tests.fake_run import Plan, write_fake_run, write_json, write_lines

SELECTION = {
    "kind": "demonstrations",
    "read": 100,
    "kept": 40,
    "rejected": 60,
    "steps": [
        {"step": "deduplicate", "rows_in": 100, "rows_out": 90, "removed": {"near_duplicate": 3, "duplicate": 7}},
        {
            "step": "score length",
            "rows_in": 90,
            "rows_out": 40,
            "removed": {"below": 50},
            "scores": {"length": {"mean": 20.0, "kept_mean": 30.5}},
            "notes": ["2 rows have no score."],
        },
    ],
    "twins": [{"file": "random.jsonl", "rows": 40, "shared": 16, "drawn_from": 100}],
}
"""A manifest as another version may have written it: keys that are not shown are not there."""


def run_with(folder: Path, method: str, data: dict[str, object]) -> RunContents:
    """A finished run whose second stage is one of this method."""
    run = write_fake_run(folder / "run", Plan(steps=2, pairs=2, prompts=2, alarms=False, warn=False, dropped=False))
    stage = run / "pairs"
    for path in stage.iterdir():
        path.unlink()
    write_json(stage / "stage.json", {"name": "pairs", "method": method, "status": "done", "data": data})
    write_lines(stage / "data.jsonl", [{"prompt": "2 + 2?", "completion": "4"}])
    return read_run(run)


@pytest.mark.parametrize("method", ["select", "distil", "merge"])
def test_no_curves_and_no_checks_are_missed_of_a_stage_that_trains_nothing(tmp_path: Path, method: str) -> None:
    run = run_with(tmp_path, method, {"read": 100, "kept": 40})
    assert not [problem for problem in run.problems if "pairs" in str(problem)]


def test_rows_that_were_not_written_are_missed(tmp_path: Path) -> None:
    folder = run_with(tmp_path, "distil", {}).folder
    (folder / "pairs" / "data.jsonl").unlink()
    assert [problem for problem in read_run(folder).problems if "data.jsonl" in str(problem)]


def test_a_selection_shows_its_steps_and_its_twin(tmp_path: Path) -> None:
    folder = run_with(tmp_path, "select", {"read": 100, "kept": 40, "dropped": {"below": 50}}).folder
    write_json(folder / "pairs" / "manifest.json", SELECTION)
    shown = view(read_run(folder).stages[1], 1).selection
    assert shown is not None
    assert [(row.step, row.rows_in, row.rows_out, row.reasons) for row in shown.steps] == [
        ("deduplicate", "100", "90", "7 duplicate, 3 near duplicate"),
        ("score length", "90", "40", "50 below"),
    ]
    assert (shown.steps[1].scores, shown.steps[1].notes) == ("length 20.0 → 30.5", "2 rows have no score.")
    assert shown.twins == ["random.jsonl: 40 rows at random of 100; 16 of them are selected too."]


def test_what_a_selection_is_there_for_is_no_loss(tmp_path: Path) -> None:
    run = run_with(tmp_path, "select", {"read": 100, "kept": 40, "dropped": {"below": 60}})
    assert not [step for step in verdict_of(run.folder).actions if "below" in step.detail]


def test_a_teacher_s_dropped_answers_are_a_share_of_its_answers(tmp_path: Path) -> None:
    counts = {"read": 15, "kept": 3, "dropped": {"cut": 27}, "answers": 30, "prompts": 15}
    (said,) = (step for step in verdict_of(run_with(tmp_path, "distil", counts).folder).actions if "cut" in step.detail)
    assert "90.0" in said.text and "`max_new_tokens`" in said.text and "dropped.jsonl" in said.text
