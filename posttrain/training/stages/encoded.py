"""A stage's encoded rows with what became of those that were dropped: of one source, or of a mixture's together.

mixed({"maths": maths, "chat": chat})     # Encoded, whose rows are MixedRows
split_rows(rows, 0.05, seed)              # (to train on, held out), of each source its share
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain.data.dataset import EncodedDataset
from posttrain.data.mixed_rows import MixedRows
from posttrain.data.split import row_contents, split_by_content, split_sources
from posttrain.models.folders.export_files import SpokenPrompt
from posttrain.runs.records.stage import DataCounts, SourceCounts
from posttrain.training.checks.preflight import Check
from posttrain.training.stages.kind import StageContext
from posttrain.types import RowRef

Categories = Mapping[RowRef, str]
SHOWN_PROMPTS = 4
"""Of a mixture, that the exported folder must build alike."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The rows of `data` or of `held_out`, and what became of those that were dropped."""

    split: str
    rows: EncodedDataset | MixedRows
    record: DataCounts
    rejected: Path
    """Rows that could not be read, under `bad_rows: skip`."""
    proofs: tuple[Check, ...]
    findings: tuple[Check, ...] = ()
    categories: Categories = field(default_factory=dict)
    prompts: tuple[SpokenPrompt, ...] = ()
    sources: tuple[Encoded, ...] = ()
    """Of a mixture: what it was made of."""

    @property
    def stores(self) -> Sequence[Encoded]:
        """Those that have a store of their own."""
        return self.sources or (self,)


def mixed(parts: Mapping[str, Encoded]) -> Encoded:
    """The sources of a mixture as one; every line of the preflight says which it is about."""
    first = next(iter(parts.values()))
    stores = {name: part.rows for name, part in parts.items() if isinstance(part.rows, EncodedDataset)}
    return Encoded(
        first.split,
        MixedRows(stores),
        _together(parts),
        first.rejected,
        tuple(_of(check, name) for name, part in parts.items() for check in part.proofs),
        tuple(_of(check, name) for name, part in parts.items() for check in part.findings),
        {row: kind for part in parts.values() for row, kind in part.categories.items()},
        tuple(prompt for turn in zip(*(part.prompts for part in parts.values()), strict=False) for prompt in turn)[
            :SHOWN_PROMPTS
        ],
        tuple(parts.values()),
    )


def split_rows(rows: EncodedDataset | MixedRows, share: float, seed: int) -> tuple[Any, Any]:
    """(to train on, held out), each a data set of the kind that was given."""
    # By content, not by place: the same row trains or is held out whatever stands before it in the file.
    if isinstance(rows, EncodedDataset):
        kept, out = split_by_content(row_contents(rows), share, seed)
        return rows[kept], rows[out]
    sides = split_sources([row_contents(part) for part in rows.parts.values()], share, seed)
    named = list(zip(rows.parts.items(), sides, strict=True))
    return (
        MixedRows({name: part[kept] for (name, part), (kept, _) in named}),
        MixedRows({name: part[out] for (name, part), (_, out) in named}),
    )


def with_split(record: DataCounts, kept: Any, out: Any) -> DataCounts:
    """The counts with how many rows train, and how many are held out; of each source, too."""
    record = replace(record, rows=len(kept), held_out_rows=len(out))
    if record.sources is None or not isinstance(kept, MixedRows):
        return record
    sources = tuple(
        replace(
            source,
            rows=len(kept.parts[source.name]),
            held_out_rows=len(out.parts.get(source.name, ())) if isinstance(out, MixedRows) else None,
        )
        for source in record.sources
    )
    return replace(record, sources=sources)


def say_not_held_out(ctx: StageContext[Any], kept: Any, out: Any) -> None:
    """A line for every source of which no row is held out, though the stage holds out a share."""
    share = ctx.stage.held_out
    counts = [("", len(kept), len(out))]
    if isinstance(kept, MixedRows):
        counts = [(f" of `{name}`", len(rows), len(out.parts[name])) for name, rows in kept.parts.items()]
    for name, rows, held in counts:
        if share and not held:
            ctx.say(
                f"no row{name} is held out ({share:g} of {rows:,} rows, rounded down), so nothing is measured on "
                "rows that were not trained on; raise held_out, or name a file"
            )


def _of(check: Check, name: str) -> Check:
    return replace(check, title=f"{check.title}, {name}")


def _together(parts: Mapping[str, Encoded]) -> DataCounts:
    """The counts of all sources, and of each."""
    records = [part.record for part in parts.values()]
    trained = _sum(record.trained_tokens for record in records)
    stops = sum((one.stop_share or 0.0) * one.trained_tokens for one in records if one.trained_tokens)
    return DataCounts(
        read=_sum(record.read for record in records),
        kept=_sum(record.kept for record in records),
        dropped=_added(record.dropped for record in records),
        truncated=_added(record.truncated_by_reason for record in records),
        findings=_added(record.findings for record in records),
        tokens=_sum(record.tokens for record in records),
        trained_tokens=trained,
        # A mean over all trained tokens, and not of the sources' shares.
        stop_share=stops / trained if trained else None,
        rows=None,
        held_out_rows=None,
        notes=tuple(dict.fromkeys(note for record in records for note in record.notes)),
        format=", ".join(dict.fromkeys(record.format or "" for record in records)),
        split=_sum(record.split for record in records),
        unused_columns=tuple(sorted({column for record in records for column in record.unused_columns or ()})),
        unread_keys=dict(sorted(_added(record.unread_keys or {} for record in records).items())),
        characters=_sum(record.characters for record in records),
        lost_characters=_sum(record.lost_characters for record in records),
        sources=tuple(
            SourceCounts(
                name,
                read=part.record.read,
                kept=part.record.kept,
                rows=len(part.rows),
                held_out_rows=None,
                tokens=part.record.tokens,
                trained_tokens=part.record.trained_tokens,
            )
            for name, part in parts.items()
        ),
    )


def _sum(numbers: Iterable[int | None]) -> int:
    return sum(number or 0 for number in numbers)


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)
