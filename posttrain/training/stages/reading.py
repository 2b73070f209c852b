"""A stage's rows: read, encoded, split, counted; before any weight is loaded.

inputs = read_rows(ctx, start, objective)          # Examples -> TokenTrees, with what the preflight says of them
inputs.rows, inputs.held_out, inputs.counts
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.config import ConditionalSFT, Data
from posttrain.config.base import RowStage
from posttrain.config.settings import ReadSettings
from posttrain.data.dataset import EncodedDataset
from posttrain.data.encode import Encoder
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.mixed_rows import MixedRows
from posttrain.data.read import Examples
from posttrain.data.recast import Condition, Recast, read_as, recast_note, require_kind
from posttrain.data.round_trip import require_written
from posttrain.data.store import encode
from posttrain.data.write import write_jsonl
from posttrain.errors import DataError, EncodingError
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.responses import has_ties, ties_error
from posttrain.models.folders.export_files import SpokenPrompt
from posttrain.parallel.world import world
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.logs import DroppedRow
from posttrain.runs.records.preflight import DecodedRow
from posttrain.runs.records.stage import DataCounts
from posttrain.training.checks.of_data import (
    NAMED_ROWS,
    encoding_check,
    files_check,
    held_out_check,
    new_tokens_check,
    unread_columns_check,
    unread_keys_check,
)
from posttrain.training.checks.preflight import SEARCHED_TREES, SHOWN_ROWS, Check, decoded_rows
from posttrain.training.objectives import Algorithm
from posttrain.training.order import stream_seed
from posttrain.training.stages.audited import audit_rows
from posttrain.training.stages.encoded import Categories, Encoded, mixed, say_not_held_out, split_rows, with_split
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.speech import (
    date_without_effect,
    prompts_of,
    run_date,
    stage_encoding,
    stops_in_answers,
)
from posttrain.training.stages.starts import Start
from posttrain.types import Example, TokenTree

MakeEncoder = Callable[[Any, EncoderSettings], Encoder]
"""(tokenizer, settings) -> the encoder of the stage's rows."""


@dataclass(frozen=True, slots=True)
class RowInputs:
    """A stage's rows, read and encoded; no weight has been touched yet."""

    objective: Algorithm
    """What they train, as far as it is known without a model: it says what a row has to hold."""
    rows: Sequence[TokenTree]
    held_out: Sequence[TokenTree]
    encoder: Encoder
    counts: DataCounts
    """What stage.json says under "data"."""
    fingerprints: tuple[str, ...]
    findings: tuple[Check, ...] = ()
    """What the preflight has to say of the rows beside the counts."""
    categories: Categories = field(default_factory=dict)
    """What kind each row that may be held out is, where a column says it."""
    proofs: tuple[Check, ...] = ()
    """That all rows are what the template renders, for the training rows and for a held-out file."""
    prompts: tuple[SpokenPrompt, ...] = ()
    """A few of the rows' prompts, which the exported folder must build alike."""


def read_rows(
    ctx: StageContext[Any],
    start: Start,
    objective: Algorithm,
    make_encoder: MakeEncoder = Encoder,
    categories: Callable[[Examples], Categories] | None = None,
) -> RowInputs:
    """Read and encode a stage's rows, hold some of them out, and write dropped.jsonl. Of several ranks, rank 0 reads
    and the others open the encoded rows that it has written.

    Args:
        categories: what kind each of the rows is; asked of those that may be held out.

    Raises:
        DataError, EncodingError: a row, a file or the template cannot serve; no model has been loaded.
    """
    found = world().agreed(lambda: _Travelling(_read_here(ctx, start, objective, make_encoder, categories)))
    return replace(found.inputs, objective=objective)


class _Travelling:
    """Inputs on their way to the other ranks: without the objective, which is made of functions and known there."""

    def __init__(self, inputs: RowInputs):
        self.inputs = inputs

    def __getstate__(self) -> dict[str, Any]:
        unknown: Any = None
        return {"inputs": replace(self.inputs, objective=unknown)}


