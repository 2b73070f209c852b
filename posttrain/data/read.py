"""`read`: files to a stream of examples, with every row accounted for.

    pairs = read("pairs.jsonl")            # Examples; a bad row is a named error
    pairs.kind, pairs.format, len(pairs)   # Comparison, "preference", 1000
    for pair in pairs: ...

Every row that is read is either kept or counted under the reason for which it was skipped: `counts.read` is always
`counts.kept` plus the sum of `counts.skipped`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from posttrain.data.formats import COLUMNS, FORMATS, KIND_NAMES, Format, Kind, detect
from posttrain.data.formats.detect import (
    fits_nothing,
    has_keys,
    lacks_named_keys,
    lacks_settled_keys,
    no_object,
    unused_columns,
)
from posttrain.data.hub import HubSource
from posttrain.data.json_rows import Broken
from posttrain.data.refusals import quoted
from posttrain.data.roles import Rules
from posttrain.data.sources import Source, combined_fingerprint, no_rows, open_sources
from posttrain.data.write import JsonlWriter
from posttrain.errors import ConfigError, DataError, EmptyDatasetError, RowError, UnknownKeyError, nearest
from posttrain.types import Example, RowRef

BadRows = Literal["stop", "skip"]


@dataclass(slots=True)
class RowCounts:
    """RowCounts(read=1000, kept=997, skipped={"tie": 3}, unused_columns={"id"})."""

    read: int = 0
    kept: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    unused_columns: set[str] = field(default_factory=set)
    """Columns that the format does not read; worth a look, for a misspelt optional column ends here."""

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.skipped.items()))
        return f"{self.read:,} row{'' if self.read == 1 else 's'} read, {self.kept:,} kept" + (
            f", skipped: {reasons}" if reasons else ""
        )


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


def read(
    data: str | Path | Sequence[str | Path],
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    kind: Kind | None = None,
    bad_rows: BadRows = "stop",
    rejected_path: str | Path | None = None,
    limit: int | None = None,
    split: str = "train",
    allow_ties: bool = False,
    scan: bool = True,
) -> Examples:
    """Examples from files, globs, folders or hub ids.

    data: a path, glob, folder, saved `datasets` folder, hub id ("owner/name", "owner/name:config"), "package://NAME"
        (data that comes with posttrain), or a list of these
    format: a name in FORMATS, or "auto": the first of the table that a row fits
    columns: our column -> the file's, as {"prompt": "my_q"}
    roles: the file's role -> ours, as {"bot": "assistant"}; replaces the default names of that role
    kind: only rows of this kind (Demonstration, Comparison, Feedback, StepwiseFeedback, Task) will do; settles what a
        row that could be two things is (a file with both `messages` and `chosen`)
    bad_rows: "stop" raises at the first bad row; "skip" counts it and goes on
    rejected_path: with "skip", a JSONL file of the skipped rows with their reasons, written whole or not at all
    limit: keep this many rows and stop
    split: which split of a folder or hub data set
    allow_ties: keep pairs with equal scores, and lists in which only worse responses are level
    scan: read all rows once now, so that a bad row is found before anything else is done; False leaves that to the
        first iteration. A hub data set is never scanned: it would be downloaded twice.

    Raises SourceError, RowError, EmptyDatasetError (now, or while iterating), ConfigError, UnknownKeyError.
    """
    options = ReadOptions(
        format=_named_format(format, kind),
        columns=_checked_columns(columns or {}),
        rules=Rules.of(roles, allow_ties),
        kind=kind,
        bad_rows=_checked_bad_rows(bad_rows, rejected_path),
        rejected_path=Path(rejected_path) if rejected_path is not None else None,
        limit=_checked_limit(limit),
    )
    examples = Examples(open_sources(data, split), options)
    if scan and not examples.is_remote:
        examples.scan()
    return examples


class Examples:
    """A stream of examples that can be iterated again; nothing is held in memory.

    `counts` are those of the last whole iteration. `len` costs one iteration if there was none.
    """

    def __init__(self, sources: tuple[Source, ...], options: ReadOptions):
        self.sources = sources
        self.options = options
        self._counts: RowCounts | None = None
        self._settled: Format | None = None

    def __iter__(self) -> Iterator[Example]:
        counts = RowCounts()
        reader = _RowReader(self.options, counts)
        path = self.options.rejected_path if self.options.bad_rows == "skip" else None
        with JsonlWriter(path) as rejected:
            for ref, value, note in self._numbered():
                counts.read += 1
                try:
                    example = reader.example(value, ref)
                except DataError as error:
                    if note:
                        error.where = f"{ref} ({note})"
                    if self.options.bad_rows == "stop":
                        raise
                    rejected.write(_rejected(error, value, ref, counts))
                    continue
                counts.kept += 1
                yield example
                if counts.kept == self.options.limit:
                    break
        self._counts, self._settled = counts, reader.settled
        if not counts.kept:
            raise self._nothing_left(counts)

    def __len__(self) -> int:
        return self.counts.kept

    def __repr__(self) -> str:
        names = ", ".join(source.name for source in self.sources[:3]) + (", ..." if len(self.sources) > 3 else "")
        if self._settled is None or self._counts is None:
            return f"Examples({names}; not read yet)"
        return f"Examples({names}: {KIND_NAMES[self.kind]}, format '{self.format}', {self._counts})"

    @property
    def counts(self) -> RowCounts:
        """What became of the rows; reads them all if that has not happened yet."""
        if self._counts is None:
            self.scan()
        assert self._counts is not None
        return self._counts

    def scan(self) -> RowCounts:
        """Reads every row once and keeps only the counts. Raises what iterating raises."""
        for _ in self:
            pass
        return self.counts

    @property
    def format(self) -> str:
        """Name of the format, settled by the first good row."""
        return self._first_format().name

    @property
    def kind(self) -> Kind:
        """Demonstration, Comparison, Feedback, StepwiseFeedback or Task; one for all rows."""
        return self._first_format().kind

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of the content of the sources, in their order. Reads the files, but does not parse them."""
        return combined_fingerprint(self.sources)

    @property
    def is_remote(self) -> bool:
        return any(isinstance(source, HubSource) for source in self.sources)

    def head(self, count: int) -> list[Example]:
        """The first examples; reads no further than that."""
        found: list[Example] = []
        for example in self:
            found.append(example)
            if len(found) == count:
                break
        return found

    def _first_format(self) -> Format:
        if self._settled is None:
            reader = _RowReader(self.options, RowCounts())
            for ref, value, _ in self._numbered():
                try:
                    reader.example(value, ref)
                except DataError:
                    if self.options.bad_rows == "stop":
                        raise
                else:
                    break
            if reader.settled is None:
                raise self._nothing_left(self.counts)
            self._settled = reader.settled
        return self._settled

    def _numbered(self) -> Iterator[tuple[RowRef, Any, str]]:
        for source in self.sources:
            name, row = source.name, 0
            for row, value, note in source.rows():
                yield RowRef(name, row), value, note
            if not row:
                raise no_rows(name)

    def _nothing_left(self, counts: RowCounts) -> EmptyDatasetError:
        path = self.options.rejected_path
        return EmptyDatasetError(
            "no row is left: every one was skipped",
            where=", ".join(source.name for source in self.sources[:3]),
            found=str(counts),
            expected="at least one good row",
            remedy=(f"see {str(path)!r} for each row and its reason" if path else "see the first bad row in full")
            + ("" if path else " with `bad_rows: stop`, or give a `rejected_path`"),
        )


