"""Rows to a data set of token trees: encode, on as many cores as pay, into a store that is used again.

encoder = Encoder(tokenizer, EncoderSettings(max_length=1024))
dataset = encode(read("pairs.jsonl"), encoder, store=Path("cache"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.arguments import checked_instance, checked_path, checked_whole, wrong_argument
from posttrain.data.arguments import checked_bad_rows
from posttrain.data.blocks import Block, EncodeCounts, encode_block
from posttrain.data.dataset import EncodedDataset, StoreWriter, TornStoreError
from posttrain.data.encode import Encoder
from posttrain.data.given import as_examples
from posttrain.data.refusals import BadRows
from posttrain.data.truncate import DROP_REASONS
from posttrain.data.workers import WorkerPool, WorkerStartError, cores
from posttrain.errors import EmptyDatasetError
from posttrain.types import Example

__all__ = ["EncodeCounts", "EncodedDataset", "encode"]

_CHUNK = 256
_ALONE = 8192
"""Rows that are encoded before workers are started: fewer are done before the workers would be there."""


def encode(
    examples: Iterable[Example] | Any,
    encoder: Encoder,
    *,
    store: Path | str,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    bad_rows: BadRows = "stop",
) -> EncodedDataset:
    """Encode rows into a store below the folder `store`, or use the one that is there for the same rows.

    examples: of `read`, a list, or whatever `read` takes (rows, tables, paths). Read twice where a store exists, once
        to recognise it, so an iterator is put in a list.
    workers: processes; None uses all cores once there are many rows. The result does not depend on it.
    progress: called with the number of rows that were just done.
    bad_rows: what to do with a row that cannot be encoded faithfully: stop with its error, or drop and count it.

    Raises:
        EncodingError: a row cannot be encoded faithfully; it names the row.
        EmptyDatasetError: no tree is left to train on.
    """
    checked_instance(
        "encoder",
        encoder,
        Encoder,
        expected="an encoder of the model's tokenizer",
        remedy="write `pt.Encoder(loaded.tokenizer, loaded.speech.settings())`",
    )
    if progress is not None and (isinstance(progress, type) or not callable(progress)):
        raise wrong_argument(
            "progress",
            progress,
            expected="a function of the number of rows that were just done",
            remedy="write `progress=lambda rows: print(rows)`, or leave `progress` out",
        )
    if workers is not None:
        checked_whole("workers", workers, least=1, example=4)
    checked_bad_rows(bad_rows, None)
    parent = checked_path("store", store, "cache")
    examples = as_examples(examples)
    report = progress or (lambda rows: None)
    notes = list(encoder.notes)
    if any(parent.glob("encoded-*")):
        key, rows = _key_of(examples, encoder, bad_rows)
        found = _open(parent / f"encoded-{key}", notes)
        if found is not None:
            report(rows)
            return found
    keyed = _KeyedRows(examples, encoder, bad_rows)
    writer = StoreWriter(parent)
    try:
        for block in _blocks(keyed, encoder, workers, bad_rows, notes):
            writer.append(block)
            report(block.counts.read)
        if not writer.counts.kept:
            raise _nothing_left(writer.counts, encoder)
        folder = writer.finish(parent / f"encoded-{keyed.key}", {"encoder": encoder.version})
    finally:
        writer.abandon()
    dataset = EncodedDataset(folder, check=False)
    dataset.notes = tuple(notes)
    return dataset


class _KeyedRows:
    """Rows that are hashed as they pass; `key` is valid at the end."""

    def __init__(self, examples: Iterable[Example], encoder: Encoder, bad_rows: BadRows):
        self._examples = examples
        self._digest = sha256(f"{encoder.version} {bad_rows}".encode())
        self.rows = 0

    def __iter__(self) -> Iterator[Example]:
        for example in self._examples:
            # repr of a frozen record shows every field, its row included: errors must name the right file.
            self._digest.update(repr(example).encode("utf-8", "surrogatepass"))
            self.rows += 1
            yield example

    @property
    def key(self) -> str:
        return self._digest.hexdigest()[:24]


def _key_of(examples: Iterable[Example], encoder: Encoder, bad_rows: BadRows) -> tuple[str, int]:
    keyed = _KeyedRows(examples, encoder, bad_rows)
    for _ in keyed:
        pass
    return keyed.key, keyed.rows


def _open(folder: Path, notes: list[str]) -> EncodedDataset | None:
    """The store, if there is a whole one; what was found is noted."""
    if not folder.exists():
        return None
    try:
        dataset = EncodedDataset(folder)
    except TornStoreError as torn:
        notes.append(f"the encoded rows in {folder} are damaged ({torn.problem}) and are made again")
        return None
    notes.append(f"used the encoded rows in {folder} again ({len(dataset):,} trees): rows and settings are unchanged")
    dataset.notes, dataset.reused = tuple(notes), True
    return dataset


def _blocks(
    rows: Iterable[Example], encoder: Encoder, workers: int | None, bad_rows: BadRows, notes: list[str]
) -> Iterator[Block]:
    chunks = _chunks(rows)
    alone = 0 if workers is not None and workers > 1 else _ALONE // _CHUNK
    for chunk in islice(chunks, alone):
        yield encode_block(encoder, chunk, bad_rows)
    count = cores() if workers is None else workers
    if count > 1 and (first := next(chunks, None)) is not None:
        chunks = _chain(first, chunks)
        try:
            pool = WorkerPool(encoder, count, bad_rows)
        except WorkerStartError as error:
            notes.append(
                f"the rows were encoded on one core: the tokenizer cannot be sent to other processes ({error})"
            )
        else:
            with pool:
                yield from pool.encode(chunks)
    for chunk in chunks:
        yield encode_block(encoder, chunk, bad_rows)


def _chunks(rows: Iterable[Example]) -> Iterator[list[Example]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def _chain(first: list[Example], rest: Iterator[list[Example]]) -> Iterator[list[Example]]:
    yield first
    yield from rest


def _nothing_left(counts: EncodeCounts, encoder: Encoder) -> EmptyDatasetError:
    if not counts.read:
        return EmptyDatasetError(
            "there are no rows",
            found="0 rows",
            expected="at least one row",
            remedy="check the path and the `split` and `limit` of the data",
        )
    reasons = [f"{number:,} {reason} ({DROP_REASONS[reason]})" for reason, number in sorted(counts.dropped.items())]
    too_long = sum(counts.dropped.get(name, 0) for name in ("too_long", "prompt_too_long", "response_too_long"))
    remedy = "look at a few rows with `posttrain check`; a row needs an assistant's turn that trains"
    if too_long:
        remedy = (
            f"raise max_length above {encoder.settings.max_length}, or choose another `truncation` than "
            f"{encoder.settings.truncation}"
        )
    return EmptyDatasetError(
        f"nothing is left to train on: all {counts.read:,} rows were dropped",
        found="; ".join(reasons),
        expected="at least one row that is kept",
        remedy=remedy,
    )
