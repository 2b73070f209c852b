"""File systems without locks, modes or syncs of folders; and disks that refuse."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.write import JsonlWriter, write_jsonl
from posttrain.errors import ResumeError, SourceError
from posttrain.runs import disk, owner
from posttrain.runs.files import JsonlLog, read_jsonl, write_text
from posttrain.runs.folder import RunFolder
from posttrain.runs.heartbeat import Heartbeat
from posttrain.runs.progress import Progress


def failing(number: int) -> Any:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_run_starts_where_there_are_no_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    said: list[str] = []
    with RunFolder(tmp_path).locked(said.append):
        # The weaker guard: the process that is written in the file lives.
        with pytest.raises(ResumeError, match="another process"), RunFolder(tmp_path).locked():
            pass
        assert owner.gone_since(tmp_path) is None
    assert len(said) == 1 and "this file system has no locks" in said[0]
    with RunFolder(tmp_path).locked():  # and it is free again
        pass


def test_a_held_lock_is_still_another_process(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as first, (tmp_path / "x").open("w") as second:
        assert (disk.lock(first), disk.lock(second)) == (disk.Lock.HELD, disk.Lock.BUSY)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_folder_that_cannot_be_synced_is_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: failing(number)() if os.path.isdir(handle) else sync(handle))
    monkeypatch.setattr(os, "chmod", failing(errno.EPERM))
    monkeypatch.setattr(os.path, "isdir", lambda handle: os.path.stat.S_ISDIR(os.fstat(handle).st_mode))  # type: ignore[attr-defined]
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_disk_that_fails_is_no_file_system_that_lacks_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    monkeypatch.setattr(os, "chmod", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        disk.sync_folder(tmp_path)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        disk.set_mode(tmp_path, 0o600)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some room"),
        (errno.EDQUOT, "free some room"),
        (errno.EACCES, "may read and write"),
        (errno.EROFS, "read-only"),
        (errno.ENAMETOOLONG, "shorter path"),
        (errno.ENXIO, "another disk"),
    ],
)
def test_a_refused_write_names_file_folder_and_remedy(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", failing(number))
    with pytest.raises(SourceError, match="the file cannot be written") as refused:
        write_text(tmp_path / "run.json", "{}")
    text = str(refused.value)
    assert refused.value.where == tmp_path / "run.json" and os.strerror(number) in text and remedy in text
    assert f"in the folder {tmp_path}" in text and list(tmp_path.iterdir()) == []
    assert ("MB are free" in text) is (number in disk.FULL)


def test_a_log_on_a_full_disk_names_its_file(tmp_path: Path) -> None:
    log = JsonlLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    log.close()
    log._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with pytest.raises(SourceError, match=r"metrics\.jsonl: the file cannot be written"):
        log.append({"step": 2})
    log.close()


def test_a_pulse_that_cannot_be_written_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", failing(errno.ENOSPC))
    with Heartbeat(tmp_path, Progress()):
        pass


def test_a_line_that_is_taken_in_parts_is_whole(tmp_path: Path) -> None:
    """A raw file may take a part of what it is given."""
    log = JsonlLog(tmp_path / "metrics.jsonl")
    file = log._file

    class Slow:
        def write(self, content: memoryview) -> int:
            return file.write(content[:3])

    log._file = Slow()  # type: ignore[assignment]
    log.append({"step": 1})
    file.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_rows_to_a_refused_place_are_no_fault_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be written"):
        write_jsonl(tmp_path / "file" / "out.jsonl", [{"a": 1}])


# ---------------------------------------------------------------- what dead processes leave


def dead_tag() -> str:
    """A process of this machine that is gone."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return f"{owner.host_tag()}-{child}"


def test_the_next_run_removes_the_drafts_of_killed_writers(tmp_path: Path) -> None:
    dead, living = dead_tag(), owner.owner_tag()
    elsewhere = f"00000000-{dead.split('-')[1]}"  # the number is free here, and says nothing of the other machine
    for folder in (tmp_path, tmp_path / "sft", tmp_path / "sft" / "evaluations"):
        folder.mkdir(exist_ok=True)
        for tag in (dead, living, elsewhere):
            (folder / f".run.json.{tag}.abc.tmp").write_text("{")
    (tmp_path / ".mine.tmp").write_text("a user's own")
    with RunFolder(tmp_path).locked():
        left = {path.name for path in tmp_path.rglob("*.tmp")}
    assert left == {f".run.json.{living}.abc.tmp", f".run.json.{elsewhere}.abc.tmp", ".mine.tmp"}