class _RowReader:
    """One pass over the rows: the format of each, and the kind that the first good row settled for all."""

    def __init__(self, options: ReadOptions, counts: RowCounts):
        self.options = options
        self.counts = counts
        self.settled: Format | None = None
        self.settled_by: RowRef | None = None

    def example(self, value: Any, ref: RowRef) -> Example:
        if isinstance(value, Broken):
            raise value.error
        if type(value) is not dict:
            raise _at(no_object(value), ref)
        row = self._mapped(value, ref) if self.options.columns else value
        entry = self._format_of(row, ref)
        example = entry.parse(row, ref, self.options.rules)
        if self.settled is None:
            self.settled, self.settled_by = entry, ref
        unused = unused_columns(row, entry)
        if unused:
            self.counts.unused_columns |= unused
        return example

    def _format_of(self, row: dict[str, Any], ref: RowRef) -> Format:
        named = self.options.format
        if named is not None:
            if not has_keys(row, named):
                raise _at(lacks_named_keys(row, named), ref)
            return named
        kind = self.options.kind
        entry = detect(row, kind)
        if self.settled is None:
            if entry is None:
                raise _at(fits_nothing(row, kind), ref)
            return entry
        if entry is not None and entry.kind is self.settled.kind:
            return entry
        lost = self.settled.missing(row)
        if entry is None or (lost and len(lost) < len(self.settled.keys)):
            raise _at(lacks_settled_keys(row, self.settled, self.settled_by), ref)
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
        absent = [theirs for theirs in columns.values() if theirs not in row]
        if absent:
            guess = nearest(absent[0], row)
            raise RowError(
                f"the row has no column {quoted(absent)}, which `columns` maps",
                reason="wrong_shape",
                where=ref,
                found=f"the keys {quoted(row)}",
                expected=f"the columns {quoted(columns.values())}",
                remedy=f"did you mean {guess!r}?" if guess else "correct `columns`, or the row",
            )
        rest = {key: value for key, value in row.items() if key not in columns.values()}
        return rest | {ours: row[theirs] for ours, theirs in columns.items()}


