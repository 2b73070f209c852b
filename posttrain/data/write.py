"""JSONL files that are there whole or not at all: rejected rows, cleaned copies, pairs made by a stage."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from posttrain.runs.disk import require_replaceable, writing
from posttrain.runs.owner import owner_tag, remove_dead


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object per line and returns how many; the file appears under its name when it is complete."""
    count = 0
    with JsonlWriter(Path(path)) as writer:
        for row in rows:
            writer.write(row)
            count += 1
    return count


class JsonlWriter:
    """Rows to a temporary file beside `path`, renamed when the block ends well; with no path it does nothing."""

    def __init__(self, path: Path | None):
        self.path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> JsonlWriter:
        if self.path is not None:
            require_replaceable(self.path)
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                remove_dead(self.path.parent, f".{self.path.name}.")  # of a process that was killed while it wrote
                self._temporary = self.path.with_name(f".{self.path.name}.{owner_tag()}-{id(self)}.part")
                self._file = self._temporary.open("w", encoding="utf-8", newline="\n")
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        if self._file is not None and self.path is not None:
            with writing(self.path):
                self._file.write(json_line(row) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None or self.path is None:
            return
        if kind is None:
            with writing(self.path):
                # On disk before it has its name: after a power cut the name would stand for an empty file.
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._temporary.replace(self.path)
        else:  # the block failed: half a file must not be taken for the whole
            with contextlib.suppress(OSError):  # what is still to be written has no room on a full disk
                self._file.close()
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()


def json_line(row: Mapping[str, Any]) -> str:
    """One line of JSON, readable where it can be; half a surrogate pair, which no encoding can hold, stays escaped."""
    line = json.dumps(row, ensure_ascii=False, default=str)
    if line.isascii():
        return line
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(row, default=str)
    return line