def test_scratch_folders_of_dead_processes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, other = dead_tag(), tmp_path / "elsewhere"
    other.mkdir()
    (other / "kept.txt").write_text("")
    (tmp_path / f"posttrain-pull-{dead}-a").mkdir()
    (tmp_path / f"posttrain-pull-{dead}-a" / "big.gguf").write_text("")
    (tmp_path / f"posttrain-pull-{dead}-link").symlink_to(other / "kept.txt")  # another user may have put it there
    (tmp_path / f"posttrain-readback-{dead}-a").mkdir()  # another purpose
    mine = owner.scratch_folder("pull")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert (
        names == sorted([mine.name, "elsewhere", f"posttrain-pull-{dead}-link", f"posttrain-readback-{dead}-a"])
        and (other / "kept.txt").exists()
    )
    with owner.scratch("pull") as folder:
        assert folder.is_dir() and mine.is_dir()
    assert not folder.exists()


def test_another_users_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"posttrain-pull-{dead_tag()}"
    path.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert owner.remove_dead(tmp_path, "posttrain-pull-") == [] and path.is_dir()


# ---------------------------------------------------------------- does it still run?


def left_by(run: Path, pid: int, host: str | None = None, pulse: str | None = None) -> Path:
    """A run folder as a process leaves it that was killed."""
    (run / "sft").mkdir(parents=True)
    host = owner.host_tag() if host is None else host
    (run / ".lock").write_text(f'{{"host": "{host}", "pid": {pid}, "since": "2026-03-01T12:00:00+00:00"}}')
    if pulse:
        (run / "sft" / "heartbeat.json").write_text(f'{{"time": "{pulse}"}}')
    return run


OLD = "2026-03-01T12:30:00+00:00"


def test_a_run_without_its_process_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert owner.gone_since(tmp_path) is None  # no run that had a lock: nobody can tell
    dead = int(dead_tag().split("-")[1])
    assert owner.gone_since(left_by(tmp_path / "a", dead, pulse=OLD)) == OLD
    assert owner.gone_since(left_by(tmp_path / "b", dead)) is not None  # no pulse yet: the time of the lock's file
    # Of another machine, where a lock may not be seen here: its pulse decides.
    now = owner._text(owner.datetime.datetime.now(owner.datetime.UTC))
    assert owner.gone_since(left_by(tmp_path / "c", 1, "00000000", pulse=now)) is None
    assert owner.gone_since(left_by(tmp_path / "d", 1, "00000000", pulse=OLD)) == OLD
    assert owner.gone_since(left_by(tmp_path / "g", 1, "00000000")) is None  # not a word of it yet
    # The number has another process by now; the lock of the one that is written there is free.
    reused = left_by(tmp_path / "h", os.getpid(), pulse=OLD)
    (reused / "dpo").mkdir()
    (reused / "dpo" / "heartbeat.json").write_text('{"time": "2026-03-01T12:50:00+00:00"}')
    assert owner.gone_since(reused) == "2026-03-01T12:50:00+00:00"  # the last of its stages' pulses
    # Without locks the process decides.
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    assert owner.gone_since(left_by(tmp_path / "e", dead, pulse=OLD)) == OLD
    assert owner.gone_since(left_by(tmp_path / "f", os.getpid(), pulse=OLD)) is None


def test_a_lock_that_is_held_is_a_run_that_lives_whatever_its_file_says(tmp_path: Path) -> None:
    dead = int(dead_tag().split("-")[1])
    with RunFolder(tmp_path).locked():
        (tmp_path / "sft").mkdir()
        (tmp_path / "sft" / "heartbeat.json").write_text(f'{{"time": "{OLD}"}}')
        (tmp_path / ".lock").write_text(f'{{"host": "{owner.host_tag()}", "pid": {dead}, "since": "{OLD}"}}')
        assert owner.gone_since(tmp_path) is None


def test_what_another_user_owns_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, dead = left_by(tmp_path / "a", 1, "00000000"), dead_tag()
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", failing(errno.EPERM))
        assert not owner.is_dead(dead)
    monkeypatch.setattr(Path, "open", failing(errno.EACCES))
    assert owner.gone_since(run) is None  # neither its lock nor its file can be read


def test_to_look_whether_a_run_lives_does_not_stop_one(tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked():
        pass
    with (tmp_path / ".lock").open() as reader:
        disk.lock(reader, shared=True)
        assert owner._lock_of(tmp_path / ".lock") is disk.Lock.HELD  # two readers do not see each other


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_a_file_takes_no_pipes_place(name: str, tmp_path: Path) -> None:
    """Nor a device's: `generate --out /dev/null` by root left a file there, for every program of the machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(SourceError, match="cannot be written"):
        write_text(tmp_path / name, "x")
    with pytest.raises(SourceError, match="cannot be written"), JsonlWriter(tmp_path / name) as writer:
        writer.write({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]
    assert (tmp_path / name).is_fifo()
