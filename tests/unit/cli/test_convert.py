"""posttrain convert from outside: what it writes, refuses and ends with."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.cli.app import app
from posttrain.config.load import load_recipe

CONFIG = """
base_model: embedded
datasets: [{path: rows.jsonl, type: chat_template}]
learning_rate: 2e-4
max_steps: 2
micro_batch_size: 4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 2?", "completion": "4"}\n', encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "more.yaml").write_text(CONFIG + "neftune_noise_alpha: 5\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_writes_a_recipe_that_runs_read(folder: Path) -> None:
    done = CliRunner().invoke(app, ["convert", "mine.yaml", "--from", "axolotl", "--strict"])
    assert done.exit_code == 0, done.output
    assert "next: posttrain check mine.recipe.yaml" in done.output
    stage = load_recipe(folder / "mine.recipe.yaml").stages[0]
    assert (stage.rows_per_step, stage.steps, stage.learning_rate) == (4, 2, 2e-4)  # type: ignore[attr-defined]
    assert stage.data is not None and stage.data.path == (str(folder / "rows.jsonl"),)


def test_it_overwrites_nothing_and_strict_counts_what_is_missing(folder: Path) -> None:
    said = CliRunner().invoke(app, ["convert", "more.yaml", "--from", "axolotl", "--out", "deep/more.yaml"])
    assert said.exit_code == 0 and "neftune_noise_alpha: 5" in said.output and "no noise is added" in said.output
    written = (folder / "deep" / "more.yaml").read_text(encoding="utf-8")
    again = CliRunner().invoke(app, ["convert", "more.yaml", "--from", "axolotl", "--out", "deep/more.yaml"])
    assert again.exit_code == 2 and (folder / "deep" / "more.yaml").read_text(encoding="utf-8") == written
    strict = CliRunner().invoke(app, ["convert", "more.yaml", "--from", "axolotl", "--strict", "--out", "b.yaml"])
    assert strict.exit_code == 1 and (folder / "b.yaml").is_file()


def test_refusals_end_with_2(folder: Path) -> None:
    for words in (
        ["nowhere.yaml"],
        ["rows.jsonl"],
        ["mine.yaml", "--from", "axolotll"],
        ["mine.yaml", "--processes", "0"],
    ):
        assert CliRunner().invoke(app, ["convert", *words]).exit_code == 2, words
    assert not (folder / "nowhere.recipe.yaml").exists()
