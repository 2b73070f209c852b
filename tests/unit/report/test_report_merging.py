"""The report's parts on merges: what they show of planted records; torn files break nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from posttrain.evaluate.merging.barrier import barrier_of
from posttrain.evaluate.merging.kept import kept_skill, write_skills
from posttrain.report.merging import kept_view, merge_view
from posttrain.report.page import render
from posttrain.runs.folder import StageFolder
from posttrain.runs.layout import model_label
from posttrain.runs.read import read_run
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.merging import Candidate, MergeComparison, SearchRecord, TaskVector, VectorPart
from tests.fake_run import Plan, write_fake_run

PLAN = Plan(steps=12, pairs=8, prompts=8, alarms=False, warn=False, dropped=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = write_fake_run(tmp_path / "run", PLAN)
    stage = StageFolder(run / "dpo")
    vectors = (TaskVector("/runs/x/maths/model", 5.0, 0.5, 1.0), TaskVector("/runs/x/code/model", 3.0, None, 0.25))
    parts = (VectorPart("embed_tokens", 40, (3.0, 0.0), None), VectorPart("layer 0", 60, (4.0, 3.0), 0.25))
    stage.write(
        MergeComparison(
            "ties",
            "embedded",
            vectors,
            TaskVector("ties", 4.0, 0.4, 1.0),
            ((1.0, -0.125), (-0.125, None)),
            (0.5, 0.25),
            0.25,
            parts,
            parts,
            barriers=(barrier_of("/runs/x/maths/model", "/runs/x/code/model", [1.0, 4.0, 3.0], 2, 9),),
        )
    )
    tried = (Candidate("as written", (1.0, 1.0), 0.25), Candidate("maths alone", (1.0, 0.0), 0.5))
    record = SearchRecord("x", "weights", "greedy", ("s",), 20, 5, 5, tried, tried[1], Figure(0.4), said="of 2 merges")
    stage.write(record)
    skill = kept_skill("dpo", "sums", "accuracy", ("start", [0.0] * 20), {"maths": [1.0] * 20}, [1.0] * 20)
    write_skills(run, [skill])
    return run


def test_what_is_shown_of_a_merge(folder: Path) -> None:
    run = read_run(folder)
    stage = next(stage for stage in run.stages if stage.name == "dpo")
    view = merge_view(stage)
    assert view is not None and view.models == ["maths", "code"] and view.over == "embedded"
    assert [row.model for row in view.vectors] == ["maths", "code", "the merge"]
    assert view.vectors[0].cosines == ["1.00", "−0.12"] and view.vectors[1].relative == "–"
    assert [chart.title for chart in view.charts] == ["How far each model moved", "Opposite directions"]
    assert [tick.label for tick in view.charts[0].x_ticks] == ["in", "0"]
    # The line goes 1, 2, 3.
    assert view.barriers_said[0].startswith("maths → code: 2")
    assert view.search is not None and view.search.rows[0][0] == "maths alone" and view.search.rows[0][3]


def test_the_page_says_what_was_kept(folder: Path) -> None:
    page = render(read_run(folder))
    assert 'id="merged"' in page and "dpo kept what maths had gained on sums" in page
    assert "How the models lie to each other" in page and "The loss between the models" in page
    (row,) = kept_view(read_run(folder))
    assert row.kind == "good" and row.parents[0][0] == "maths"


def test_a_run_without_merges_has_no_such_part(tmp_path: Path) -> None:
    run = read_run(write_fake_run(tmp_path / "run", PLAN))
    assert kept_view(run) == [] and all(merge_view(stage) is None for stage in run.stages)
    assert 'id="merged"' not in render(run)


@pytest.mark.parametrize("name", ["merge.json", "search.json"])
@pytest.mark.parametrize("damage", ["{}", "[]", "torn", "numbers"])
def test_damaged_records_break_nothing(folder: Path, name: str, damage: str) -> None:
    path = folder / "dpo" / name
    text = path.read_text()
    path.write_text(
        {"torn": text[: len(text) // 2], "numbers": re.sub(r"\d+(\.\d+)?", '"x"', text)}.get(damage, damage)
    )
    render(read_run(folder))


def test_labels() -> None:
    assert [model_label(path) for path in ("/runs/x/maths/model", "/data/llama/", "embedded", "model")] == [
        "maths", "llama", "embedded", "model",
    ]  # fmt: skip
