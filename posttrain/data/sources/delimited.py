"""Tables as text (CSV, TSV) as streams of rows: a header with the columns, then a row of cells each.

table_delimiter(b"prompt\\tcompletion\\nHi\\tHello\\n", "a.tsv")     # "\\t"
delimited_rows(stream, "a.tsv", "\\t")                             # (1, {"prompt": "Hi", ...}, "line 2")

Cells stay texts, whatever they look like: "007" is no number, and the formats read "4.5" and "true" where they need a
number or a flag. An empty cell holds nothing, as a null does. Quotes are those of RFC 4180: a cell that holds the
delimiter, a quote or a line break stands in quotes, and a quote inside it is doubled.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

from posttrain.data.refusals import quoted, shown
from posttrain.data.sources.json_rows import HEAD_BYTES, LONGEST_ROW, MEGABYTE, encoding_error, json_rows
from posttrain.data.sources.not_rows import refuse_other_bytes
from posttrain.data.sources.source import Broken, Numbered
from posttrain.errors import RowError, SourceError
from posttrain.types import RowRef

_DELIMITERS = ("\t", ",", ";", "|")
_TABLE_ROWS = 20
_TABLE_BYTES = 1 << 14
_LONGEST_NAME = 64
"""Characters of a column's name; what is longer is a sentence."""
_EXAMPLE = 'prompt,completion\\n"How much is 2 + 2, please?",4'


# ---------------------------------------------------------------- is it a table


def table_delimiter(head: bytes, name: str) -> str | None:
    """The separator of the table that a file begins as, or None if it is none: JSON lines, prose.

    Args:
        head: its first bytes, all of them where the file is short.
    """
    start = head.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n")
    if not start or start[:1] in (b"{", b"["):
        return None
    text = start[:_TABLE_BYTES].decode(errors="replace")
    usual = _usual_delimiter(name)
    # Among the first lines, not only in the first: a comment or a log line may stand above rows of JSON that are right.
    if usual is None and any(map(_is_json, text.splitlines()[:5])):
        return None
    for delimiter in _DELIMITERS:
        rows = _first_rows(text, delimiter, whole=len(start) < _TABLE_BYTES)
        # The same number of cells in every row: prose has commas, and not as many in each of its lines.
        if len(rows) > 1 and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1 and _are_names(rows[0]):
            return delimiter
    if usual != ",":
        return usual
    # The first rows do not agree, and one of them is wrong: the header alone says what the table is written with.
    header = next(iter(text.splitlines()), "")
    return max((",", ";", "\t", "|"), key=header.count)


def _usual_delimiter(name: str) -> str | None:
    lowered = name.lower().removesuffix(".gz")
    return "," if lowered.endswith(".csv") else "\t" if lowered.endswith(".tsv") else None


def _is_json(line: str) -> bool:
    if line.lstrip()[:1] in ("{", "["):
        return True
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _first_rows(text: str, delimiter: str, *, whole: bool) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    try:
        for row in islice(reader, _TABLE_ROWS):
            rows += [row] if row else []
    except csv.Error:
        # At the end of what was looked at, a quoted cell may go on; anywhere else this is no table.
        return [] if whole or reader.line_num < text.count("\n") else rows
    # The last row may be cut where the text is.
    return rows if whole or len(rows) == _TABLE_ROWS else rows[:-1]


def _are_names(cells: list[str]) -> bool:
    names = [cell.strip() for cell in cells]
    # pandas writes its index as a first column without a name.
    named = names[1:] if not names[0] else names
    return len(set(names)) == len(names) and all(
        0 < len(name) <= _LONGEST_NAME and name[-1] not in ".!?:" and len(name.split()) <= 4 for name in named
    )


# ---------------------------------------------------------------- its rows


class _Lines:
    """The lines of a table as text, each with its line break; knows where the row in hand began, and how long it is."""

    def __init__(self, stream: BinaryIO, name: str, longest_row: int):
        self.stream, self.name, self.longest_row = stream, name, longest_row
        self.number = self.offset = self.size = 0
        self.row = 0
        """Number of the row in hand; 0 is the header."""
        self.begins = 1

    def begin(self) -> None:
        self.size, self.begins = 0, self.number + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.stream.readline(self.longest_row + 2)
        if not line:
            raise StopIteration
        self.number += 1
        start, self.offset = self.offset, self.offset + len(line)
        self.size += len(line)
        # A quote that is never closed makes one cell of all that follows: without a bound, of the whole file.
        if self.size > self.longest_row + 2:
            raise SourceError(
                f"the row that begins in line {self.begins:,} has more than {self.longest_row / MEGABYTE:,.1f} MB",
                where=RowRef(self.name, self.row),
                found=f"{self.number - self.begins + 1:,} lines of one row, which begins {shown(line[:40])}",
                expected=f"at most {self.longest_row / MEGABYTE:,.1f} MB in one row (`longest_row_mb`)",
                remedy="close the quote in that row (a quote inside a quoted cell is written twice), or set "
                "`longest_row_mb` higher",
            )
        if self.number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise encoding_error(line, error, start, RowRef(self.name, max(self.row, 1))) from None


