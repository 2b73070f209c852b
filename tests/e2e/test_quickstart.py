"""The quickstart as a user runs it: one command in an empty folder, and what README and docs say comes out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

STAGES = ("start", "sft", "dpo", "grpo")
"""The policies that are asked."""
TRAINED = ("sft", "reward", "dpo", "grpo")
SHARES = {
    # suite: lowest and highest share at the start, after SFT, DPO and GRPO; docs/embedded-model.md has the figures
    "called_pia.match": ((0.0, 0.05), (0.0, 0.2), (0.8, 1.0), (0.75, 1.0)),
    "polite.match": ((0.0, 0.05), (0.0, 0.2), (0.9, 1.0), (0.65, 1.0)),
    "filler.unwanted_match": ((0.0, 0.05), (0.75, 1.0), (0.0, 0.1), (0.0, 0.1)),
    "arithmetic.accuracy": ((0.0, 0.05), (0.3, 0.7), (0.35, 0.75), (0.6, 0.95)),
    "sums.pass_at_1": ((0.0, 0.05), (0.15, 0.4), (0.15, 0.45), (0.38, 0.75)),
    "sums.pass_at_8": ((0.0, 0.35), (0.6, 0.95), (0.6, 0.95), (0.7, 1.0)),
    "liked.win_rate": ((0.5, 0.5), (0.0, 0.3), (0.6, 1.0), (0.55, 1.0)),
}


SHORT = (
    *("sft.epochs=0.03", "reward.epochs=0.08", "dpo.epochs=0.08", "grpo.steps=2", "grpo.examine.every_steps=2"),
    *("grpo.held_out=0.01", "grpo.prompts_per_step=2", "grpo.completions_per_prompt=2"),
    *(f"evaluate.suites.{suite.partition('.')[0]}.limit=2" for suite in SHARES if suite != "sums.pass_at_8"),
)
"""A few steps and a few prompts of each."""


def quickstart(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "posttrain", *(words or ("quickstart",))],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(the folder it ran in, what it printed)"""
    folder = tmp_path_factory.mktemp("quickstart")
    return folder, quickstart(folder)


def test_in_short_every_stage_is_done(tmp_path: Path) -> None:
    """What `make test` has of it; `make test-long` runs the whole."""
    said = quickstart(tmp_path, "run", "quickstart", *SHORT)
    require_done(tmp_path / "runs" / "quickstart")
    assert "after grpo" in said and "runs/quickstart/report.html" in said


def test_every_stage_is_done(finished: tuple[Path, str]) -> None:
    require_done(finished[0] / "runs" / "quickstart")


