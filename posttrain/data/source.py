"""What every place that rows come from can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from posttrain.data.json_rows import Numbered


class Source(Protocol):
    """Rows under one name."""

    @property
    def name(self) -> str: ...

    def rows(self) -> Iterator[Numbered]:
        """Numbered rows from the beginning. Raises SourceError for what cannot be read at all."""
        ...

    def fingerprint(self) -> str:
        """Hex sha256 of the content."""
        ...