def _read_here(
    ctx: StageContext[Any],
    start: Start,
    objective: Algorithm,
    make_encoder: MakeEncoder,
    categories: Callable[[Examples], Categories] | None,
) -> RowInputs:
    stage: RowStage = ctx.stage
    encoder = _encoder(ctx, start, make_encoder)
    reader = _Reader(ctx, objective, encoder, categories)
    assert ctx.examples is None or isinstance(ctx.examples, Examples)  # a list of tasks is for stages that sample
    training = reader.read("train", stage.data, ctx.examples)
    training = replace(training, findings=training.findings + new_tokens_check(training.rows, start.new_tokens))
    if ctx.held_out is not None or isinstance(stage.held_out, Data):
        assert ctx.held_out is None or isinstance(ctx.held_out, Examples)
        named = stage.held_out if isinstance(stage.held_out, Data) else None
        apart = reader.read("held_out", named, ctx.held_out)
        _write_dropped(ctx.folder, [*training.stores, *apart.stores])
        return _with_file(objective, training, apart, reader)
    _write_dropped(ctx.folder, training.stores)
    kept, out = split_rows(training.rows, stage.held_out, stream_seed(ctx.split_seed, "split"))
    say_not_held_out(ctx, kept, out)
    return RowInputs(
        objective,
        kept,
        out,
        encoder,
        with_split(training.record, kept, out),
        (training.rows.fingerprint,),
        training.findings,
        _categories(training.categories, out, reader),
        training.proofs,
        training.prompts,
    )


def _categories(found: Categories, held_out: Sequence[TokenTree], reader: _Reader) -> Categories:
    """The rows' own categories, or else the sources that they come from."""
    if found or reader.categories is None or not isinstance(held_out, MixedRows):
        return found
    return {tree.row: str(tree.part) for tree in held_out}


class _Chained:
    """The rows of several sources, one after the other; they can be gone through again."""

    def __init__(self, sources: Sequence[Examples]):
        self._sources = sources

    def __iter__(self) -> Iterator[Example]:
        return (example for examples in self._sources for example in examples)


def _encoder(ctx: StageContext[Any], start: Start, make_encoder: MakeEncoder) -> Encoder:
    """How the model is spoken to, with the stage's options for rows; none may have more tokens than the model has
    positions."""
    stage = ctx.stage
    spoken, contradictions = stage_encoding(stage, start.speech, run_date(ctx.folder))
    ctx.say(*contradictions)
    options = stage.encoding.model_dump(exclude={"template", "template_kwargs", "date"})
    limits = [limit for limit in (stage.max_length, start.positions) if limit is not None]
    settings = replace(spoken, max_length=min(limits, default=None), **options)
    if settings.max_length != stage.max_length:
        ctx.say(f"max_length is {settings.max_length:,}, the most positions that the model has")
    encoder = make_encoder(start.tokenizer, settings)
    ctx.say(*date_without_effect(stage, encoder))
    return encoder