def require_done(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done"
    assert [(stage["name"], stage["status"]) for stage in record["stages"]] == [(name, "done") for name in TRAINED]
    for name in TRAINED:
        stage = json.loads((run / name / "stage.json").read_text())
        assert stage["status"] == "done" and stage["output"] == "model" and stage["logprobs"] == "tree"
        checks = json.loads((run / name / "preflight.json").read_text())["checks"]
        assert {check["status"] for check in checks} == {"pass"}, checks
        assert (run / name / "model" / "model.safetensors").exists()
        alarms = (run / name / "alarms.jsonl").read_text() if (run / name / "alarms.jsonl").exists() else ""
        assert '"critical"' not in alarms


@pytest.mark.parametrize("suite", SHARES)
def test_the_figures_move_as_they_are_said_to(finished: tuple[Path, str], suite: str) -> None:
    summary = json.loads((finished[0] / "runs" / "quickstart" / "summary.json").read_text())
    for stage, (low, high) in zip(STAGES, SHARES[suite], strict=True):
        assert low <= summary[stage][suite] <= high, (suite, stage)


def test_reinforcement_lifts_the_sums_and_keeps_the_manners(finished: tuple[Path, str]) -> None:
    folder, said = finished
    run = folder / "runs" / "quickstart"
    summary = json.loads((run / "summary.json").read_text())
    before, after = summary["sft"], summary["grpo"]
    assert (
        after["arithmetic.accuracy"] - before["arithmetic.accuracy"] >= 0.2 - 0.05
    )  # another machine rounds otherwise
    evaluation = json.loads((run / "grpo" / "evaluation.json").read_text())["sums"]
    assert all(evaluation[f"pass_at_{k}"]["low"] < evaluation[f"pass_at_{k}"]["high"] for k in (1, 8))
    changes = json.loads((run / "pass_at_k.json").read_text())["changes"]
    pairs = [(change["base"], change["trained"]) for change in changes]
    assert pairs == [("start", "sft"), ("sft", "dpo"), ("dpo", "grpo"), ("start", "grpo")]
    first = changes[2]["points"][0]
    assert first["k"] == 1 and first["clear"] and first["difference"]["low"] > 0
    printed = " ".join(said.split())
    assert all(f"{change['suite']}: {change['said']}" in printed for change in changes)


def test_the_table_is_the_summary(finished: tuple[Path, str]) -> None:
    folder, said = finished
    summary = json.loads((folder / "runs" / "quickstart" / "summary.json").read_text())
    lines = said.splitlines()
    header = next(index for index, line in enumerate(lines) if "before" in line and "after grpo" in line)
    assert re.findall(r"before|after \w+", lines[header]) == ["before", "after sft", "after dpo", "after grpo"]
    rewards = next(index for index, line in enumerate(lines) if "untrained head" in line)
    rows = [line for line in lines[header + 1 : rewards] if "% [" in line]
    table = {re.split(r"\s{2,}", line)[0]: re.findall(r"(\d+) %", line) for line in rows}
    labels = {suite: suite.partition(".")[0] for suite in SHARES}
    labels |= {f"sums.pass_at_{k}": f"sums pass@{k}" for k in (1, 8)}
    # Nearly every answer is shorter than the start's, which are cut: what it would win at equal length nobody knows.
    table.pop("liked, at equal length", None)
    assert table == {labels[suite]: [f"{summary[stage][suite] * 100:.0f}" for stage in STAGES] for suite in SHARES}
    heads = [f"{summary['reward'][f'{head}.accuracy'] * 100:.0f}" for head in ("untrained", "trained")]
    assert re.findall(r"(\d+) % \[", lines[rewards + 1]) == heads
    assert float(heads[0]) < 70 < 85 < float(heads[1])
    assert "runs/quickstart/report.html" in said


def test_the_report_needs_nothing_beside_it(finished: tuple[Path, str]) -> None:
    """No style sheet, script, image or font is fetched: the file can be sent by mail."""
    page = (finished[0] / "runs" / "quickstart" / "report.html").read_text(encoding="utf-8")
    assert len(page) > 50_000 and "</html>" in page
    fetched = re.findall(r"""(?:\bsrc|\bhref|\bdata|\bposter|\baction)\s*=\s*["'](?!#|data:)([^"']+)""", page)
    assert not fetched
    assert not re.search(r"@import|url\(\s*['\"]?(?!#|data:)|<iframe\b", page)
    assert all(stage in page for stage in ("sft", "dpo", "grpo")) and "called_pia" in page


def test_running_again_does_nothing(finished: tuple[Path, str]) -> None:
    folder, first = finished
    run = folder / "runs" / "quickstart"
    trained = [path for pattern in ("*/metrics.jsonl", "*/model/*") for path in run.glob(pattern)]
    asked = [path for pattern in ("*/evaluation.json", "*/evaluations/*") for path in run.glob(pattern)]
    assert len(trained) > 8 and len(asked) >= 4 * (1 + 8)
    untouched = {path: path.stat().st_mtime_ns for path in trained}
    same = {path: path.read_bytes() for path in asked}
    said = quickstart(folder)
    assert {path: path.stat().st_mtime_ns for path in trained} == untouched
    assert {path: path.read_bytes() for path in asked} == same
    assert said.count("done before") == 4

    def table(text: str) -> list[str]:
        return [line for line in text.splitlines() if "% [" in line]

    assert table(said) == table(first)
