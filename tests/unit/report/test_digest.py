"""A run in a few lines: the same figures as its report, as text, as JSON and by an exit code; and in a notebook."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import pytest
from typer.testing import CliRunner

import posttrain as pt
from posttrain.cli.app import app
from posttrain.report.digest import digest
from tests.fake_run import Plan, write_fake_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_run(tmp_path_factory.mktemp("runs") / "mine", Plan(steps=24, pairs=16, prompts=8))


def invoke(*words: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["summary", *words])
    return answer.exit_code, answer.stdout


def test_the_json_holds_the_records_own_figures(run: Path) -> None:
    code, out = invoke(str(run), "--json")
    said = json.loads(out)
    assert code == 0 and said["schema"] == 1 and said["status"] == "done" and len(said["stages"]) == 3
    dpo = said["stages"][2]
    lines = [json.loads(line) for line in (run / "dpo" / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["step"], line["values"]["loss"]) for line in lines if line["split"] == "held_out"]
    best = min(losses, key=lambda point: point[1])
    assert dpo["held_out"]["loss"] == {
        "first": losses[0][1],
        "last": losses[-1][1],
        "best": best[1],
        "best_step": best[0],
    }
    assert dpo["steps"] == max(line["step"] for line in lines)
    written = json.loads((run / "dpo" / "evaluation.json").read_text())
    assert said["suites"]["dpo"]["identity"]["match"] == written["identity"]["match"]
    rung = {json.loads(line)["name"] for line in (run / "dpo" / "alarms.jsonl").read_text().splitlines()}
    assert {alarm["name"] for alarm in dpo["alarms"]} == rung
    assert {one["kind"] for one in said["findings"]} <= {"good", "bad", "warn", "plain"} and said["actions"]


def test_the_text_says_what_the_verdict_says(run: Path) -> None:
    code, out = invoke(str(run))
    found = digest(run)
    assert code == 0
    assert out.splitlines()[0] == f"mine: {found.verdict.grade}. {found.verdict.headline}"
    assert "held-out loss: 0.693 -> " in out and "identity.match: start 0.0" in out
    for action in found.verdict.actions:
        assert f"to do: {action.text}" in out


def test_the_exit_code_judges_as_far_as_it_is_asked(run: Path, tmp_path: Path) -> None:
    assert [invoke(str(run), "--fail-on", level)[0] for level in ("never", "failed", "bad", "warn")] == [0, 0, 1, 1]
    clean = write_fake_run(tmp_path / "clean", Plan(steps=12, pairs=8, prompts=4, alarms=False))
    (clean / "run.json").write_text(
        (clean / "run.json").read_text().replace('"status": "done"', '"status": "failed"', 1)
    )
    assert [invoke(str(clean), "--fail-on", level)[0] for level in ("never", "failed", "bad")] == [0, 1, 1]
    assert invoke(str(tmp_path / "none"))[0] == 2


def test_a_notebook_shows_the_curves_of_the_report_in_a_frame(run: Path) -> None:
    shown = pt.Run.open(run, "dpo")._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and 'sandbox=""' in shown
    inside = unescape(shown.split('srcdoc="')[1].split('" sandbox')[0])
    assert inside.count("<svg") >= 3 and "Reward margin" in inside and "<script" not in inside
    assert "held-out loss" in inside and "http" not in inside.replace("http://www.w3.org", "")


def test_texts_of_a_run_are_no_markup_in_a_notebook(run: Path, tmp_path: Path) -> None:
    hostile = write_fake_run(tmp_path / "hostile", Plan(steps=3, pairs=4, prompts=2))
    record = json.loads((hostile / "dpo" / "stage.json").read_text())
    record["warnings"] = ['"><img src=x onerror=alert(1)>']
    (hostile / "dpo" / "stage.json").write_text(json.dumps(record))
    shown = pt.Run.open(hostile, "dpo")._repr_html_()
    assert "<img" not in shown and "<img" not in unescape(shown) and "&lt;img" in unescape(shown)
