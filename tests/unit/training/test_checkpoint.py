"""A checkpoint outlives a kill at any moment, and a resumed run says what it cannot promise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.errors import CheckpointError, SourceError
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training import checkpoint
from posttrain.training.loop import Loop
from posttrain.training.optimizer import Optimizer
from tests.training import run_loop, work_of


class Killed(BaseException):
    """As sudden as `kill -9`."""


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def save(folder: Path, mark: str) -> Path:
    work = work_of()
    stage = work.stage
    optimizer = Optimizer(work.policy.model, stage.optimizer, learning_rate=0.1, schedule=stage.schedule, steps=4)
    return checkpoint.save(folder, step=3, model=work.policy.model, optimizer=optimizer, state={"mark": mark}, keep=2)


def found(folder: Path) -> Any:
    newest = checkpoint.latest(folder)
    return None if newest is None else newest.state["mark"]


def test_weights_that_are_views_are_saved(tmp_path: Path) -> None:
    """A transposed parameter is not contiguous, and neither are its moments: safetensors takes neither as they are."""
    model = torch.nn.Linear(3, 2, bias=False)
    model.weight = torch.nn.Parameter(torch.arange(6.0).view(3, 2).t())
    stage = work_of().stage
    optimizer = Optimizer(model, stage.optimizer, learning_rate=0.1, schedule=stage.schedule, steps=4)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step(0, [])
    assert not model.weight.is_contiguous()
    path = checkpoint.save(tmp_path, step=1, model=model, optimizer=optimizer, state={}, keep=1)
    saved = load_file(path / checkpoint.FILES[0])
    assert torch.equal(saved["weight"], model.weight.detach())
    assert checkpoint.latest(tmp_path / "nothing") is None


@pytest.mark.parametrize(("killed_at", "left"), [(1, "old"), (2, "old"), (3, "new")])
def test_a_kill_while_a_checkpoint_is_replaced_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int, left: str
) -> None:
    """Killed before the first rename, between the two, and after both: there is always one to go on from."""
    save(tmp_path, "old")
    replace, calls = os.replace, {"n": 0}

    def dying(source: Any, target: Any) -> None:
        calls["n"] += 1
        if calls["n"] == killed_at:
            raise Killed
        replace(source, target)

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    monkeypatch.setattr(os, "replace", dying)
    if killed_at == 3:
        monkeypatch.setattr(checkpoint, "read", killed)
    with pytest.raises(Killed):
        save(tmp_path, "new")
    monkeypatch.undo()
    assert found(tmp_path) == left
    save(tmp_path, "newest")
    assert found(tmp_path) == "newest"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_another_number_of_threads_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_loop(work_of(), tmp_path)

    def resumed() -> list[str]:
        folder, heard = StageFolder(tmp_path), Heard()
        Loop(work_of(), folder, heard).run()
        folder.close()
        return [line for line in heard.lines if "bit for bit" in line]

    assert resumed() == []
    before = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: before + 3)
    (line,) = resumed()
    assert f"had {before} threads and has {before + 3} now" in line


@pytest.mark.parametrize("content", ["", "[1]", "{}", "null", '{"state.json": {}}', "\udcff"])
def test_a_damaged_manifest_is_named(content: str, tmp_path: Path) -> None:
    path = save(tmp_path, "a")
    (path / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"manifest\.json is not what was saved") as refused:
        checkpoint.latest(tmp_path)
    assert refused.value.where == path and "remove step-00000003" in refused.value.remedy


def test_an_altered_file_is_named_in_one_line(tmp_path: Path) -> None:
    path = save(tmp_path, "a")
    (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError) as refused:
        checkpoint.latest(tmp_path)
    assert str(refused.value).splitlines() == [
        f"{path}: state.json is not what was saved",
        "  remedy:   remove step-00000003 to go on from the checkpoint before it, or start anew with --fresh",
    ]


def test_what_is_no_checkpoint_is_left_alone_and_told_once(tmp_path: Path) -> None:
    run_loop(work_of(), tmp_path)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-notes.txt").write_text("the good one")
    (checkpoints / "step-00000003 copy").mkdir()
    (checkpoints / "step-00000099").write_text("a file, no folder")
    work, heard = work_of(), Heard()
    loop = Loop(work, StageFolder(tmp_path), heard)
    loop.run()
    loop.folder.close()
    told = [line for line in heard.lines if "is no checkpoint" in line]
    assert len(told) == 1 and "step-00000003 copy, step-00000099, step-notes.txt" in told[0]
    assert (checkpoints / "step-notes.txt").exists() and (checkpoints / "step-00000003 copy").is_dir()


def test_a_full_disk_is_told_with_the_checkpoints_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(SourceError, match="step-00000003: the file cannot be written") as refused:
        save(tmp_path, "a")
    assert "No space left on device" in str(refused.value) and "free some room" in refused.value.remedy


def test_a_log_that_was_cut_is_told_when_the_run_goes_on(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path)
    loop = Loop(work_of(), folder, Progress())
    take = loop._one_step

    def killed(phase: Any) -> None:
        if loop.step == 7:
            raise Killed
        take(phase)

    loop._one_step = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        loop.run()
    folder.close()
    log = tmp_path / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"step": 1,' not in line and '"step": 2,' not in line]
    for content, words in (
        ("".join(kept), "lacks steps 1 to 2: curves and report begin at step 3"),
        ("".join(lines[:3]), "lacks steps 3 to 6: curves and report have no points there"),
        ("", "lacks steps 1 to 6: curves and report begin at step 7"),
        ("".join(lines), None),
    ):
        log.write_text(content)
        heard = Heard()
        Loop(work_of(), StageFolder(tmp_path), heard).saver.resume()
        told = [line for line in heard.lines if "metrics.jsonl lacks" in line]
        assert told == ([] if words is None else [f"{tmp_path.name}: metrics.jsonl {words}"])