# ---------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class _Opened:
    """Rows that were read once, and not encoded yet."""

    examples: Examples
    rejected: Path
    findings: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads and encodes for one stage."""

    ctx: StageContext[Any]
    objective: Algorithm
    encoder: Encoder
    categories: Callable[[Examples], Categories] | None

    def read(self, split: str, data: Data | None, examples: Examples | None) -> Encoded:
        """All rows of `data` or of `held_out`, of every source of a mixture."""
        ctx, stage = self.ctx, self.ctx.stage
        sources = data.sources if data is not None and examples is None else ()
        parts: Sequence[ReadSettings | None] = sources or [data]
        if split == "train" and ctx.show_first is not None:
            self._show_first(parts, examples, ctx.show_first)
        opened = [self._opened(split, part, examples, place) for place, part in enumerate(parts)]
        # The audit reads texts and comes first: what it stops at would cost the encoding. Of all sources at once: a
        # pair that contradicts another may stand in another file.
        audited: tuple[Check, ...] = ()
        if split == "train":
            every = opened[0].examples if not sources else _Chained([one.examples for one in opened])
            audited = audit_rows(stage, every, ctx.folder, ctx.progress)
        if not sources:
            return self._encoded(split, replace(opened[0], findings=opened[0].findings + audited))
        encoded = {part.name: self._encoded(split, one) for part, one in zip(sources, opened, strict=True)}
        together = mixed(encoded)
        return replace(together, findings=together.findings + audited)

    def _opened(self, split: str, data: ReadSettings | None, examples: Examples | None, place: int) -> _Opened:
        examples, rejected = self._read(split, data, examples, place)
        findings = files_check(split, examples) + unread_columns_check(split, examples)
        self.ctx.say(*examples.counts.notes)
        return _Opened(examples, rejected, findings + unread_keys_check(split, examples))

    def _encoded(self, split: str, opened: _Opened) -> Encoded:
        ctx, stage = self.ctx, self.ctx.stage
        examples, findings = opened.examples, opened.findings
        rows = self._encode(split, examples)
        ctx.say(*(note for note in (recast_note(examples, self.objective.kind), *rows.notes) if note))
        for name in stage.objective_names:
            if name in PAIRWISE and PAIRWISE[name].needs_margins:
                _require_margins(rows, name)
            if name in ONE_ORDER:
                _require_one_order(rows, name)
        categories: Categories = {}
        apart = ctx.held_out is not None or isinstance(stage.held_out, Data)
        if self.categories is not None and (split == "held_out" or not apart):
            categories = self.categories(examples)
        proofs = (encoding_check(split, rows),)
        prompts = prompts_of(self._recast(examples), self.encoder) if split == "train" else ()
        findings += stops_in_answers(rows, self.encoder) if split == "train" else ()
        record = _record(examples, rows)
        return Encoded(split, rows, record, opened.rejected, proofs, findings, categories, prompts)

    def _show_first(
        self,
        parts: Sequence[ReadSettings | None],
        examples: Examples | None,
        show: Callable[[str, Sequence[DecodedRow]], None],
    ) -> None:
        """The first rows as the model will see them, at once: of a file of a gigabyte the last row is encoded half an
        hour later, and a wrong mask is seen in the first. A row that cannot be encoded is refused here, too."""
        wanted = max(1, SHOWN_ROWS // len(parts))
        trees = [tree for part in parts for tree in self._first_trees(part, examples, wanted)]
        show(self.ctx.folder.name, decoded_rows(trees, self.encoder))

    def _first_trees(self, data: ReadSettings | None, examples: Examples | None, wanted: int) -> list[TokenTree]:
        if examples is None and data is not None:  # a beginning of the file alone: `_read` looks at every row of it
            data = data.model_copy(update={"limit": min(SEARCHED_TREES, data.limit or SEARCHED_TREES)})
        examples, _ = self._read("train", data, examples)
        trees: list[TokenTree] = []
        for row in islice(self._recast(examples), SEARCHED_TREES):
            try:
                trees += self.encoder.example(row).trees
            except EncodingError:
                if examples.options.bad_rows == "stop":
                    raise
            if len(trees) >= wanted:
                break
        return trees

    def _read(
        self, split: str, data: ReadSettings | None, examples: Examples | None, place: int = 0
    ) -> tuple[Examples, Path]:
        """The rows, and the file of those that could not be read."""
        number = f"_{place}" if place else ""
        rejected = self.ctx.folder.path / f"rejected_{split}{number}.jsonl"
        if examples is None:
            assert data is not None  # the recipe's validation refuses a stage without data
            return read_data(data, self.objective.kind, rejected), rejected
        require_kind(examples, self.objective.kind)
        if examples.options.bad_rows == "skip" and examples.options.rejected_path is None:
            # A program's rows name no file for what cannot be read; the stage's folder is where one would look.
            return Examples(examples.sources, replace(examples.options, rejected_path=rejected)), rejected
        return examples, examples.options.rejected_path or rejected

    def _encode(self, split: str, examples: Examples) -> EncodedDataset:
        """Rows as trees, each proven against the template's rendering; text that the tokenizer cannot write is refused
        here, for all rows at once."""
        ctx = self.ctx
        name = "rows" if split == "train" else "held-out rows"
        total = examples.counts.kept
        with ctx.progress.phase(f"{ctx.folder.name}: encoding {name}", total=total, unit="rows") as phase:
            rows = encode(
                self._recast(examples),
                self.encoder,
                store=ctx.folder.path / "encoded",
                progress=phase.advance,
                bad_rows=examples.options.bad_rows,
            )
        require_written(
            rows.counts.read,
            rows.counts.findings.get("lost_text", 0),
            rows.counts.characters,
            rows.counts.lost_characters,
            lossy=self.encoder.settings.lossy,
            examples=rows.found.get("lost_text", ()),
        )
        return rows

    def _recast(self, examples: Examples) -> Iterable[Example]:
        """The rows as the method takes them."""
        stage, kind = self.ctx.stage, self.objective.kind
        if isinstance(stage, ConditionalSFT):
            return Recast(examples, kind, Condition(stage.good, stage.bad, stage.place))
        return Recast(examples, kind) if recast_note(examples, kind) else examples


def _record(examples: Examples, rows: EncodedDataset) -> DataCounts:
    counts = rows.counts
    return DataCounts(
        read=examples.counts.read,
        kept=counts.kept,
        dropped={**examples.counts.skipped, **counts.dropped},
        truncated=dict(counts.truncated),
        findings=dict(counts.findings),
        tokens=counts.tokens,
        trained_tokens=counts.trained_tokens,
        stop_share=counts.stop_share,
        rows=None,
        held_out_rows=None,
        notes=tuple(examples.counts.notes),
        format=examples.format,
        split=counts.split,
        unused_columns=tuple(sorted(examples.counts.unused_columns)),
        unread_keys=dict(sorted(examples.counts.unread_keys.items())),
        characters=counts.characters,
        lost_characters=counts.lost_characters,
    )


def read_data(data: ReadSettings, kind: Any, rejected: Path) -> Examples:
    """The rows of a recipe's `data`; all of them are looked at now, so that a bad one is found before a model loads."""
    return read_as(list(data.path), kind, **data.keywords(rejected))


