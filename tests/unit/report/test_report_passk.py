"""The report's section on pass@k: what it says of planted policies and what it draws; torn files break nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from posttrain.evaluate.pass_at_k import PassCounts, write_counts
from posttrain.evaluate.pass_at_k_change import changes_of_run, write_changes
from posttrain.report.evaluation import meaning
from posttrain.report.page import render
from posttrain.report.passk import passk_view
from posttrain.runs.read import read_run
from tests.fake_run import Plan, write_fake_run

PLAN = Plan(steps=12, pairs=8, prompts=8, alarms=False, warn=False, dropped=False)
SAMPLES = 16


def plant(run: Path, correct: dict[str, list[int]], samples: int = SAMPLES) -> None:
    """Counts for each policy, and what the run makes of them."""
    names = tuple(f"{i} + 1 = ?" for i in range(40))
    for policy, own in correct.items():
        write_counts(run / policy, PassCounts("reach", samples, names, names, tuple(own)))
    folders = {policy: run / policy for policy in correct}
    write_changes(run, changes_of_run(folders, ["reach"]))


def policies() -> dict[str, list[int]]:
    rng = np.random.default_rng(0)
    able = rng.beta(0.5, 2.5, size=40)
    return {
        "start": [0] * 38 + [1] * 2,
        "sft": rng.binomial(SAMPLES, able).tolist(),
        "dpo": rng.binomial(SAMPLES, np.minimum(1.0, 2.5 * able) * (able > 0.03)).tolist(),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = write_fake_run(tmp_path / "run", PLAN)
    plant(run, policies())
    return run


def test_the_verdicts_stand_in_the_order_of_training(folder: Path) -> None:
    (suite,) = passk_view(read_run(folder))
    assert (suite.name, suite.prompts, suite.samples) == ("reach", "40", "16")
    assert suite.policies == ["start", "sft", "dpo"]
    assert [finding.text.partition(":")[0] for finding in suite.findings] == [
        "sft widened what start can do",
        "dpo only sharpened what sft could do already",
        "dpo widened what start can do",
    ]
    assert [(finding.kind, finding.wide) for finding in suite.findings] == [
        ("good", False),
        ("plain", False),
        ("good", True),
    ]


def test_the_table_has_every_k_and_the_last_stages_difference(folder: Path) -> None:
    (suite,) = passk_view(read_run(folder))
    assert [row.k for row in suite.rows] == ["1", "2", "4", "8", "16"]
    assert suite.compared == "dpo − sft"
    first, last = suite.rows[0], suite.rows[-1]
    assert len(first.cells) == 3 and first.cells[0].value == "0.3\u202f%"
    assert first.sign == "better" and last.sign == "same"
    assert first.moved is not None and re.fullmatch(r"\+\d+\.\d points", first.moved.value)
    record = json.loads((folder / "pass_at_k.json").read_text())["changes"][1]
    assert first.moved.value == f"+{100 * record['points'][0]['difference']['value']:.1f} points"


def test_the_chart_has_a_band_a_line_and_a_colour_for_each_policy(folder: Path) -> None:
    chart = passk_view(read_run(folder))[0].chart
    assert [key.label for key in chart.keys] == ["start", "sft", "dpo"]
    assert [key.colour for key in chart.keys] == ["ink-3", "chosen", "accent"]
    looks = [path.look for path in chart.paths]
    assert looks.count("area") == looks.count("main") == looks.count("main dot") == 3
    assert looks[:3] == ["area"] * 3  # bands lie under the lines
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "4", "8", "16"]
    steps = np.diff([tick.at for tick in chart.x_ticks])
    assert steps == pytest.approx([steps[0]] * 4)  # a doubling has the same width everywhere
    assert "dpo" in chart.said and "at k = 16" in chart.said


def test_narrowing_is_a_warning(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", PLAN)
    plant(run, {"sft": [0] * 20 + [2] * 20, "dpo": [0] * 28 + [16] * 12})
    (finding,) = passk_view(read_run(run))[0].findings
    assert finding.kind == "warn" and "It narrowed" in finding.text


def test_the_page_has_the_section_and_a_run_without_it_has_not(folder: Path, tmp_path: Path) -> None:
    page = render(read_run(folder))
    assert 'id="passk"' in page and 'href="#passk"' in page and "Widened, or only sharpened?" in page
    assert "only sharpened what sft could do already" in page
    other = render(read_run(write_fake_run(tmp_path / "other", PLAN)))
    assert 'id="passk"' not in other and 'href="#passk"' not in other


def test_torn_and_foreign_files_break_nothing(folder: Path) -> None:
    (folder / "pass_at_k.json").write_text('{"changes": [{"suite": "reach", "points": 3}, 7, {"base"')
    (suite,) = passk_view(read_run(folder))
    assert suite.findings == [] and suite.compared == "" and all(row.moved is None for row in suite.rows)
    (folder / "sft" / "evaluations" / "reach.counts.json").write_text(
        '{"curve": [{"k": 0, "value": 1}, {"k": "x"}, 5]}'
    )
    assert passk_view(read_run(folder))[0].policies == ["start", "dpo"]
    (folder / "dpo" / "evaluations" / "reach.counts.json").write_text(
        '{"curve": [{"k": 1, "value": 0.5}, {"k": 3, "value": 0.6}]}'
    )
    (suite,) = passk_view(read_run(folder))
    assert [row.k for row in suite.rows] == ["1", "2", "3", "4", "8", "16"]
    assert 'id="passk"' in render(read_run(folder))


def test_one_answer_each_draws_one_point(tmp_path: Path) -> None:
    run = write_fake_run(tmp_path / "run", PLAN)
    plant(run, {"start": [0, 1] * 20}, samples=1)
    (suite,) = passk_view(read_run(run))
    assert suite.findings == [] and [row.k for row in suite.rows] == ["1"]
    assert 'id="passk"' in render(read_run(run))


def test_the_metric_is_known_to_the_final_table() -> None:
    assert meaning("pass_at_64").title == "pass@64" and meaning("pass_at_64").primary
