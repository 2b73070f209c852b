"""What a file system refuses, and what it does not have: the one place where an error of the disk is judged.

    with writing(path): ...              # ENOSPC, EACCES, EROFS, ...: an error that names file, folder and remedy
    sync_folder(path)                    # where folders can be synced (not on SMB and some FUSE)
    lock(file) -> Lock.MISSING           # ... and where there are locks (not on NFS without its lock daemon)

A refusal ends what was written there. What is merely missing does not: a run without durable renames or locks is worth
more than no run. Standard library only.
"""

from __future__ import annotations

import enum
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from posttrain.errors import PosttrainError, SourceError

REMEDIES = {
    errno.EACCES: "give a path that this user may read and write (`ls -ld` shows who may)",
    errno.EPERM: "give a path that this user may read and write (`ls -ld` shows who may)",
    errno.EROFS: "the disk is read-only: give a path on another one (--out)",
    errno.ENOSPC: "free some room, or give a path on another disk (--out)",
    errno.EDQUOT: "free some room, or give a path on another disk (--out)",
    errno.EFBIG: "the disk or `ulimit -f` allows no file of this size: give a path on another disk (--out)",
    errno.EIO: "the disk fails: see what the system's log says of it, or give a path on another disk (--out)",
    errno.ESTALE: "the network's disk is gone: mount it again, or give a path on another disk (--out)",
    errno.ENOTDIR: "part of the path is a file: give another path (--out)",
    errno.EEXIST: "something else has this name: give another path (--out)",
    errno.EISDIR: "a folder has this name: give another path, or remove the folder",
    errno.ENAMETOOLONG: "give a shorter path (--out)",
}
"""Refusals of the operating system that are no fault of posttrain, and what to do about each."""

FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_HERE = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS, errno.EPERM})
"""How file systems say that they have no such thing: no sync of a folder, no mode bits."""

_SYSTEM = re.compile(r"\(os error (\d+)\)")


# ---------------------------------------------------------------- refused


def require_replaceable(path: Path) -> None:
    """To be asked before a file is renamed to `path`.

    Raises:
        SourceError: a device, a pipe or a socket has this name: root would replace /dev/null for the whole machine.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise SourceError(
            "the file cannot be written",
            where=path,
            found="a device, a pipe or a socket, which a file would replace",
            expected="a file, or a name that is free",
            remedy="give the path of a file",
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What writes `path`.

    Raises:
        SourceError: the system refuses it; names the file, its folder and what to do.
    """
    try:
        yield
    except PosttrainError:
        raise
    except Exception as error:  # the boundary: safetensors and others wrap the system's error in one of their own
        refused = system_error(error)
        if refused is None:
            raise
        # Without the path that the system names: it is a temporary file's, which is gone by now.
        room = f"; {_room(path)}" if refused.errno in FULL else ""
        raise SourceError(
            "the file cannot be written",
            where=path,
            found=f"{refused.strerror or refused} (in the folder {path.parent}{room})",
            remedy=REMEDIES.get(refused.errno or 0, "give a path on another disk (--out)"),
        ) from error


def refusal_of(error: BaseException) -> PosttrainError | None:
    """What the operating system refused, in our words; None for anything that may be a fault of posttrain.

    Libraries that write in another language wrap it: "I/O error: No space left on device (os error 28)".
    """
    refused = system_error(error)
    remedy = None if refused is None else REMEDIES.get(refused.errno or 0)
    if refused is None or remedy is None:
        return None
    where = refused.filename2 or refused.filename  # of a rename the name that is meant, not the temporary one
    return SourceError("the system refuses it", where=where, found=refused.strerror, remedy=remedy)


def system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error in `error` or in what caused it."""
    if error is None or isinstance(error, OSError):
        return error
    number = _SYSTEM.search(str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return system_error(error.__cause__)


def _room(path: Path) -> str:
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    try:
        return f"{shutil.disk_usage(there or '/').free / 1e6:,.0f} MB are free on its disk"
    except OSError:
        return "how much is free there cannot be told"


# ---------------------------------------------------------------- missing


def sync_folder(folder: Path) -> None:
    """Makes a rename in it durable. Windows neither needs nor allows it, and where a file system cannot, a power cut
    may undo the last rename: whole files stay whole."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
    finally:
        os.close(handle)


def set_mode(path: str | Path, mode: int) -> None:
    """chmod, where the file system has modes: exFAT and SMB have one for all files."""
    try:
        os.chmod(path, mode)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise


class Lock(enum.Enum):
    """How a try to lock a file ended."""

    HELD = "held"
    BUSY = "busy"
    """Another process, or another part of this one, has it."""
    MISSING = "missing"
    """The file system has no locks."""


def lock(file: IO[Any], *, shared: bool = False) -> Lock:
    """Take the kernel's lock on an open file; it ends when the file is closed or the process ends, however it dies.

    Not waiting: a second run that hangs in silence until the first has ended looks like a fault of its own.
    """
    if os.name == "nt":  # no advisory lock of this kind there
        return Lock.MISSING
    import fcntl

    try:
        fcntl.flock(file.fileno(), (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        # Only this says "busy". ENOLCK, ENOTSUP, EINVAL say that there are no locks; taken for busy, no run would
        # ever start there.
        return Lock.BUSY if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN) else Lock.MISSING
    return Lock.HELD
