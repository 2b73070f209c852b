"""Which files a pattern means, and which of the names are one real file.

`glob` of the standard library follows every symbolic link under `**`: a folder that holds a link to itself gives each
of its files some forty times, and `latest -> v3` beside `v3` gives a data set twice. The rows would count double
without a word, so here a real folder is entered once, whatever leads to it.
"""

from __future__ import annotations

import glob
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from posttrain.data.refusals import quoted
from posttrain.errors import SourceError

_KINDS = (
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a disk"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISFIFO, "a named pipe"),
)
_OPEN_PIPES = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")
"""Where a shell's `<(command)` and a pipe into the command lie: they have a writer, which ends."""


def matching(pattern: str) -> list[Path]:
    """The paths that match, sorted: matching("data/**/*.jsonl").

    `*`, `?` and `[...]` as in a shell; `**` is the folder itself and those below it, hidden ones left out. A link to a
    folder is entered under `**` only where it leads out of what `**` has entered.
    """
    path = Path(pattern)
    found = [Path(path.anchor)]
    parts = path.parts[1:] if path.anchor else path.parts
    for index, part in enumerate(parts):
        if part == "**":
            found = [below for folder in found for below in _tree(folder, files=index == len(parts) - 1)]
        elif glob.has_magic(part):
            found = [Path(name) for folder in found for name in glob.glob(str(Path(glob.escape(str(folder)), part)))]
        else:
            found = [folder / part for folder in found if os.path.lexists(folder / part)]
    return sorted(set(found))


def _tree(top: Path, *, files: bool) -> Iterator[Path]:
    """`top` and the folders below it, each real folder once; with `files`, the files in them too."""
    entered: set[str] = set()
    waiting = [top]
    # Real folders first, links after all of them: `v3` keeps its own name though `latest` comes before it.
    while waiting:
        links: list[Path] = []
        for start in waiting:
            if os.path.realpath(start) in entered:
                continue
            for place, folders, names in os.walk(start):
                real = os.path.realpath(place)
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                if real in entered:  # a link of an earlier round led into the middle of this tree
                    folders.clear()
                    continue
                entered.add(real)
                yield Path(place)
                links += [Path(place, name) for name in folders if Path(place, name).is_symlink()]
                if files:
                    yield from (Path(place, name) for name in names if not name.startswith("."))
        waiting = links


def require_distinct(paths: Iterable[Path]) -> None:
    """
    Raises:
        SourceError: two of the names are one real file, by a symbolic or a hard link.
    """
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue  # reading it says so, with its name
        first = seen.setdefault((status.st_dev, status.st_ino), path)
        if first is not path:
            copy = path.with_name(f"again-{path.name}")
            raise SourceError(
                f"{quoted([str(first)])} and {quoted([str(path)])} are one file under two names",
                found=f"both are {os.path.realpath(path)}",
                expected="each file once: its rows would count double",
                remedy="name one of the two, or a pattern that matches one of them; where its rows are to count "
                f"double, copy the file (`cp {shlex.quote(str(path))} {shlex.quote(str(copy))}`)",
            )


def is_meant_as_file(path: Path) -> bool:
    """A file, or a link that leads nowhere: passed over like a folder, a part of a data set would be missing from its
    rows without a word (the hub's cache and git-annex are made of links)."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def require_whole_links(paths: Iterable[Path]) -> None:
    """To be called with the files that were chosen.

    Raises:
        SourceError: a link that leads nowhere.
    """
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise SourceError(
                "the file is a link that leads nowhere",
                where=path,
                found=f"a link to {os.readlink(path)}",
                expected="a file",
                remedy="get again what it leads to, or remove the link: its rows would be missing",
            )


def require_regular(path: Path) -> None:
    """
    Raises:
        SourceError: a named pipe, a socket or a device, which never ends, or can be read once only.
    """
    mode = path.stat().st_mode
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), None)
    if kind is not None:
        raise SourceError(
            f"the path is {kind}, not a file",
            where=path,
            expected="a file: rows are read several times, and their number is finite",
            remedy=f"write what it gives to a file and name that: `cat {shlex.quote(str(path))} > rows.jsonl`"
            if kind == "a named pipe"
            else "name the file that holds the rows",
        )


def is_open_pipe(path: Path) -> bool:
    """Whether the path is what a shell's `<(command)` stands for, or standard input from a pipe."""
    return str(path).startswith(_OPEN_PIPES) and path.is_fifo()
