"""The flat loops in examples/ run: they import pieces that no other program imports from outside the package."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}, thank you.", "rejected": f"{n} {n}"} for n in range(12)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\d\.\d+)", output)]


@pytest.mark.parametrize("name", ["dpo.py", "reward_model.py"])
def test_an_example_on_pairs_begins_at_ln_2_and_learns(
    name: str, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = ["--held-out", 4] if name == "reward_model.py" else []
    run(monkeypatch, name, pairs, "--steps", 3, *held_out)
    first, *_, last = losses(capsys.readouterr().out)
    assert first == 0.6931 and last < first


@pytest.mark.slow
def test_the_example_with_a_loss_of_its_own_learns(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "objective.py", pairs, "--steps", 3, "--out", tmp_path / "run")
    first, *_, last = losses(capsys.readouterr().out)
    assert first == 1.0 and last < first


def test_the_grpo_example_samples_and_updates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "grpo.py", "--steps", 1, "--prompts-per-step", 2, "--completions-per-prompt", 2)
    assert re.search(r"step +1 +reward \d\.\d+ +tokens \d+", capsys.readouterr().out)


def test_more_pairs_held_out_than_there_are_is_a_usage_error(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "reward_model.py", pairs, "--held-out", 12)
    assert ended.value.code == 2 and "none of the 12 pairs" in capsys.readouterr().err
