"""A log that grows, read as it grows: whole lines only, and from its beginning where it was written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

from posttrain.runs.records.base import LogLine
from posttrain.runs.tolerant import json_object

AnyLine = TypeVar("AnyLine", bound=LogLine)


class Follower(Generic[AnyLine]):
    """Follower(Path("runs/mine/dpo"), MetricsLine).new() -> the lines since the call before.

    A resumed stage replaces its logs by shorter ones; then all lines come again, and whoever asks tells by their steps
    which it knows.
    """

    def __init__(self, folder: Path, kind: type[AnyLine]):
        self._path, self._kind = folder / kind.FILE, kind
        self._at, self._inode = 0, 0

    def new(self) -> list[AnyLine]:
        try:
            with self._path.open("rb") as file:
                about = self._path.stat()
                # Rewritten to another length or not: a rename gives another inode, and what stood before is gone.
                if about.st_ino != self._inode or about.st_size < self._at:
                    self._at, self._inode = 0, about.st_ino
                file.seek(self._at)
                content = file.read()
        except FileNotFoundError:
            return []
        # The rest is a line that is being written.
        whole = content[: content.rfind(b"\n") + 1]
        self._at += len(whole)
        objects = (json_object(line) for line in whole.splitlines())
        return [self._kind.from_json(content) for content in objects if content is not None]
