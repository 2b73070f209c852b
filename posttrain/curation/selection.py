"""What a selection came to: the rows that were kept, those that were not with their reasons, and the twin.

picked.kept[0], len(picked.rejected), picked.twin        # rows, read from disk as they are asked for
print(picked)                                            # a line a step, a line a reason
picked.write(Path("picked"))                             # data.jsonl, rejected.jsonl, random.jsonl, manifest.json
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from posttrain.config.select import SelectSettings
from posttrain.config.step import StepSettings
from posttrain.curation.rows import Pool, Removed, Rows, Taken
from posttrain.data.counts import RowCounts
from posttrain.data.formats.table import KIND_NAMES
from posttrain.data.read import Examples
from posttrain.data.write import JsonlWriter, write_jsonl
from posttrain.runs.files import write_json
from posttrain.runs.records.selection import (
    RejectedRow,
    ScoreFigures,
    SelectionInput,
    SelectionManifest,
    SelectionStep,
    TwinFigures,
)

DATA = "data.jsonl"
TWIN, TOKEN_TWIN = "random.jsonl", "random_tokens.jsonl"
WRITTEN = (DATA, RejectedRow.FILE, TWIN, TOKEN_TWIN, SelectionManifest.FILE)
"""Every file of a selection's folder."""
EXAMPLES_SHOWN = 2


class RowView(Sequence[dict[str, Any]]):
    """Some rows as a list would have them, each read from disk when it is asked for."""

    def __init__(self, rows: Rows, places: np.ndarray):
        self._rows, self._places = rows, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._rows.row(int(place)) for place in self._places[index]]
        return self._rows.row(int(self._places[index]))

    def __repr__(self) -> str:
        return f"<{len(self):,} rows; view[0] reads the first>"


class RejectedView(Sequence[RejectedRow]):
    """The rejected rows of a selection as a list would have them, each read from disk when it is asked for."""

    def __init__(self, selection: Selection):
        self._selection = selection
        self._unreadable = sum(selection.refused.values())
        self._ends = np.cumsum([len(result.taken.removed) for result in selection.steps], dtype=np.int64)

    def __len__(self) -> int:
        return self._unreadable + (int(self._ends[-1]) if len(self._ends) else 0)

    @overload
    def __getitem__(self, index: int) -> RejectedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[RejectedRow]: ...
    def __getitem__(self, index: int | slice) -> RejectedRow | list[RejectedRow]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]  # a negative one counts from the end, one outside is an IndexError
        if place < self._unreadable:
            return next(islice(self._selection.refused_rows(), place, None))
        place -= self._unreadable
        step = int(np.searchsorted(self._ends, place, side="right"))
        result = self._selection.steps[step]
        return self._selection.rejected_row(result, result.taken.removed[place - int(self._ends[step])])

    def __iter__(self) -> Iterator[RejectedRow]:
        # Not by index: the file of unreadable rows would be read anew for each of them.
        yield from self._selection.refused_rows()
        for result in self._selection.steps:
            for one in result.taken.removed:
                yield self._selection.rejected_row(result, one)

    def __repr__(self) -> str:
        return f"<{len(self):,} rejected rows; view[0] reads the first>"


@dataclass(frozen=True)
class StepResult:
    """One step: what it was given and what it took. Not slotted: what is counted of it is counted once."""

    step: StepSettings
    pool: Pool
    """What it was given."""
    taken: Taken
    seconds: float
    computed_before: bool = False

    @cached_property
    def by_reason(self) -> Mapping[str, int]:
        """Removed rows by reason, the most frequent first."""
        return dict(Counter(one.reason for one in self.taken.removed).most_common())

    def examples(self, reason: str) -> list[Removed]:
        """The first few of a reason."""
        return [one for one in self.taken.removed if one.reason == reason][:EXAMPLES_SHOWN]

    def record(self) -> SelectionStep:
        scores = {name: _figures(values, self.pool.kept, self.taken.kept) for name, values in self.taken.scores.items()}
        return SelectionStep(
            self.step.label,
            len(self.pool),
            len(self.taken.kept),
            self.by_reason,
            round(self.seconds, 3),
            self.computed_before,
            scores,
            self.taken.notes,
        )


@dataclass(frozen=True, slots=True)
class Twin:
    """Twin("random.jsonl", rows=array([3, 8]), drawn_from=9_870)"""

    file: str
    rows: np.ndarray
    """int64, rising."""
    drawn_from: int
    tokens: int | None = None
    selected_tokens: int | None = None


