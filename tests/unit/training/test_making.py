"""`pt.make`: a stage that makes rows, from a program, with the records of a recipe's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.errors import ConfigError, UnknownKeyError
from posttrain.runs.folder import RunFolder
from posttrain.training.making import GIVEN, MAKING
from tests.fixtures import byte_tokenizer, tiny_model

ROWS = [{"prompt": f"{n} + 1?", "completion": f"{n + 1}."} for n in range(9)]
PICK = {"method": "select", "name": "picked", "steps": [{"kind": "budget", "rows": 4}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("model"), byte_tokenizer("CHATML", pad=None)
    tiny_model(vocab=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_rows_in_memory_are_made_into_rows(model: Path, tmp_path: Path) -> None:
    made = pt.make(PICK, model, ROWS, out=tmp_path / "run", progress=False)
    assert len(made) == 4 and {row.row.source for row in made} == {str(tmp_path / "run" / "picked" / "data.jsonl")}
    record = RunFolder(tmp_path / "run").stage("picked").stage()
    assert record.status == "done" and record.data is not None and record.data.read == 9
    assert (tmp_path / "run" / GIVEN).is_file() and (tmp_path / "run" / "report.html").is_file()


def test_the_same_call_again_makes_nothing_and_other_rows_do(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pt.make(PICK, model, ROWS, out=tmp_path / "run", progress=False)
    written = (tmp_path / "run" / "picked" / "data.jsonl").stat().st_mtime_ns
    pt.make(PICK, model, ROWS, out=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "picked" / "data.jsonl").stat().st_mtime_ns == written
    pt.make(PICK, model, ROWS[:6], out=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "picked.1").is_dir()


def test_a_path_and_the_policys_answers(model: Path, tmp_path: Path) -> None:
    """Through a loaded policy: a random model's answers are cut, and every answer will do."""
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    with pytest.raises(pt.PosttrainError, match="no row came out"):
        stage = {"method": "best_of", "samples": 2, "sampling": {"max_new_tokens": 2}, "scorer": "logprob"}
        pt.make(stage, model, file, out=tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").stage("best_of").stage().status == "failed"


@pytest.mark.parametrize(
    "stage", ["sft", pt.SFT(), {"method": "merge", "merge": {"kind": "linear", "models": ["a"]}}, 3]
)
def test_what_makes_no_rows_is_refused(stage: Any, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no stage that makes rows") as caught:
        pt.make(stage, model, ROWS, out=tmp_path / "run")
    assert "best_of" in str(caught.value.expected)


def test_a_method_that_there_is_not(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownKeyError, match="did you mean `best_of`"):
        pt.make("bestof", model, ROWS, out=tmp_path / "run")


def test_every_stage_that_makes_rows_is_one() -> None:
    assert set(MAKING) >= {"best_of", "pairs", "correction", "search", "distil", "select"}
