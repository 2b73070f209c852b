"""A place that rows come from, and what it gives: numbered rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from posttrain.errors import DataError


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be read as JSON, in place of its value; `bad_rows: skip` may go on after it."""

    error: DataError
    reason: str
    content: str


Numbered = tuple[int, Any, str]
"""(row number from 1, value or Broken, where else to look: "line 5", or "" where that is the row number)."""


class DataSource(Protocol):
    """Rows under one name."""

    @property
    def name(self) -> str: ...

    def rows(self) -> Iterator[Numbered]:
        """Numbered rows from the beginning. Raises SourceError for what cannot be read at all."""
        ...

    def fingerprint(self) -> str:
        """Hex sha256 of the content."""
        ...
