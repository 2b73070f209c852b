"""What a verb writes to: a file that cannot be written is refused before anything is computed for it, and a terminal
or pipe that is not UTF-8 shows what it lacks as escapes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.cli.terminal import echo_exact
from posttrain.errors import ConfigError, PosttrainError, SourceError

REMEDIES = {
    errno.EACCES: "give a path that this user may read and write (`ls -ld` shows who may)",
    errno.EPERM: "give a path that this user may read and write (`ls -ld` shows who may)",
    errno.EROFS: "the disk is read-only: give a path on another one (--out)",
    errno.ENOSPC: "free some room, or give a path on another disk (--out)",
    errno.EDQUOT: "free some room, or give a path on another disk (--out)",
    errno.ENOTDIR: "part of the path is a file: give another path (--out)",
    errno.EEXIST: "something else has this name: give another path (--out)",
    errno.EISDIR: "a folder has this name: give another path, or remove the folder",
    errno.ENAMETOOLONG: "give a shorter path (--out)",
}
"""Refusals of the operating system that are no fault of posttrain, and what to do about each."""

_SYSTEM = re.compile(r"\(os error (\d+)\)")


def accept_any_text() -> None:
    """Lets stdout and stderr take every text: what their encoding lacks is shown as an escape ("\\u4f60").

    A Windows code page, LANG=C and many log collectors are no UTF-8. Without this the first row with an umlaut ends the
    command in a UnicodeEncodeError, after the work and before its result.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's stream, or a test's, has no encoding to be narrow in
            stream.reconfigure(errors="backslashreplace")


def echo_json(record: Mapping[str, Any]) -> None:
    """One line of JSON on stdout, in an encoding that it has: "\\xfc", as `accept_any_text` would write, is no JSON."""
    from posttrain.data.write import json_line

    line = json_line(record)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(record, default=str)
    echo_exact(line, json=True)


def check_out(path: Path | None) -> None:
    """
    Raises:
        ConfigError: a file of this name cannot be written.
    """
    if path is None:
        return
    there = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    problem, remedy = None, ""
    if path.is_dir():
        problem, remedy = "a folder", REMEDIES[errno.EISDIR]
    elif not there.is_dir():
        problem, remedy = f"{there} is a file", REMEDIES[errno.ENOTDIR]
    elif not os.access(there, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        problem, remedy = f"{path if path.exists() else there} may not be written by this user", REMEDIES[errno.EACCES]
    if problem is not None:
        raise ConfigError(
            "the answers cannot be written there", where=path, found=problem, expected="a file", remedy=remedy
        )


def refusal_of(error: BaseException) -> PosttrainError | None:
    """What the operating system refused, in our words; None for anything that may be a fault of posttrain.

    Libraries that write in another language wrap it: "I/O error: No space left on device (os error 28)".
    """
    refused = _of_system(error)
    remedy = None if refused is None else REMEDIES.get(refused.errno or 0)
    if refused is None or remedy is None:
        return None
    where = refused.filename2 or refused.filename  # of a rename the name that is meant, not the temporary one
    return SourceError("the system refuses it", where=where, found=refused.strerror, remedy=remedy)


def _of_system(error: BaseException | None) -> OSError | None:
    if error is None or isinstance(error, OSError):
        return error
    number = _SYSTEM.search(str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return _of_system(error.__cause__)
