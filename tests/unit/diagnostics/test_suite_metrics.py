"""What a kind of suite says of its own figures: written to a folder, read back, and left aside where it is torn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.diagnostics.suite_metrics import meaning
from posttrain.report.evaluation import final_table
from posttrain.runs.read import read_run
from posttrain.runs.records.evaluation import Direction, Meaning

WORDS = Meaning("words in an answer", wanted=Direction.DOWN, primary=True)


def test_a_meaning_survives_json() -> None:
    still = Meaning("drift", "share", Direction.STILL, limit=0.1)
    for one in (WORDS, still):
        assert Meaning.parse(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize("record", [{}, {"title": "x", "wanted": "sideways"}, {"unit": "share"}])
def test_a_torn_record_is_no_meaning(record: dict[str, str]) -> None:
    assert Meaning.parse(record) is None


def run_with(folder: Path, metrics: str | None) -> Path:
    start = folder / "start"
    (start / "evaluations").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"name": "mine", "stages": []}))
    figure = {"value": 3.0, "low": 2.0, "high": 4.0, "n": 9}
    (start / "evaluation.json").write_text(json.dumps({"brevity": {"words": figure, "accuracy": figure}}))
    if metrics is not None:
        (start / "evaluations" / "metrics.json").write_text(metrics)
    return folder


def test_the_report_takes_the_folders_word_first(tmp_path: Path) -> None:
    own = {"brevity": {"words": WORDS.to_json()}}
    rows = {row.metric: row.meaning for row in final_table(read_run(run_with(tmp_path, json.dumps(own)))).rows}
    assert rows == {"words": WORDS, "accuracy": meaning("accuracy")}


@pytest.mark.parametrize("metrics", [None, "", "[1]", '{"brevity": 3}', '{"brevity": {"words": {"wanted": 1}}}'])
def test_a_folder_without_it_or_with_a_torn_one_opens(tmp_path: Path, metrics: str | None) -> None:
    rows = {row.metric: row.meaning for row in final_table(read_run(run_with(tmp_path, metrics))).rows}
    assert rows == {"words": meaning("words"), "accuracy": meaning("accuracy")}
