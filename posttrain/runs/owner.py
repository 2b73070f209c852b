"""Which process owns a file or a folder, and whether it still lives.

    owner_tag()                       # "9f86d081-4711": this machine and process, for names of temporary files
    is_dead("9f86d081-4711")          # True only where this machine can tell: another machine's are left alone
    remove_dead(folder, prefix)       # temporary files whose writer was killed
    gone_since(run_folder)            # a run that says `running`, and whose process is gone

A run holds the kernel's lock on `.lock` of its folder, which ends with the process however it dies; the file names the
process too, for file systems without locks. Standard library only.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from posttrain.runs.disk import Lock, lock

FRESH_SECONDS = 60.0
"""A pulse that is older means that the process is gone, or that nothing in it can run."""
LOCK = ".lock"
HEARTBEAT = "heartbeat.json"

_TAG = re.compile(r"([0-9a-f]{8})-(\d+)")


# ---------------------------------------------------------------- temporary names


def host_tag() -> str:
    """This machine, in eight letters: a process number alone names another process on each machine of a cluster."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def owner_tag() -> str:
    return f"{host_tag()}-{os.getpid()}"


def is_dead(name: str) -> bool:
    """Whether the owner that is written in a name is gone; False where it cannot be told."""
    found = _TAG.search(name)
    return found is not None and found[1] == host_tag() and not _is_alive(int(found[2]))


def remove_dead(folder: Path, prefix: str) -> list[Path]:
    """Remove files and folders of this user that begin with `prefix` and whose owner is gone; gives their paths."""
    removed = []
    for path in sorted(folder.glob(f"{prefix}*")):
        if is_dead(path.name.removeprefix(prefix)) and _is_own(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def scratch_folder(purpose: str) -> Path:
    """A new folder in the system's place for temporary files; those of dead processes for the same purpose go."""
    prefix = f"posttrain-{purpose}-"
    # A killed process removes nothing, and nobody else knows of its folder: hundreds of megabytes for each.
    remove_dead(Path(tempfile.gettempdir()), prefix)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{owner_tag()}-"))


@contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """`scratch_folder`, removed at the end."""
    folder = scratch_folder(purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_own(path: Path) -> bool:
    """In a place that all users share, a link or another's folder of our name is not ours to remove."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return not stat.S_ISLNK(status.st_mode) and (os.name == "nt" or status.st_uid == os.getuid())


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # signal 0 ends a process there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


# ---------------------------------------------------------------- the owner of a run


@dataclass(frozen=True, slots=True)
class Owner:
    """What `.lock` says while a run goes on: Owner(host="9f86d081", pid=4711, since="2026-03-01T12:00:00+00:00")."""

    host: str
    pid: int
    since: str

    @property
    def is_here(self) -> bool:
        return self.host == host_tag()

    @property
    def is_dead(self) -> bool:
        return self.is_here and not _is_alive(self.pid)


def write_owner(file: IO[str]) -> None:
    """This process has the run; not needed where the kernel keeps locks, and the only trace of it elsewhere."""
    clear_owner(file)
    file.write(json.dumps(asdict(Owner(host_tag(), os.getpid(), _text(datetime.datetime.now(datetime.UTC))))))
    file.flush()


def clear_owner(file: IO[str]) -> None:
    file.truncate(0)


def read_owner(path: Path) -> Owner | None:
    """None of a run that has ended in an orderly way, and of one that did not say."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Owner(str(content["host"]), int(content["pid"]), str(content["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def gone_since(run: Path) -> str | None:
    """When the process of a run that says `running` was last heard of; None where it lives, or nobody can tell.

    The one answer to "does it still run?", for the report and whoever else shows a status.
    """
    path = run / LOCK
    if not path.is_file():
        return None
    owner, pulse = read_owner(path), _last_pulse(run)
    last = _text(pulse or datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC))
    is_fresh = pulse is not None and (datetime.datetime.now(datetime.UTC) - pulse).total_seconds() < FRESH_SECONDS
    state = _lock_of(path)
    if state is Lock.BUSY:
        return None
    # On some file systems a lock is seen on its own machine alone.
    if state is Lock.HELD and (owner is None or owner.is_here):
        return last
    if owner is not None and owner.is_here and os.name != "nt":
        return last if owner.is_dead else None
    return None if is_fresh or pulse is None else last


def _lock_of(path: Path) -> Lock:
    """Held only for a moment and shared, so that two readers do not take each other for the run."""
    try:
        with path.open() as file:
            return lock(file, shared=True)
    except OSError:  # another user's
        return Lock.MISSING


def _last_pulse(run: Path) -> datetime.datetime | None:
    times = []
    for path in run.glob(f"*/{HEARTBEAT}"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # torn: as good as none
            times.append(datetime.datetime.fromisoformat(json.loads(path.read_text(encoding="utf-8"))["time"]))
    return max(times, default=None)


def _text(time: datetime.datetime) -> str:
    return time.astimezone(datetime.UTC).isoformat(timespec="seconds")
