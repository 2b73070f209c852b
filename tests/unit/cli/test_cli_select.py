"""posttrain select: what it shows, what it writes, and what it refuses before a row is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.cli.usage import OTHER_VERBS
from posttrain.runs.files import read_json, read_jsonl


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{n % 8}?", "completion": "yes " * (n + 1), "stars": n} for n in range(10)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]) + "{broken\n")
    return path


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["select", *map(str, words)])
    return result.exit_code, result.output


def test_a_table_and_where_everything_is(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "picked"
    steps = ("--step", "score score.kind=length keep.least=3", "--step", "deduplicate", "--budget", 4)
    code, text = run(rows, "--out", out, "--bad-rows", "skip", *steps)
    assert code == 0, text
    assert "12 demonstrations read, 4 kept" in text and "1 bad_json" in text and "3 below" in text
    lines = text.splitlines()
    assert any(line.split()[:4] == ["score", "length", "11", "8"] for line in lines)
    assert lines[-1].startswith(f"next: posttrain new chat --data {out}/data.jsonl")
    assert any(line.startswith(f"{out}/random.jsonl: 4 random rows of 11; ") for line in lines)
    assert "columns that nothing reads: stars" in text
    assert len(read_jsonl(out / "data.jsonl")) == 4 and len(read_jsonl(out / "rejected.jsonl")) == 8


def test_a_column_that_a_step_reads_is_read(rows: Path, tmp_path: Path) -> None:
    steps = ("--step", "score score.kind=column score.column=stars")
    code, text = run(rows, "--out", tmp_path / "picked", "--bad-rows", "skip", *steps)
    assert code == 0 and "nothing reads" not in text


def test_steps_of_a_file_and_a_seed(rows: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "select.yaml"
    recipe.write_text("steps:\n  - {kind: budget, share: 0.5, by: random}\n")
    twins = []
    for seed in (0, 1):
        code, text = run(rows, "--out", tmp_path / "picked", "--recipe", recipe, "--bad-rows", "skip", "--seed", seed)
        assert code == 0, text
        twins.append((tmp_path / "picked" / "random.jsonl").read_text())
    assert twins[0] != twins[1] and read_json(tmp_path / "picked" / "manifest.json")["seed"] == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "nothing says how rows are chosen"),
        (("--step", "dedup"), "did you mean `deduplicate`"),
        (("--step", "deduplicate", "--step", "decontaminate against=embedded"), "decontaminated before anything else"),
        (("--budget", "0"), "--budget"),
        (("--step", "budget tokens=9"), "no model is named whose tokens they are"),
        (("--budget", "3"), "row 12"),
    ],
)
def test_what_is_refused(rows: Path, tmp_path: Path, words: tuple[str, ...], problem: str) -> None:
    skip = () if problem == "row 12" else ("--bad-rows", "skip")
    code, text = run(rows, "--out", tmp_path / "picked", *skip, *words)
    assert code == 2 and problem in text
    assert not (tmp_path / "picked" / "data.jsonl").exists()


def test_other_names_of_the_verb() -> None:
    assert "decontaminate" in OTHER_VERBS["select"].split()
