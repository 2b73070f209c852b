"""A process that reads back, and what it works on, do not outlive the process that asked for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.models.folders import catalogue, export
from tests.read_back import OWN_INTERPRETER
from tests.unit.runs.test_disk import dead_tag


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """However that dies: the system closes its end of the pipe."""
    (tmp_path / "request.json").write_text(json.dumps({"folder": "nowhere"}))
    process = OWN_INTERPRETER(tmp_path)
    assert process.stdin is not None and process.poll() is None
    process.stdin.close()
    assert process.wait(60) == 1
    assert (tmp_path / "errors.txt").read_text() == ""  # it did not fail at its work: it was ended


def test_the_next_save_or_pull_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for purpose in ("readback", "pull"):
        (tmp_path / f"posttrain-{purpose}-{dead_tag()}-x").mkdir()
    export.scratch_folder("readback")
    with catalogue.scratch("pull"):
        assert len(list(tmp_path.glob("posttrain-*"))) == 2  # those of this process
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == ["readback"]
