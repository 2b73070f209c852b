"""A finished stage of one run folder in another: whole or not at all, and never a half stage."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.runs import shared
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.logs import MetricsLine
from posttrain.runs.records.stage import SharedFrom
from posttrain.runs.shared import Siblings, link_stage, remove_drafts


def write_stage(
    folder: Path, *, status: str = "done", identity: str = "abc", output: str | None = "model"
) -> StageFolder:
    stage = StageFolder(folder)
    for path in ("model", "checkpoints/step-00000002", "encoded", "rungs"):
        (folder / path).mkdir(parents=True)
        (folder / path / "file").write_text(path)
    stage.write_stage(name=folder.name, status=status, quick_identity=identity, output=output, seconds=12.5)
    stage.append(MetricsLine(1, 0.1, 0.5, "train", {"loss": 1.0}, {}))
    stage.close()
    return stage


def test_only_a_stage_that_is_done_with_its_output_there_is_found(tmp_path: Path) -> None:
    siblings = Siblings(tmp_path)
    assert siblings.finished("sft", "abc") is None
    write_stage(tmp_path / "running" / "sft", status="running")
    write_stage(tmp_path / "failed" / "sft", status="failed")
    write_stage(tmp_path / "other" / "sft", identity="abd")
    write_stage(tmp_path / "named" / "sft2")
    lost = write_stage(tmp_path / "lost" / "sft")
    (lost.model / "file").unlink()
    lost.model.rmdir()
    assert siblings.finished("sft", "abc") is None
    # `export: none` makes no output, and its figures are the result.
    kept_none = write_stage(tmp_path / "z" / "sft", output=None)
    assert (found := siblings.finished("sft", "abc")) is not None and found.path == kept_none.path
    # Who trained it comes before who has a link to it, whatever their names.
    kept_none.write_stage(shared=SharedFrom("whole", 12.5))
    whole = write_stage(tmp_path / "zz" / "sft")
    assert (found := siblings.finished("sft", "abc")) is not None and found.path == whole.path


def test_a_link_has_the_weights_and_records_of_its_own(tmp_path: Path) -> None:
    source = write_stage(tmp_path / "a" / "sft")
    (tmp_path / "b").mkdir()
    target = StageFolder(tmp_path / "b" / "sft")
    link_stage(source, target)
    assert target.stage().shared == SharedFrom("a", 12.5) and target.stage().status == "done"
    assert (target.model / "file").stat().st_ino == (source.model / "file").stat().st_ino
    target.append(MetricsLine(2, 0.2, 0.6, "train", {"loss": 0.5}, {}))
    target.close()
    assert len(target.metrics()) == 2 and len(source.metrics()) == 1
    assert not (target.path / "checkpoints").exists() and not (target.path / "rungs").exists()
    # A link to the link says who trained it, and takes nothing of the second's time.
    (tmp_path / "c").mkdir()
    link_stage(target, third := StageFolder(tmp_path / "c" / "sft"))
    assert third.stage().shared == SharedFrom("a", 12.5) and source.stage().shared is None


def test_a_disk_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(shared.os, "link", refused)
    source = write_stage(tmp_path / "a" / "sft")
    (tmp_path / "b").mkdir()
    link_stage(source, target := StageFolder(tmp_path / "b" / "sft"))
    assert (target.model / "file").read_text() == "model"
    assert (target.model / "file").stat().st_ino != (source.model / "file").stat().st_ino


def test_a_link_that_is_cut_short_leaves_no_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_stage(tmp_path / "a" / "sft")
    (tmp_path / "b").mkdir()
    target = StageFolder(tmp_path / "b" / "sft")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(shared.shutil, "copy2", killed)
        with pytest.raises(KeyboardInterrupt):
            link_stage(source, target)
    assert not target.path.exists()
    link_stage(source, target)
    assert target.exists and not list((tmp_path / ".shared").glob("draft-*"))
    with pytest.raises(ConfigError, match="cannot be linked"):
        link_stage(source, target)  # nothing is written over
    dead = tmp_path / ".shared" / f"draft-{shared.owner_tag().rpartition('-')[0]}-999999999-b-sft"
    dead.mkdir()
    remove_drafts(tmp_path)
    assert not dead.exists()


def test_who_comes_second_waits_for_the_first(tmp_path: Path) -> None:
    siblings = Siblings(tmp_path)
    said: list[str] = []
    order: list[str] = []

    def second() -> None:
        with siblings.turn("abc", said.append):
            order.append("second")

    with siblings.turn("abc"):
        thread = threading.Thread(target=second)
        thread.start()
        with siblings.turn("other"):  # another stage waits for nobody
            pass
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"] and said == ["another run of the sweep trains the same stage; waiting for it"]