@dataclass(frozen=True)
class Selection:
    """What was selected of which rows, and why; see the module. Not slotted: it keeps nothing but what it was given."""

    settings: SelectSettings
    rows: Rows
    refused_path: Path | None
    """Where rows that could not be read are listed, if they were skipped."""
    steps: tuple[StepResult, ...]
    pool: Pool
    """What is left at the end."""
    seed: int
    twins: tuple[Twin, ...] = ()
    out: Path | None = None
    """The folder that it was written into."""

    @property
    def kept(self) -> RowView:
        return RowView(self.rows, self._order)

    @property
    def twin(self) -> RowView:
        """As many rows, drawn at random from all that are not contaminated."""
        return RowView(self.rows, self.twins[0].rows)

    @property
    def _order(self) -> np.ndarray:
        if self.settings.order == "choice" and self.pool.chosen is not None:
            return self.pool.chosen
        return self.pool.kept

    @property
    def rejected(self) -> RejectedView:
        """Every row that is not kept, with its step, its reason and its scores: the unreadable ones first, the others
        step by step. Each is read from disk."""
        return RejectedView(self)

    def rejected_row(self, result: StepResult, one: Removed) -> RejectedRow:
        """A row that a step took out."""
        scores = {**result.pool.scores, **result.taken.scores}
        return RejectedRow(
            row=str(self.rows.ref(one.row)),
            step=result.step.label,
            reason=one.reason,
            message=one.message,
            scores={name: _plain(values[one.row]) for name, values in scores.items()},
            content=self.rows.row(one.row),
            nearest=None if one.nearest is None else str(self.rows.ref(one.nearest)),
            similarity=None if one.similarity is None else round(one.similarity, 4),
        )

    def refused_rows(self) -> Iterator[RejectedRow]:
        """Rows that could not be read."""
        if self.refused_path is None or not self.refused_path.is_file():
            return
        with self.refused_path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield RejectedRow(row["row"], "read", row["reason"], row["message"], {}, row["content"])

    @property
    def counts(self) -> RowCounts:
        """What reading said of the rows."""
        examples = self.rows.examples_read
        return (
            examples.counts if isinstance(examples, Examples) else RowCounts(read=len(self.rows), kept=len(self.rows))
        )

    @property
    def refused(self) -> Mapping[str, int]:
        """Rows that could not be read, by reason."""
        return dict(self.counts.skipped)

    @property
    def kind(self) -> str:
        """demonstrations, comparisons, feedback or tasks."""
        return KIND_NAMES[self.rows.kind]

    @property
    def rows_read(self) -> int:
        return len(self.rows) + sum(self.refused.values())

    # ------------------------------------------------------------ written

    def write(self, out: Path) -> Selection:
        """data.jsonl, rejected.jsonl, random.jsonl and, last, manifest.json: a folder without it is not complete."""
        (out / SelectionManifest.FILE).unlink(missing_ok=True)
        write_jsonl(out / DATA, self.kept)
        count = 0
        with JsonlWriter(out / RejectedRow.FILE) as writer:
            for row in self.rejected:
                writer.write(row.to_json())
                count += 1
        for name in {TWIN, TOKEN_TWIN} - {twin.file for twin in self.twins}:
            (out / name).unlink(missing_ok=True)  # of an earlier selection: it is no twin of this one
        for twin in self.twins:
            write_jsonl(out / twin.file, RowView(self.rows, twin.rows))
        write_json(out / SelectionManifest.FILE, self.manifest(count).to_json())
        return replace(self, out=out)

    def manifest(self, rejected: int) -> SelectionManifest:
        kept = self.pool.kept
        examples = self.rows.examples_read
        inputs = (
            tuple(SelectionInput(source.name, source.fingerprint()) for source in examples.sources)
            if isinstance(examples, Examples)
            else (SelectionInput("examples in memory", self.rows.fingerprint),)
        )
        twins = tuple(
            TwinFigures(
                twin.file,
                len(twin.rows),
                int(np.isin(twin.rows, kept).sum()),
                twin.drawn_from,
                twin.tokens,
                twin.selected_tokens,
            )
            for twin in self.twins
        )
        return SelectionManifest(
            kind=self.kind,
            read=self.rows_read,
            kept=len(kept),
            rejected=rejected,
            refused=self.refused,
            seed=self.seed,
            inputs=inputs,
            settings=self.settings.model_dump(mode="json"),
            steps=tuple(result.record() for result in self.steps),
            twins=twins,
            versions={name: version(name) for name in ("posttrain", "numpy")},
        )

    def __str__(self) -> str:
        lines = [f"{self.rows_read:,} {self.kind} read, {len(self.pool):,} kept"]
        if self.refused:
            lines.append(f"  read: {sum(self.refused.values()):,} rows could not be read")
        for result in self.steps:
            lines.append(f"  {result.step.label}: {len(result.pool):,} -> {len(result.taken.kept):,}")
            lines += [f"    {count:,} {reason}" for reason, count in result.by_reason.items()]
            lines += [f"    {note}" for note in result.taken.notes]
        for twin in self.twins:
            shared = int(np.isin(twin.rows, self.pool.kept).sum())
            lines.append(f"  {twin.file}: {len(twin.rows):,} of {twin.drawn_from:,} at random, {shared:,} of them kept")
        return "\n".join(lines)

    __repr__ = __str__


def _figures(values: np.ndarray, given: np.ndarray, kept: np.ndarray) -> ScoreFigures:
    known = values[given][~np.isnan(values[given])]
    after = values[kept][~np.isnan(values[kept])]
    if not len(known):
        return ScoreFigures(len(given), len(given), None, None, None, None, None, None, None)
    low, middle, high = (float(value) for value in np.quantile(known, (0.05, 0.5, 0.95)))
    return ScoreFigures(
        rows=len(given),
        unscored=len(given) - len(known),
        mean=float(known.mean()),
        least=float(known.min()),
        p5=low,
        median=middle,
        p95=high,
        most=float(known.max()),
        kept_mean=float(after.mean()) if len(after) else None,
    )


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
