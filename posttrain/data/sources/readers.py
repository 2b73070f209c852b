"""The readers of file types as a literal table: how a file of the type begins, and the function that reads its rows.

A file is known by its first bytes, never by its name: a Parquet file that was saved as `rows.jsonl` is read as Parquet.
What no row knows is read as text: JSON, or a table (CSV, TSV). A new type is a function and a row; its usual ending
goes to `splits.SUFFIXES`, by which files are found in folders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from posttrain.data.sources.columnar import arrow_rows, parquet_rows
from posttrain.data.sources.source import Numbered


@dataclass(frozen=True, slots=True)
class Reader:
    """Reader("parquet", parquet_rows, begins=(b"PAR1",))"""

    name: str
    rows: Callable[[Path, str], Iterator[Numbered]]
    """(the file, its name in errors) -> its rows. Raises SourceError for one that is cut off or damaged."""
    begins: tuple[bytes, ...]
    """A file of the type begins with one of these."""


READERS = (
    Reader("parquet", parquet_rows, begins=(b"PAR1",)),
    Reader("arrow", arrow_rows, begins=(b"ARROW1", b"\xff\xff\xff\xff")),
)
HEAD = max(len(mark) for reader in READERS for mark in reader.begins)
"""Bytes that tell the type."""


def reader_of(head: bytes) -> Reader | None:
    """The reader of a file with these first bytes; None for text: JSON, CSV and TSV."""
    return next((reader for reader in READERS if head.startswith(reader.begins)), None)
