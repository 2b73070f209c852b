"""A place that rows come from, and what it gives: numbered rows. The first arrow of the flow; `read` iterates these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from posttrain.errors import DataError


@dataclass(frozen=True, slots=True)
class Broken:
    """In place of a row's value where its text is no JSON; with `bad_rows: skip` reading goes on after it."""

    error: DataError
    reason: str
    content: str


Numbered = tuple[int, Any, str]
"""(row number from 1, value or Broken, a note such as "line 5" where lines and rows are counted apart, else "")."""


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
