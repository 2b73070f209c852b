"""Reading what a run left behind, whole or torn.

A run that was killed leaves half a line; a run that still goes on leaves files that are not there yet. Neither may
keep the report from being written, and neither may go unsaid: what cannot be read becomes a `Problem` on the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem("dpo/metrics.jsonl", "the last line is torn and was left out")"""

    where: str
    message: str


@dataclass(slots=True)
class Files:
    """Reads the files of one run folder and remembers what was wrong with them."""

    root: Path
    problems: list[Problem] = field(default_factory=list)

    def note(self, path: Path, message: str) -> None:
        self.problems.append(Problem(path.relative_to(self.root).as_posix(), message))

    def text(self, path: Path) -> str | None:
        """The file's text with bad bytes replaced, or None if there is no file."""
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.note(path, f"cannot be read: {error.strerror}")
            return None

    def record(self, path: Path) -> dict[str, Any]:
        """A JSON object; empty if the file is missing (no problem) or broken (a problem)."""
        text = self.text(path)
        if text is None:
            return {}
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.note(path, f"is no readable JSON ({error})")
            return {}
        if not isinstance(content, dict):
            self.note(path, f"holds a {type(content).__name__} where an object is expected")
            return {}
        return content

    def lines(self, path: Path, limit: int | None = None) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file, at most `limit`; broken lines are counted, the torn last one named."""
        found: list[dict[str, Any]] = []
        broken: list[int] = []
        last = 0
        for last, line in self._numbered(path):
            content = _object(line)
            if content is not None:
                found.append(content)
            elif line.strip():
                broken.append(last)
            if limit is not None and len(found) >= limit:
                break
        if broken == [last]:
            self.note(path, "the last line is torn and was left out")
        elif broken:
            self.note(path, f"{len(broken)} lines are no readable JSON and were left out (first: line {broken[0]})")
        return found

    def _numbered(self, path: Path) -> Iterator[tuple[int, str]]:
        try:
            with path.open(encoding="utf-8", errors="replace") as lines:
                yield from enumerate(lines, start=1)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self.note(path, f"cannot be read: {error.strerror}")


def _object(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


LARGEST = 1e100
"""Beyond every type that a model computes in but float64; NaN is not below it either."""


# ---------------------------------------------------------------- values of the type that is needed, or nothing


def as_number(value: object) -> float | None:
    """A finite number, or None: NaN, infinities, text and booleans are no measurement, nor is what nobody can plot."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if abs(converted) <= LARGEST else None


def as_text(value: object) -> str:
    """Text as it is, None as "", a conversation as "role: content" lines, everything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) and "content" in turn for turn in value):
        if len(value) == 1:
            return as_text(value[0]["content"])
        return "\n".join(f"{as_text(turn.get('role'))}: {as_text(turn['content'])}" for turn in value)
    return json.dumps(value, ensure_ascii=False, default=str)


def as_mapping(value: object) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def numbers_of(value: object) -> dict[str, float]:
    """The entries of a mapping that are numbers: {"too_long": 12, "note": "x"} -> {"too_long": 12.0}."""
    converted = {key: as_number(item) for key, item in as_mapping(value).items()}
    return {key: item for key, item in converted.items() if item is not None}