def _at(error: RowError, ref: RowRef) -> RowError:
    error.where = ref
    return error


def _rejected(error: DataError, value: Any, ref: RowRef, counts: RowCounts) -> dict[str, Any]:
    reason = value.reason if isinstance(value, Broken) else error.reason if isinstance(error, RowError) else "other"
    counts.skipped[reason] = counts.skipped.get(reason, 0) + 1
    content = value.content if isinstance(value, Broken) else value
    return {"row": str(ref), "reason": reason, "message": str(error), "content": content}


# ---------------------------------------------------------------- arguments


def _named_format(name: str, kind: Kind | None) -> Format | None:
    if name == "auto":
        return None
    if name not in FORMATS:
        guess = nearest(name, FORMATS)
        raise UnknownKeyError(
            f"there is no format {name!r}",
            found=repr(name),
            expected=f"'auto' or one of {quoted(FORMATS)}",
            remedy=f"did you mean {guess!r}?" if guess else "leave `format` out to have it detected",
        )
    entry = FORMATS[name]
    if kind is not None and entry.kind is not kind:
        fitting = quoted(other.name for other in FORMATS.values() if other.kind is kind)
        raise ConfigError(
            f"the format '{name}' gives {KIND_NAMES[entry.kind]}, but {KIND_NAMES[kind]} are needed",
            found=f"`format: {name}`",
            expected=f"one of {fitting}",
            remedy="leave `format` out, or name a format of the kind that is needed",
        )
    return entry


def _checked_columns(columns: Mapping[str, str]) -> dict[str, str]:
    for ours in columns:
        if ours not in COLUMNS:
            guess = nearest(ours, COLUMNS)
            swapped = columns[ours] in COLUMNS
            raise UnknownKeyError(
                f"`columns` maps {ours!r}, which no format reads",
                found=f"{{{ours}: {columns[ours]}}}",
                expected=f"our column -> the file's column; ours are {quoted(sorted(COLUMNS))}",
                remedy=f"turn it round: `columns: {{{columns[ours]}: {ours}}}`"
                if swapped
                else f"did you mean {guess!r}?"
                if guess
                else "name a column of the format first, then the file's",
            )
    return dict(columns)


def _checked_bad_rows(bad_rows: str, rejected_path: str | Path | None) -> BadRows:
    if bad_rows == "skip":
        return "skip"
    if bad_rows != "stop":
        raise ConfigError(
            f"`bad_rows` is {bad_rows!r}",
            found=repr(bad_rows),
            expected="'stop' or 'skip'",
            remedy=f"write `bad_rows: {nearest(str(bad_rows), ('stop', 'skip')) or 'stop'}`",
        )
    if rejected_path is not None:
        raise ConfigError(
            "`rejected_path` is given, but a bad row stops the reading, so none is ever written there",
            found=f"`rejected_path: {rejected_path}` with `bad_rows: stop`",
            expected="`rejected_path` together with `bad_rows: skip`",
            remedy="write `bad_rows: skip`, or leave `rejected_path` out",
        )
    return "stop"


def _checked_limit(limit: int | None) -> int | None:
    if limit is not None and limit < 1:
        raise ConfigError(
            f"`limit` is {limit}",
            found=str(limit),
            expected="a number of rows from 1, or nothing for all",
            remedy="leave `limit` out to read all rows",
        )
    return limit
