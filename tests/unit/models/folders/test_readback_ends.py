"""A process that reads back, and what it works on, do not outlive the process that asked for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from posttrain.errors import SourceError
from posttrain.models.folders import catalogue, export, readback
from tests.fixtures import byte_tokenizer, tiny_model
from tests.read_back import OWN_INTERPRETER
from tests.unit.runs.test_disk import dead_tag

TOKENIZER = byte_tokenizer("CHATML", pad=None)


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """However that dies: the system closes its end of the pipe."""
    (tmp_path / "request.json").write_text(json.dumps({"folder": "nowhere"}))
    process = OWN_INTERPRETER(tmp_path)
    assert process.stdin is not None and process.poll() is None
    process.stdin.close()
    assert process.wait(60) == 1
    assert (tmp_path / "errors.txt").read_text() == ""  # it did not fail at its work: it was ended


def test_one_that_is_done_ends_as_usual(tmp_path: Path) -> None:
    """While its parent lives: the thread that watches does not disturb the end."""
    code = f"import runpy; runpy.run_path({readback.__file__!r})['end_with_parent'](); print('done')"
    done = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert done.wait(60) == 0 and done.stdout is not None and done.stdout.read() == b"done\n"
    done.communicate()


def test_the_next_save_or_pull_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for purpose in ("readback", "pull"):
        (tmp_path / f"posttrain-{purpose}-{dead_tag()}-x").mkdir()
    export.scratch_folder("readback")
    with catalogue.scratch("pull"):
        assert len(list(tmp_path.glob("posttrain-*"))) == 2  # those of this process
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == ["readback"]


def test_a_save_on_a_full_disk_names_the_folder(tmp_path: Path) -> None:
    def full(*arguments: Any) -> Any:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    model = tiny_model("llama", vocab=len(TOKENIZER))
    with pytest.raises(SourceError, match="model: the file cannot be written") as refused:
        export.begin_save(model, TOKENIZER, tmp_path / "model", write=full)
    assert "No space left on device" in str(refused.value) and list(tmp_path.iterdir()) == []
