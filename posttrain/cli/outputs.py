"""What a verb writes to: a file that cannot be written is refused before anything is computed for it, and a terminal
or pipe that is not UTF-8 shows what it lacks as escapes."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from posttrain.cli.terminal import echo_exact
from posttrain.errors import ConfigError
from posttrain.runs.disk import REMEDIES


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


def check_out(path: Path | None, what: str = "the answers") -> None:
    """Tries whether a file of this name can be written, and leaves all as it was.

    Raises:
        ConfigError: it cannot.
    """
    if path is None:
        return
    there = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    problem, remedy = None, ""
    if str(path).startswith("-"):
        # `--fix --out page`: the parser takes the next word as the file, whatever it looks like.
        problem, remedy = f"`{path}`, which is an option", "write the name of the file after the option before it"
    elif path.is_dir():
        problem, remedy = "a folder", REMEDIES[errno.EISDIR]
    # A file is written beside its name and renamed: root would replace /dev/null itself, for every program, or the
    # link /dev/stdout.
    elif path.absolute().parent == Path("/dev") or (path.exists() and not path.is_file()):
        problem, remedy = "a device or a pipe", "name a file; to see the result only, leave the option out"
    elif not there.is_dir():
        problem, remedy = f"{there} is a file", REMEDIES[errno.ENOTDIR]
    elif not os.access(there, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        problem, remedy = f"{path if path.exists() else there} may not be written by this user", REMEDIES[errno.EACCES]
    # Rights do not tell all: a disk may be read-only, full, or none that holds files, such as /proc.
    elif (refused := _refused(path.absolute())) is not None:
        problem = f"{refused.strerror or refused}, in the folder {path.absolute().parent}"
        remedy = REMEDIES.get(refused.errno or 0, "give a path in another folder")
    if problem is not None:
        raise ConfigError(
            f"{what} cannot be written there", where=path, found=problem, expected="a file", remedy=remedy
        )


def check_out_folder(path: Path | None, what: str) -> None:
    """The same for a folder that a verb will make, or write into."""
    if path is not None:
        if path.exists() and not path.is_dir():
            raise ConfigError(
                f"{what} cannot be written there",
                where=path,
                found="a file",
                expected="a folder",
                remedy="give another path, or remove the file",
            )
        check_out(path / ".posttrain", what)


def _refused(path: Path) -> OSError | None:
    """What the system says to a file beside `path`, whose name is as long; its folders are made for it, and removed."""
    made = [folder for folder in path.parents if not folder.exists()]
    probe = path.with_name(f"{path.name[:-8]}.{os.getpid():07d}"[: max(len(path.name), 8)])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with probe.open("xb") as file:
            file.write(b"\n")
        probe.unlink()
    except FileExistsError:  # of all names this one: the folder is one that holds files
        return None
    except OSError as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        return error
    finally:
        for folder in made:
            with suppress(OSError):  # it was not made after all
                folder.rmdir()
    return None
