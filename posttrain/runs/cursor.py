"""Reading on in a log that is being written: what a page needs that follows a running stage.

    cursor = Cursor(Path("runs/mine/dpo/metrics.jsonl"))
    while True:
        news = cursor.read(MetricsLine)
        if news.restarted:
            page.clear()              # a resumed stage cut the file: what was shown before may be gone from it
        page.add(news.records)
        cursor = news.cursor

A cursor is a value: it can be kept, or sent to a browser and back (`token`), and reading from the same one again gives
the same lines. It stands behind a whole line, always; a line that is half written comes with the read after its
newline. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Generic, Self, TypeVar

from posttrain.runs.records.base import Record
from posttrain.runs.tolerant import json_object

READ_BYTES = 16 << 20
"""Bytes of one read, so that following a long log from its beginning takes no more memory than that."""
TAIL = 64
"""Bytes before the cursor that are compared: a file that was replaced may have the old one's inode, and be as long."""

AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a log: Cursor(Path("metrics.jsonl"), offset=1_204, inode=99_123, tail=b'... "counts": {}}\\n')."""

    path: Path
    offset: int = 0
    """Bytes that were read, up to and with a newline."""
    inode: int | None = None
    """Of the file that they were read from."""
    tail: bytes = b""
    """The last of those bytes."""

    def read(self, kind: type[AnyRecord], most: int = READ_BYTES) -> News[AnyRecord]:
        """The whole lines since, at most about `most` bytes of them; of a file that is not there, none."""
        try:
            with self.path.open("rb") as file:
                start = self if self._stands(file) else Cursor(self.path)
                return start._read_on(file, kind, most, restarted=start is not self)
        except (FileNotFoundError, NotADirectoryError):
            return News([], Cursor(self.path), restarted=self.offset > 0, broken=0)

    def _stands(self, file: IO[bytes]) -> bool:
        """Whether the file still begins with what was read of it."""
        if self.offset == 0:
            return True
        status = os.fstat(file.fileno())
        if status.st_size < self.offset or status.st_ino != self.inode:
            return False
        # Neither size nor inode is proof: a deleted log's inode is given to the next file that is made.
        file.seek(self.offset - len(self.tail))
        return file.read(len(self.tail)) == self.tail

    def _read_on(self, file: IO[bytes], kind: type[AnyRecord], most: int, *, restarted: bool) -> News[AnyRecord]:
        file.seek(self.offset)
        content = file.read(most)
        if b"\n" not in content:
            content += file.readline()  # a single line that is longer than `most`
        # What follows the last newline is a line that its writer has not ended; half a line may be valid JSON, "1" of
        # "12", so it is not even looked at.
        whole = content[: content.rfind(b"\n") + 1]
        records, broken = [], 0
        for line in whole.split(b"\n"):
            if not line.strip():
                continue
            record = kind.parse(json_object(line))
            if record is None:
                broken += 1
            else:
                records.append(record)
        behind = replace(
            self,
            offset=self.offset + len(whole),
            inode=os.fstat(file.fileno()).st_ino,
            tail=(self.tail + whole)[-TAIL:],
        )
        return News(records, behind, restarted, broken)

    def token(self) -> str:
        """The place without the path, for whoever is to ask on from it: "1204-99123-7d7d0a"."""
        return f"{self.offset}-{self.inode or 0}-{self.tail.hex()}"

    @classmethod
    def at(cls, path: Path, token: str) -> Self:
        """The other way; of anything that is no token, the file's beginning."""
        match = re.fullmatch(r"(\d{1,18})-(\d{1,20})-((?:[0-9a-f]{2})*)", token)
        if match is None or len(match[3]) // 2 > int(match[1]):
            return cls(path)
        return cls(path, int(match[1]), int(match[2]), bytes.fromhex(match[3]))


@dataclass(frozen=True, slots=True)
class News(Generic[AnyRecord]):
    """What came since: News([MetricsLine(step=4, ...)], Cursor(...), restarted=False, broken=0)."""

    records: Sequence[AnyRecord]
    cursor: Cursor
    """To read on from."""
    restarted: bool
    """The file is not the one that was read before (a resumed stage cuts its logs, a fresh one deletes them): the
    records are those of its beginning, and what came before them counts no more."""
    broken: int
    """Whole lines that are no JSON objects."""