ONE_ORDER: Mapping[str, str] = {"dpo_pl": "dpo", "plackett_luce": "bradley_terry"}
"""Objectives of a whole list, and which of its pairs takes lists with ties."""


def _require_one_order(rows: EncodedDataset, objective: str) -> None:
    tied = [tree for tree in rows if tree.scores is not None and has_ties(tree.scores)]
    if tied:
        raise ties_error(objective, ONE_ORDER[objective], tied[0].row, tied[0].scores or (), len(tied))


def _require_margins(rows: EncodedDataset, method: str) -> None:
    lacking = [str(tree.row) for tree in rows if tree.margin is None]
    if not lacking:
        return
    more = f" and {len(lacking) - NAMED_ROWS:,} more" if len(lacking) > NAMED_ROWS else ""
    raise DataError(
        f"`{method}` trains on the annotators' margins, and {len(lacking):,} of {len(rows):,} pairs have none",
        where=lacking[0],
        found=f"no margin in {'; '.join(lacking[:NAMED_ROWS])}{more}",
        expected="a number `margin` in every pair: how much better the chosen response is",
        example='{"prompt": "Who?", "chosen": "I am Pia.", "rejected": "What.", "margin": 2.0}',
        remedy="add the margins, name the column that holds them (`columns: {margin: YOURS}`), remove those rows, "
        "or use `method: dpo`, which needs none",
    )


# ---------------------------------------------------------------- held out, dropped


def _with_file(objective: Algorithm, training: Encoded, apart: Encoded, reader: _Reader) -> RowInputs:
    """Held-out rows from a file of their own; those that are trained on as well are counted, and a check names them."""
    # Keys are hashes of ids and masks: rows that read alike are found under other names and in other files.
    trained = set(training.rows.keys)
    shared = [index for index, key in enumerate(apart.rows.keys) if key in trained]
    counts = replace(
        with_split(training.record, training.rows, apart.rows),
        held_out=replace(apart.record, rows=len(apart.rows), in_training_rows=len(shared)),
    )
    check = held_out_check(apart.rows, apart.record.dropped, shared)
    fingerprints = (training.rows.fingerprint, apart.rows.fingerprint)
    findings = (*training.findings, *apart.findings, check)
    return RowInputs(
        objective,
        training.rows,
        apart.rows,
        reader.encoder,
        counts,
        fingerprints,
        findings,
        _categories(apart.categories, apart.rows, reader),
        (*training.proofs, *apart.proofs),
        training.prompts,
    )


def _write_dropped(folder: StageFolder, parts: Sequence[Encoded]) -> None:
    """dropped.jsonl anew, so that a stage that goes on lists each row once."""
    path = folder.path / DroppedRow.FILE
    if not write_jsonl(path, (row.to_json() for part in parts for row in _dropped(part))):
        path.unlink()
    for part in parts:
        if part.rejected.parent == folder.path:
            part.rejected.unlink(missing_ok=True)


def _dropped(part: Encoded) -> Iterator[DroppedRow]:
    """The rows that could not be read, then those that could not be encoded."""
    if part.rejected.exists():
        with part.rejected.open(encoding="utf-8") as lines:
            for line in lines:
                yield replace(DroppedRow.from_json(json.loads(line)), split=part.split)
    assert isinstance(part.rows, EncodedDataset)  # each source has its own store
    for content in part.rows.dropped():
        yield replace(DroppedRow.from_json(content), split=part.split)
