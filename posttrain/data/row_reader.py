"""One pass over rows: the format of each, and the kind that the first good row decides for all.

Between the sources, which give objects, and the formats, which parse one: `read.Examples` makes a reader for each pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain.data.counts import RowCounts
from posttrain.data.formats import COLUMNS, KIND_NAMES, ExampleKind, Format, detect
from posttrain.data.formats.advice import better_remedy, fits_nothing, lacks_named_keys, lacks_settled_keys, no_object
from posttrain.data.formats.detect import has_keys, unused_columns
from posttrain.data.noted import KeyNotes
from posttrain.data.refusals import BadRows, quoted
from posttrain.data.repairs import NONE
from posttrain.data.roles import Rules
from posttrain.data.row_fields import ABSENT, field_of, mapped_row, paths_in, top_of
from posttrain.data.sources.source import Broken
from posttrain.data.unread import not_in_prompt
from posttrain.errors import RowError, unknown
from posttrain.types import Example, RowRef, Task

_ADVISED_ROWS = 20
"""Rows for whose error a way to read them is searched; of many that are skipped, nobody reads more."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How rows are read; see `read` for what each means."""

    format: Format | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    kind: ExampleKind | None = None
    bad_rows: BadRows = "stop"
    rejected_path: Path | None = None
    limit: int | None = None
    skip: int = 0
    notes: tuple[str, ...] = ()
    """What a user should know of the choice of files."""


class RowReader:
    """One pass over the rows. The first good row decides the kind of all: a file that mixes kinds has two meanings, and
    a loss for the one would train on the other.
    """

    def __init__(self, options: ReadOptions, counts: RowCounts):
        self.options = options
        self.counts = counts
        self.format: Format | None = None
        self.format_row: RowRef | None = None
        self._refused = 0
        self._noted = KeyNotes()
        self._rules = replace(options.rules, noted=self._noted)
        self._repairs = options.rules.repairs is not NONE

    def example(self, value: Any, ref: RowRef) -> Example:
        if isinstance(value, Broken):
            raise value.error
        if type(value) is not dict:
            raise at_row(no_object(value, ref), ref)
        row = self._mapped(value, ref) if self.options.columns else value
        # NaN is what pandas, and JSON that Python wrote from it, have where a value is missing; the formats know null.
        # A list and not a generator, since this runs for every row.
        if any([item.__class__ is float and item != item for item in row.values()]):
            row = {key: None if type(item) is float and item != item else item for key, item in row.items()}
        self._noted.take()  # notes of a refused row before this one
        if self._repairs:
            self._noted.take_repairs()
        entry = self._format_of(row, ref)
        try:
            example = entry.parse(row, ref, self._rules)
        except RowError as error:
            if self._searches():
                error.remedy = better_remedy(value, error, self.options.kind, ref)
            raise
        if self.format is None:
            self.format, self.format_row = entry, ref
        self._count(row, value, entry, example)
        return example

    def _searches(self) -> bool:
        self._refused += 1
        return self._refused <= _ADVISED_ROWS

    def _count(self, row: dict[str, Any], value: dict[str, Any], entry: Format, example: Example) -> None:
        unused = unused_columns(row, entry)
        if unused:
            self.counts.unused_columns |= unused - {top_of(value, path) for path in self.options.columns.values()}
        if keys := self._noted.take():
            self.counts.unread_keys.update(keys)
        if self._repairs:
            self.counts.repairs.update(self._noted.take_repairs())
        if isinstance(example, Task):
            for note in not_in_prompt(example):
                self.counts.note(note)

    def _format_of(self, row: dict[str, Any], ref: RowRef) -> Format:
        # A format that the user named is the rule; without one, each row may have another format of the same kind, as
        # files that were joined do.
        named = self.options.format
        if named is not None:
            if not has_keys(row, named):
                raise at_row(lacks_named_keys(row, named, ref, search=self._searches()), ref)
            return named
        kind = self.options.kind
        entry = detect(row, kind)
        if self.format is None:
            if entry is None:
                raise at_row(fits_nothing(row, kind, ref, search=self._searches()), ref)
            return entry
        if entry is not None and entry.kind is self.format.kind:
            return entry
        # Rather the missing column of the format so far than "another kind": a row that lost its `rejected` still has
        # `prompt` and `chosen`, and looks like something else.
        missing = self.format.missing(row)
        if entry is None or (missing and len(missing) < len(self.format.keys)):
            raise at_row(lacks_settled_keys(row, self.format, self.format_row), ref)
        raise self._mixed(row, entry, ref)

    def _mixed(self, row: Mapping[str, Any], entry: Format, ref: RowRef) -> RowError:
        assert self.format is not None
        fits_both = has_keys(row, self.format)
        first, here = KIND_NAMES[self.format.kind], KIND_NAMES[entry.kind]
        return RowError(
            f"this row is of another kind than {self.format_row}: {here}, not {first}",
            reason="mixed_kinds",
            where=ref,
            found=f"the format '{entry.name}' here, '{self.format.name}' there (the row's keys: {quoted(row)})",
            expected=f"{self.format.signature} (format '{self.format.name}'), as in {self.format_row}",
            example=self.format.example_line,
            remedy="split the rows into one file per kind"
            + (f", or, to read all as {first}, write `format: {self.format.name}`" if fits_both else "")
            + "; `bad_rows: skip` keeps the first kind and counts the rest",
        )

    def _mapped(self, row: dict[str, Any], ref: RowRef) -> dict[str, Any]:
        columns = self.options.columns
        absent = [theirs for theirs in columns.values() if field_of(row, theirs) is ABSENT]
        if absent:
            raise unknown(
                "column",
                absent[0],
                paths_in(row),
                error=RowError,
                problem=f"the row has no column {', '.join(f'`{name}`' for name in absent)}, which `columns` maps",
                reason="wrong_shape",
                where=ref,
                found=f"the keys {quoted(row)}",
                expected=f"the columns {quoted(columns.values())} (a dot leads into an object: `meta.answer`)",
                otherwise="correct `columns`, or the row",
            )
        return mapped_row(row, columns, COLUMNS)


def at_row(error: RowError, ref: RowRef) -> RowError:
    """The error with the place of its row."""
    error.where = ref
    return error
