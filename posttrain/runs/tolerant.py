"""Reading what a run left behind, whole or torn.

A run that was killed leaves half a line; a run that still goes on leaves files that are not there yet. Neither may
keep the report from being written, and neither may go unsaid: what cannot be read becomes a `Problem` on the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from posttrain.runs.records.base import Record

AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem("dpo/metrics.jsonl", "the last line is torn and was dropped")"""

    where: str
    message: str


@dataclass(slots=True)
class Files:
    """Reads the files of one run folder and remembers what was wrong with them."""

    root: Path
    problems: list[Problem] = field(default_factory=list)

    def note(self, path: Path, message: str) -> None:
        self.problems.append(Problem(path.relative_to(self.root).as_posix(), message))

    def noted(self, path: Path) -> bool:
        return any(problem.where == path.relative_to(self.root).as_posix() for problem in self.problems)

    def text(self, path: Path) -> str | None:
        """The file's text with bad bytes replaced, or None if there is no file."""
        try:
            # A torn write can end within a character; the rest of the file is still good.
            return path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.note(path, f"cannot be read: {error.strerror}")
            return None

    def document(self, path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
        """The file's record; None if the file is missing (no problem), broken (a problem) or empty of keys."""
        text = self.text(path)
        if text is None:
            return None
        try:
            content = json.loads(text)
        # RecursionError: a file of nothing but opening brackets is no ValueError to the parser.
        except (ValueError, RecursionError) as error:
            self.note(path, f"is no readable JSON ({error})")
            return None
        if not isinstance(content, dict):
            self.note(path, f"holds a {type(content).__name__} where an object is expected")
            return None
        # `{}` says no more than a missing file, but a record in which all is missing would show up as a measurement.
        return kind.from_json(content) if content else None

    def lines(self, path: Path, kind: type[AnyRecord], limit: int | None = None) -> list[AnyRecord]:
        """The records of a JSON-lines file, at most `limit`; broken lines are counted, the torn last one named."""
        records: list[AnyRecord] = []
        broken: list[int] = []
        last = 0
        for last, line in self._numbered(path):
            content = json_object(line)
            if content is not None:
                records.append(kind.from_json(content))
            elif line.strip():
                broken.append(last)
            if limit is not None and len(records) >= limit:
                break
        # Only the last line can be a line that is being written; anything else broken is damage.
        if broken == [last]:
            self.note(path, "the last line is torn and was dropped")
        elif broken:
            self.note(path, f"{len(broken)} lines are no readable JSON and were dropped (first: line {broken[0]})")
        return records

    def _numbered(self, path: Path) -> Iterator[tuple[int, str]]:
        try:
            with path.open(encoding="utf-8", errors="replace") as lines:
                yield from enumerate(lines, start=1)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self.note(path, f"cannot be read: {error.strerror}")


def json_object(line: str | bytes) -> dict[str, Any] | None:
    """The object that a line holds; None where it is torn, no JSON, or something else than an object."""
    try:
        content = json.loads(line.decode("utf-8", errors="replace") if isinstance(line, bytes) else line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
