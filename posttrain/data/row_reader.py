"""One pass over rows: the format of each, and the kind that the first good row settles for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from posttrain.data.counts import RowCounts
from posttrain.data.formats import COLUMNS, KIND_NAMES, Format, Kind, detect
from posttrain.data.formats.advice import better_remedy, fits_nothing, lacks_named_keys, lacks_settled_keys, no_object
from posttrain.data.formats.detect import has_keys, unused_columns
from posttrain.data.noted import KeyNotes
from posttrain.data.refusals import quoted
from posttrain.data.roles import Rules
from posttrain.data.row_fields import ABSENT, field_of, mapped_row, paths_in, top_of
from posttrain.data.sources.source import Broken
from posttrain.data.unread import not_in_prompt
from posttrain.errors import RowError, nearest
from posttrain.types import Example, RowRef, Task

BadRows = Literal["stop", "skip"]
_ADVISED_ROWS = 20
"""Rows for whose error a way to read them is searched; of many that are skipped, nobody reads more."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How rows are read; see `read` for what each means."""

    format: Format | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    kind: Kind | None = None
    bad_rows: BadRows = "stop"
    rejected_path: Path | None = None
    limit: int | None = None
    notes: tuple[str, ...] = ()
    """What should be said of the choice of files."""


class RowReader:
    """One pass over the rows: the format of each, and the kind that the first good row settled for all."""

    def __init__(self, options: ReadOptions, counts: RowCounts):
        self.options = options
        self.counts = counts
        self.settled: Format | None = None
        self.settled_by: RowRef | None = None
        self._refused = 0
        self._noted = KeyNotes()
        self._rules = replace(options.rules, noted=self._noted)

    def example(self, value: Any, ref: RowRef) -> Example:
        if isinstance(value, Broken):
            raise value.error
        if type(value) is not dict:
            raise at_row(no_object(value, ref), ref)
        row = self._mapped(value, ref) if self.options.columns else value
        if any([item.__class__ is float and item != item for item in row.values()]):
            row = {key: None if _is_nan(item) else item for key, item in row.items()}
        self._noted.take()  # what a row that was refused has left behind
        entry = self._format_of(row, ref)
        try:
            example = entry.parse(row, ref, self._rules)
        except RowError as error:
            if self._searches():
                error.remedy = better_remedy(value, error, self.options.kind, ref)
            raise
        if self.settled is None:
            self.settled, self.settled_by = entry, ref
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
        if isinstance(example, Task):
            for note in not_in_prompt(example):
                self.counts.note(note)

    def _format_of(self, row: dict[str, Any], ref: RowRef) -> Format:
        named = self.options.format
        if named is not None:
            if not has_keys(row, named):
                raise at_row(lacks_named_keys(row, named, ref, search=self._searches()), ref)
            return named
        kind = self.options.kind
        entry = detect(row, kind)
        if self.settled is None:
            if entry is None:
                raise at_row(fits_nothing(row, kind, ref, search=self._searches()), ref)
            return entry
        if entry is not None and entry.kind is self.settled.kind:
            return entry
        lost = self.settled.missing(row)
        if entry is None or (lost and len(lost) < len(self.settled.keys)):
            raise at_row(lacks_settled_keys(row, self.settled, self.settled_by), ref)
        raise self._mixed(row, entry, ref)

    def _mixed(self, row: Mapping[str, Any], entry: Format, ref: RowRef) -> RowError:
        assert self.settled is not None
        both = has_keys(row, self.settled)
        first, here = KIND_NAMES[self.settled.kind], KIND_NAMES[entry.kind]
        return RowError(
            f"this row is of another kind than {self.settled_by}: {here}, not {first}",
            reason="mixed_kinds",
            where=ref,
            found=f"the format '{entry.name}' here, '{self.settled.name}' there (the row's keys: {quoted(row)})",
            expected=f"{self.settled.signature} (format '{self.settled.name}'), as in {self.settled_by}",
            example=self.settled.example_line,
            remedy="split the rows into one file per kind"
            + (f", or, to read all as {first}, write `format: {self.settled.name}`" if both else "")
            + "; `bad_rows: skip` keeps the first kind and counts the rest",
        )

    def _mapped(self, row: dict[str, Any], ref: RowRef) -> dict[str, Any]:
        columns = self.options.columns
        absent = [theirs for theirs in columns.values() if field_of(row, theirs) is ABSENT]
        if absent:
            guess = nearest(absent[0], list(paths_in(row)))
            raise RowError(
                f"the row has no column {quoted(absent)}, which `columns` maps",
                reason="wrong_shape",
                where=ref,
                found=f"the keys {quoted(row)}",
                expected=f"the columns {quoted(columns.values())} (a dot leads into an object: `meta.answer`)",
                remedy=f"did you mean {guess!r}?" if guess else "correct `columns`, or the row",
            )
        return mapped_row(row, columns, COLUMNS)


def _is_nan(value: Any) -> bool:
    """What pandas, and JSON that Python wrote from it, have where a value is missing."""
    return type(value) is float and value != value


def at_row(error: RowError, ref: RowRef) -> RowError:
    """The error with the place of its row."""
    error.where = ref
    return error
