"""`read`: files to a stream of examples, with every row accounted for. The first step of the flow: rows -> Examples.

    pairs = read("pairs.jsonl")            # Examples; a bad row is a named error
    pairs.kind, pairs.format, len(pairs)   # Comparison, "preference", 1000
    for pair in pairs: ...

Every row that is read is either kept or counted under the reason for which it was skipped: `counts.read` is always
`counts.kept` plus the sum of `counts.skipped`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from posttrain.arguments import checked_flag, checked_path, checked_text
from posttrain.data.arguments import (
    checked_bad_rows,
    checked_columns,
    checked_dialogues,
    checked_kind,
    checked_limit,
    checked_megabytes,
    checked_skip,
    named_format,
    names,
)
from posttrain.data.counts import RowCounts
from posttrain.data.formats import KIND_NAMES, ExampleKind, Format
from posttrain.data.refusals import BadRows
from posttrain.data.repairs import Repairs, repair_notes
from posttrain.data.roles import Rules
from posttrain.data.row_reader import ReadOptions, RowReader
from posttrain.data.sources.files import combined_fingerprint, no_rows, resolve_sources
from posttrain.data.sources.hub import HubSource
from posttrain.data.sources.json_rows import MEGABYTE
from posttrain.data.sources.source import Broken, DataSource
from posttrain.data.write import JsonlWriter
from posttrain.errors import DataError, EmptyDatasetError, RowError
from posttrain.runs.progress import QUICK_SECONDS, Progress
from posttrain.runs.showing import Shown, showing
from posttrain.types import Example, RowRef

BEFORE = "before_skip"
"""Of `REASONS`: a good row that `skip` leaves out."""
SCAN_STRIDE = 1024
"""Rows between two looks at the clock."""
DialoguesInText = Literal["refuse", "keep"]

__all__ = ["BadRows", "Examples", "ReadOptions", "RowCounts", "read"]


def read(
    data: Any,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    kind: ExampleKind | None = None,
    bad_rows: BadRows = "stop",
    rejected_path: str | Path | None = None,
    limit: int | None = None,
    skip: int = 0,
    split: str = "train",
    allow_ties: bool = False,
    dialogues_in_text: DialoguesInText = "refuse",
    longest_row_mb: int = 64,
    repairs: Mapping[str, Any] | None = None,
    scan: bool = True,
    progress: Shown = None,
) -> Examples:
    """Examples from files, globs, folders, hub ids, or rows in memory.

    data: a path, glob, folder, saved `datasets` folder, hub id ("owner/name", "owner/name:config"), "package://NAME"
        (data that comes with posttrain); a list or generator of dicts, a pandas DataFrame, a `datasets.Dataset`; or a
        list of these
    format: a name in FORMATS, or "auto": the first of the table that a row fits
    columns: our column -> the file's, as {"prompt": "my_q"}; a dot leads into an object: {"answer": "meta.answer"}
    roles: the file's role -> ours, as {"bot": "assistant"}; replaces the default names of that role
    kind: accept only rows of this kind (Demonstration, Comparison, Feedback, StepwiseFeedback, Task); decides what a
        row that could be two things is (a file with both `messages` and `chosen`)
    bad_rows: "stop" raises at the first bad row; "skip" counts it and goes on
    rejected_path: with "skip", a JSONL file of the skipped rows with their reasons, written whole or not at all
    limit: keep this many rows and stop
    skip: leave out this many good rows first, counted: `skip=400, limit=400` are those after `limit=400`
    split: which split of a folder, pattern or hub data set
    allow_ties: keep pairs with equal scores, and lists in which only worse responses are level
    dialogues_in_text: "refuse" a text that is a whole dialogue with the marks of a prompt format, or "keep" it as it is
    longest_row_mb: megabytes of text in one row of JSON; a longer one is a bad row, and never in memory as a whole
    repairs: of conversations that chat templates refuse, each counted: {"system_into_user": True,
        "join_same_role": True (or the text between two turns), "first_greeting": "drop" (or "keep")}
    scan: read all rows once now, so that a bad row is found before anything else is done; False leaves that to the
        first iteration. A hub data set is never scanned: it would be downloaded twice.
    progress: of the scan, where it takes more than a moment; None shows it in a terminal or notebook, False never

    Raises SourceError, RowError, EmptyDatasetError (now, or while iterating), ConfigError, UnknownKeyError.
    """
    options = ReadOptions(
        format=named_format(format, checked_kind(kind)),
        columns=checked_columns(columns),
        rules=Rules.of(
            names("roles", roles, "{'bot': 'assistant'}"),
            checked_flag("allow_ties", allow_ties),
            checked_dialogues(dialogues_in_text),
            Repairs.of(repairs),
        ),
        kind=kind,
        bad_rows=checked_bad_rows(bad_rows, rejected_path),
        rejected_path=None if rejected_path is None else checked_path("rejected_path", rejected_path, "bad.jsonl"),
        limit=checked_limit(limit),
        skip=checked_skip(skip),
    )
    longest = checked_megabytes("longest_row_mb", longest_row_mb)
    # Everything about the arguments is checked above, before a file is opened: a misspelt option must not cost a scan.
    resolved = resolve_sources(data, checked_text("split", split, "train"), longest * MEGABYTE)
    examples = Examples(resolved.sources, replace(options, notes=resolved.notes))
    checked_flag("scan", scan)
    with showing(progress) as shown:
        if scan and not examples.is_remote:
            examples.scan(shown)
    return examples


class Examples:
    """A stream of examples that can be iterated again; nothing is held in memory.

    `counts` are those of the last whole iteration. `len` costs one iteration if there was none.
    """

    def __init__(self, sources: tuple[DataSource, ...], options: ReadOptions):
        self.sources = sources
        self.options = options
        self._counts: RowCounts | None = None
        self._format: Format | None = None

    def __iter__(self) -> Iterator[Example]:
        return (example for example, _ in self.with_rows())

    def with_rows(self) -> Iterator[tuple[Example, Mapping[str, Any]]]:
        """Each example with the row as its file has it, all columns included: for what passes rows on unchanged."""
        counts = RowCounts(notes=list(self.options.notes))
        reader = RowReader(self.options, counts)
        left = self.options.skip
        path = self.options.rejected_path if self.options.bad_rows == "skip" else None
        with JsonlWriter(path) as rejected:
            for ref, value, note in self._numbered():
                counts.read += 1
                try:
                    example = reader.example(value, ref)
                except DataError as error:
                    self._require_skip(error, ref, note)
                    rejected.write(_rejected(error, value, ref, counts))
                    continue
                if left:  # only good rows count, so that parts of one file meet without a gap, whatever is refused
                    left -= 1
                    counts.skipped[BEFORE] = counts.skipped.get(BEFORE, 0) + 1
                    continue
                counts.kept += 1
                yield example, value
                if counts.kept == self.options.limit:
                    break
        for note in repair_notes(counts.repairs):
            counts.note(note)
        # Only here, after a whole pass: a caller that stops early must not leave the counts of half a file behind.
        self._counts, self._format = counts, reader.format
        if not counts.kept:
            raise self._nothing_left(counts)

    def __len__(self) -> int:
        # Costs a pass over the rows if there was none: how many are good is not known before each was read.
        return self.counts.kept

    def __repr__(self) -> str:
        names = ", ".join(source.name for source in self.sources[:3]) + (", ..." if len(self.sources) > 3 else "")
        if self._format is None or self._counts is None:
            return f"Examples({names}; not read yet)"
        return f"Examples({names}: {KIND_NAMES[self.kind]}, format '{self.format}', {self._counts})"

    @property
    def counts(self) -> RowCounts:
        """What became of the rows; reads them all if that has not happened yet."""
        if self._counts is None:
            self.scan()
        assert self._counts is not None
        return self._counts

    def scan(self, progress: Progress | None = None) -> RowCounts:
        """Reads every row once and keeps only the counts. Raises what iterating raises."""
        with ExitStack() as shown:
            began, phase = time.monotonic(), None
            for number, _ in enumerate(self, 1):
                # In strides, and not before it takes a while: a line for each row would cost as much as reading it.
                if progress is None or number % SCAN_STRIDE:
                    continue
                if phase is not None:
                    phase.advance(SCAN_STRIDE)
                elif time.monotonic() - began > QUICK_SECONDS:
                    title = f"reading {self.sources[0].name}" + (" and others" if len(self.sources) > 1 else "")
                    phase = shown.enter_context(progress.phase(title, unit="rows", done=number))
        return self.counts

    @property
    def format(self) -> str:
        """Name of the format of the first good row."""
        return self._first_format().name

    @property
    def kind(self) -> ExampleKind:
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
        examples: list[Example] = []
        for example in self:
            examples.append(example)
            if len(examples) == count:
                break
        return examples

    def _first_format(self) -> Format:
        # Its own pass up to the first good row, so that asking for the format of a large file costs one row.
        if self._format is None:
            reader = RowReader(self.options, RowCounts())
            for ref, value, _ in self._numbered():
                try:
                    reader.example(value, ref)
                except DataError as error:
                    self._require_skip(error, ref)
                else:
                    break
            if reader.format is None:
                raise self._nothing_left(self.counts)
            self._format = reader.format
        return self._format

    def _require_skip(self, error: DataError, ref: RowRef, note: str = "") -> None:
        """Raises the error of a bad row, unless such rows are skipped; `note` is the line, if not the row's number."""
        if note:
            error.where = f"{ref} ({note})"
        if self.options.bad_rows == "stop":
            raise error

    def _numbered(self) -> Iterator[tuple[RowRef, Any, str]]:
        for source in self.sources:
            name, row = source.name, 0
            for row, value, note in source.rows():
                yield RowRef(name, row), value, note
            if not row:  # an error and not zero rows: among other files it is likely a failed download
                raise no_rows(name)

    def _nothing_left(self, counts: RowCounts) -> EmptyDatasetError:
        path = self.options.rejected_path
        if before := counts.skipped.get(BEFORE):
            return EmptyDatasetError(
                "no row is left: `skip` leaves out all that there are",
                where=", ".join(source.name for source in self.sources[:3]),
                found=f"skip: {self.options.skip:,}, of {before:,} good rows",
                expected="fewer rows to skip than there are",
                remedy="write a smaller `skip`, or give a file with more rows",
            )
        return EmptyDatasetError(
            "no row is left: every one was skipped",
            where=", ".join(source.name for source in self.sources[:3]),
            found=str(counts),
            expected="at least one good row",
            remedy=(f"see `{path}` for each row and its reason" if path else "see the first bad row in full")
            + ("" if path else " with `bad_rows: stop`, or give a `rejected_path`"),
        )


def _rejected(error: DataError, value: Any, ref: RowRef, counts: RowCounts) -> dict[str, Any]:
    # A source refuses what is no JSON, and its SourceError carries no reason: the Broken row does.
    reason = value.reason if isinstance(value, Broken) else error.reason if isinstance(error, RowError) else "other"
    counts.skipped[reason] = counts.skipped.get(reason, 0) + 1
    content = value.content if isinstance(value, Broken) else value
    return {"row": str(ref), "reason": reason, "message": str(error), "content": content}
