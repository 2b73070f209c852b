"""`pt.train`: several stages in one folder, beginning anew, and what a run that did not end well leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import posttrain as pt
from posttrain.config import DPO, SFT
from posttrain.errors import PosttrainError, ResumeError, RowError, SourceError
from posttrain.runs.folder import RunFolder
from posttrain.training import session
from posttrain.training.loop import Interrupted, Loop
from posttrain.training.session import train
from tests.chat_templates import CHATML
from tests.fixtures import byte_tokenizer, tiny_model

SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "rows_per_step": 2, "steps": 2, "held_out": 0}


class Export:
    """An export that is done at once; the real one starts a process."""

    def __init__(self, folder: Path):
        self.folder = folder

    def wait(self) -> str:
        self.folder.mkdir(parents=True)
        return "saved"

    def discard(self) -> None:
        pass


@pytest.fixture(autouse=True)
def quick_export(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        "posttrain.training.stages.policy.begin_save", lambda model, tokenizer, folder, *a, **k: Export(folder)
    )
    yield


@pytest.fixture
def start(tmp_path: Path) -> Path:
    tokenizer = byte_tokenizer(CHATML, specials=("<|im_start|>", "<|im_end|>"))
    tiny_model(vocab=len(tokenizer)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "sft.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": f"{i}."}) + "\n" for i in range(6)))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": f"{i}?", "chosen": f"{i}.", "rejected": "No."}) for i in range(6)]
    path.write_text("\n".join(lines) + "\n")
    return path


def stages(out: Path) -> dict[str, str]:
    return {entry.name: entry.status for entry in RunFolder(out).run().stages}


def stopped_after_saving(loop: Loop, whole: Any = Loop.run) -> int:
    whole(loop)
    raise KeyboardInterrupt


def test_a_second_stage_in_the_same_folder_keeps_the_first(
    start: Path, rows: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    train(SFT(**SETTINGS), start, rows, out=out)
    created = RunFolder(out).run().created
    run = train(DPO(**SETTINGS), start, pairs, out=out)
    assert stages(out) == {"sft": "done", "dpo": "done"}
    record = RunFolder(out).run()
    assert (record.status, record.created) == ("done", created)
    assert [folder.name for folder in RunFolder(out).stages()] == ["sft", "dpo"]
    assert run.report.exists() and len(run.metrics("train")) == 2


def test_fresh_begins_the_stage_anew_and_leaves_the_others(
    start: Path, rows: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"
    train(SFT(**SETTINGS), start, rows, out=out)
    train(DPO(**SETTINGS), start, pairs, out=out)
    other = DPO(**{**SETTINGS, "learning_rate": 2e-3})
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", stopped_after_saving)
        with pytest.raises(KeyboardInterrupt):
            train(DPO(**SETTINGS), start, pairs, out=out, fresh=True)
    with pytest.raises(ResumeError, match=r"`learning_rate` 0\.001 -> 0\.002(.|\n)*fresh=True"):
        train(other, start, pairs, out=out)
    assert stages(out) == {"sft": "done", "dpo": "failed"}
    run = train(other, start, pairs, out=out, fresh=True)
    assert stages(out) == {"sft": "done", "dpo": "done"}
    assert list(run.metrics("train").step) == [1, 2]
    assert (out / "sft" / "model").is_dir()


def test_fresh_clears_nothing_of_a_newer_version(start: Path, rows: Path, tmp_path: Path) -> None:
    """It is refused, and before its stage is gone: what that version trained cannot be made again here."""
    (tmp_path / "mine" / "sft" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "run.json").write_text('{"schema": 99, "stages": [{"name": "sft"}]}')
    (tmp_path / "mine" / "sft" / "stage.json").write_text('{"schema": 99, "status": "done"}')
    with pytest.raises(SourceError, match="newer version"):
        train(SFT(**SETTINGS), start, rows, out=tmp_path / "mine", fresh=True)
    assert (tmp_path / "mine" / "sft" / "model").is_dir()
    assert json.loads((tmp_path / "mine" / "sft" / "stage.json").read_text())["schema"] == 99


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped", remedy="again")], ids=["now", "later"])
def test_ctrl_c_is_an_interruption(
    stop: BaseException, start: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "mine"

    def stopped(self: Loop) -> int:
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", stopped)
        with pytest.raises(type(stop)):
            train(SFT(**SETTINGS), start, rows, out=out)
    assert stages(out) == {"sft": "interrupted"}
    assert RunFolder(out).run().status == "interrupted"
    assert RunFolder(out).stage("sft").stage().status == "interrupted"
    assert (out / "report.html").exists()
    train(SFT(**SETTINGS), start, rows, out=out)
    assert stages(out) == {"sft": "done"}


def test_a_failed_stage_has_its_report(start: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    (tmp_path / "empty").mkdir()
    with pytest.raises(PosttrainError):
        train(SFT(**SETTINGS), tmp_path / "empty", rows, out=out)
    record = RunFolder(out).stage("sft").stage()
    assert stages(out) == {"sft": "failed"}
    assert record.status == "failed" and "holds no model" in record.error
    assert (out / "report.html").exists()


def test_a_report_that_fails_hides_no_error(
    start: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> Path:
        raise ZeroDivisionError

    monkeypatch.setattr(session, "write_report", fails)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PosttrainError, match="no model"):
        train(SFT(**SETTINGS), tmp_path / "empty", rows, out=tmp_path / "mine")


def test_the_base_of_all_errors_is_public() -> None:
    assert pt.PosttrainError is PosttrainError and "PosttrainError" in pt.__all__


def test_rows_in_memory_train_like_a_file(start: Path, rows: Path, tmp_path: Path) -> None:
    listed = [json.loads(line) for line in rows.read_text().splitlines()]
    weights = []
    for name, data in (("file", rows), ("list", listed), ("generator", iter(listed)), ("frame", pd.DataFrame(listed))):
        run = train(SFT(**SETTINGS), start, data, out=tmp_path / name)
        weights.append(list(run.metrics("train").loss))
    assert weights[0] and all(one == weights[0] for one in weights)


def test_examples_of_another_kind_are_refused_before_a_model_is_loaded(rows: Path, tmp_path: Path, start: Path) -> None:
    with pytest.raises(RowError, match=r"these rows are demonstrations .*not comparisons"):
        train(DPO(**SETTINGS, beta=0.1), start, pt.read(rows), out=tmp_path / "run")