def delimited_rows(stream: BinaryIO, name: str, delimiter: str, longest_row: int = LONGEST_ROW) -> Iterator[Numbered]:
    """Rows of a table in text; the first line names the columns. Blank lines are no rows.

    A row with another number of cells stands as `Broken` in its place.

    Raises:
        SourceError: a header that names a column twice; quotes after which no row can be told from the next.
    """
    # Process-wide, and 131,072 characters by default, which one long conversation has; `_Lines` keeps the real bound.
    csv.field_size_limit(max(csv.field_size_limit(), longest_row))
    lines = _Lines(stream, name, longest_row)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        lines.begin()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise _bad_quotes(lines, error) from None
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            header = _columns(cells, name)
            lines.row = 1
            continue
        row, lines.row = lines.row, lines.row + 1
        note = f"line {lines.begins}"
        if len(cells) != len(header):
            yield row, _other_width(cells, header, delimiter, RowRef(name, row)), note
        else:
            yield row, {column: cell or None for column, cell in zip(header, cells, strict=True)}, note


def _columns(cells: list[str], name: str) -> list[str]:
    """The names of the columns; one without a name, as of a pandas index, is called after its place."""
    if cells[0].strip().startswith("sep="):
        # Excel's own hint to itself: read as the header, it would make rows of the names of the columns.
        raise SourceError(
            "the first line says how the cells are parted, and does not name the columns",
            where=name,
            found=quoted(cells),
            expected="a first line with the names of the columns",
            example=_EXAMPLE,
            remedy="remove the first line: the delimiter is found without it",
        )
    columns = [cell.strip() or f"unnamed_{place}" for place, cell in enumerate(cells, 1)]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise SourceError(
            f"the header names {quoted(twice)} more than once",
            where=name,
            found=quoted(columns),
            expected="each column once: which of two a row means cannot be told",
            remedy="rename or remove one of the two columns",
        )
    return columns


def _other_width(cells: list[str], header: list[str], delimiter: str, ref: RowRef) -> Broken:
    return Broken(
        RowError(
            f"the row has {len(cells)} cells, and the header names {len(header)} columns",
            reason="cell_count",
            where=ref,
            found=quoted([shown(cell, 40) for cell in cells], 6),
            expected=f"a cell for each of the columns {quoted(header)}, with {delimiter!r} between any two",
            example=_EXAMPLE,
            remedy="put cells that hold the delimiter, a quote or a line break in quotes, and write a quote inside "
            "them twice (csv.writer and pandas do both); `bad_rows: skip` leaves such rows out and counts them",
        ),
        "cell_count",
        delimiter.join(cells),
    )


def _bad_quotes(lines: _Lines, error: csv.Error) -> SourceError:
    where = RowRef(lines.name, max(lines.row, 1))
    if "new-line character" in str(error):
        return SourceError(
            f"line {lines.number:,} holds a carriage return (\\r) that ends no line and stands in no quotes",
            where=where,
            found="\\r without \\n behind it",
            expected="lines that end in \\n or \\r\\n",
            remedy="convert old line ends, `tr '\\r' '\\n' < FILE > fixed.csv`; where it belongs to a cell, put that "
            "cell in quotes",
        )
    if "unexpected end" in str(error):
        problem = f"the file ends inside a quoted cell of the row that begins in line {lines.begins:,}"
    else:
        problem = f"the quotes of line {lines.number:,} cannot be read: {error}"
    return SourceError(
        problem,
        where=where,
        found="a quote that opens a cell and is not closed before the next delimiter",
        expected='cells in quotes from end to end, a quote inside them written twice: "He said ""yes"".", 4',
        remedy="correct that line, or write the file again with csv.writer or pandas; what follows such a row cannot "
        "be told apart, so it cannot be skipped",
    )


# ---------------------------------------------------------------- which of the two


def text_rows(stream: Any, name: str, longest_row: int) -> Iterator[Numbered]:
    """Rows of a file of text: a table where it begins as one, else JSON. Raises SourceError for what is neither.

    Args:
        stream: buffered, with `peek`.
    """
    head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
    refuse_other_bytes(head, name)  # before a table is seen in them: a web page may have as many commas in each line
    delimiter = table_delimiter(head, name)
    if delimiter is not None:
        return delimited_rows(stream, name, delimiter, longest_row)
    return json_rows(stream, name, longest_row)
