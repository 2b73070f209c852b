"""Encoded rows on disk: flat memory-mapped arrays, named after what they were made from.

`store.encode` writes one (`StoreWriter`, from the blocks of `blocks.py`) and opens it (`EncodedDataset`); training
reads its trees from there.

A store's folder is named by a hash of the rows, the template, the tokenizer, the settings and the encoder's version,
so that a change of any of them makes another store and an unchanged one is used again. It is written under another name
and renamed when it is whole; every file's size and checksum are checked when it is opened. Nothing of it is held in
memory but the pages in use, so a data set may be larger than memory.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, BinaryIO, overload

import numpy as np

from posttrain.arguments import checked_path
from posttrain.data.blocks import ARRAYS, Block, EncodeCounts
from posttrain.errors import SourceError
from posttrain.types import Branch, RowRef, TokenTree

STORE_SCHEMA = 3
_META, _DROPPED = "store.json", "dropped.jsonl"
_SHOWN_FINDINGS = 20
_CHECK_BYTES = 1 << 22


class TornStoreError(SourceError):
    """A store on disk is missing, incomplete or altered; `store.encode` makes it again."""

    def __init__(self, problem: str):
        super().__init__(problem, remedy="encode the rows again: `pt.encode(examples, encoder, store=FOLDER)`")


class StoreWriter:
    """Appends blocks and, at the end, gives the folder its name.

    writer = StoreWriter(Path("cache"))
    writer.append(block)
    folder = writer.finish(Path("cache/encoded-1f0c"), {"encoder": encoder.version})
    """

    def __init__(self, parent: Path):
        parent.mkdir(parents=True, exist_ok=True)
        self._folder = parent / f".encoding-{os.getpid()}-{os.urandom(4).hex()}"
        self._folder.mkdir()
        self._files: dict[str, BinaryIO] = {name: (self._folder / f"{name}.bin").open("wb") for name in ARRAYS}
        self._dropped = (self._folder / _DROPPED).open("w", encoding="utf-8")
        self._opened: list[IO[Any]] = [*self._files.values(), self._dropped]
        self._written = dict.fromkeys([*ARRAYS], 0)
        self._checks = dict.fromkeys([*ARRAYS], 0)
        self._tokens = self._segments = self._steps = 0
        self._sources: dict[str, int] = {}
        self._finding_rows: dict[str, list[str]] = {}
        self.counts = EncodeCounts()
        # Offsets as in CSR: where each item begins, and at the end where the last one ends.
        for name in ("segments", "trees", "steps"):
            self._write(name, np.zeros(1, ARRAYS[name]))

    def append(self, block: Block) -> None:
        # A block counts from its own beginning, so that workers need not know what comes before; here its lengths
        # become places in the whole store, and its file numbers those of all files.
        arrays = dict(block.arrays)
        arrays["segments"] = self._tokens + np.cumsum(arrays["segments"])
        arrays["trees"] = self._segments + np.cumsum(arrays["trees"])
        arrays["steps"] = self._steps + np.cumsum(arrays["steps"])
        places = np.asarray([self._sources.setdefault(name, len(self._sources)) for name in block.files] or [0])
        arrays["sources"] = places[arrays["sources"]]
        for name, dtype in ARRAYS.items():
            self._write(name, arrays[name].astype(dtype, copy=False))
        self._tokens += len(arrays["ids"])
        self._segments += len(arrays["segments"])
        self._steps += len(arrays["step_labels"])
        for record in block.dropped:
            self._dropped.write(json.dumps(record, ensure_ascii=False) + "\n")
        for finding, row in block.findings:
            rows = self._finding_rows.setdefault(finding, [])
            if len(rows) < _SHOWN_FINDINGS:
                rows.append(row)
        self.counts += block.counts

    def finish(self, folder: Path, about: dict[str, Any]) -> Path:
        """Completes the store and moves it to `folder`, taking the place of a torn one."""
        # No fsync: it would wait for whatever else the disk has to write, and a store that a power cut tears is noticed
        # by its checksums and made again.
        for file in self._opened:
            file.close()
        meta = {
            "schema": STORE_SCHEMA,
            **about,
            "sources": list(self._sources),
            "counts": self.counts.as_dict(),
            "found": self._finding_rows,
            "files": {name: {"bytes": self._written[name], "crc32": self._checks[name]} for name in ARRAYS},
        }
        (self._folder / _META).write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")
        # The name says what is inside: it appears last, and only over a whole store.
        if folder.exists():
            shutil.rmtree(folder)
        self._folder.rename(folder)
        return folder

    def abandon(self) -> None:
        """Removes what was written; harmless after `finish`."""
        for file in self._opened:
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, name: str, array: np.ndarray) -> None:
        data = array.tobytes()
        self._files[name].write(data)
        self._written[name] += len(data)
        self._checks[name] = zlib.crc32(data, self._checks[name])


class EncodedDataset(Sequence[TokenTree]):
    """Token trees in a store: a sequence whose items are made when they are asked for.

    dataset = EncodedDataset(Path("cache/encoded-1f0c"))
    dataset[3]                      # a TokenTree, in constant time; its arrays are views of the file
    dataset[[5, 3, 8]]              # an EncodedDataset of these three, in this order
    dataset.counts.dropped          # {"too_long": 10}

    Raises:
        TornStoreError: a file is missing, too short or altered.
    """

    def __init__(self, folder: str | Path, *, check: bool = True):
        self.folder = checked_path("folder", folder, "cache/encoded-1f0c")
        meta = _read_meta(self.folder)
        if check:
            _check_files(self.folder, meta)
        self._meta = meta
        self._arrays = {name: _mapped(self.folder / f"{name}.bin", dtype) for name, dtype in ARRAYS.items()}
        self._indices: np.ndarray | None = None
        # The two shares are in the file for whoever reads it; here they are properties.
        counts = {key: value for key, value in meta["counts"].items() if key not in ("stop_share", "supervised_share")}
        self.counts = EncodeCounts(**counts)
        self.notes: tuple[str, ...] = ()
        """Sentences for the user: a store used again, a torn one made anew, a template's peculiarity."""
        self.reused = False

    def __reduce__(self) -> tuple[Any, ...]:
        # The folder's name and not its content: another process on this machine maps the same pages.
        return _reopen, (self.folder, self._indices, self.notes, self.reused)

    def __len__(self) -> int:
        return len(self._arrays["trees"]) - 1 if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> TokenTree: ...

    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> EncodedDataset: ...

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> TokenTree | EncodedDataset:
        if isinstance(index, int | np.integer):
            size = len(self)
            if not -size <= index < size:
                raise IndexError(f"tree {index} of {size}")
            place = int(index) % size
            return self._tree(place if self._indices is None else int(self._indices[place]))
        return self._view(np.arange(len(self))[np.asarray(index, np.int64) if not isinstance(index, slice) else index])

    def __iter__(self) -> Iterator[TokenTree]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"EncodedDataset({len(self):,} trees, {self.counts.tokens:,} tokens, {str(self.folder)!r})"

    @property
    def keys(self) -> list[str]:
        """The content key of each tree, without making the trees."""
        digits = self._arrays["keys"].reshape(-1, 16)[self._places].tobytes().hex()
        return [digits[start : start + 32] for start in range(0, len(digits), 32)]

    @cached_property
    def num_tokens(self) -> np.ndarray:
        """Tokens of each tree, int64."""
        places = self._places
        segments, trees = self._arrays["segments"], self._arrays["trees"]
        return np.asarray(segments[trees[places + 1]] - segments[trees[places]])

    @cached_property
    def num_trained(self) -> np.ndarray:
        """Trained tokens of each tree, int64."""
        return np.asarray(self._arrays["trained"][self._places], np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the trees' content in their order: the same for the same trees on every machine and path."""
        # By the content keys and not by the file's bytes: a row that moved to another file is the same row.
        digest = sha256()
        keys = self._arrays["keys"].reshape(-1, 16)
        for start in range(0, len(self), 1 << 16):
            digest.update(keys[self._places[start : start + (1 << 16)]].tobytes())
        return digest.hexdigest()

    @property
    def found(self) -> dict[str, list[str]]:
        """The first rows of each finding of `encode.FINDINGS`: {"special_tokens_in_text": ["chat.jsonl, row 3"]}."""
        return dict(self._meta["found"])

    def dropped(self) -> Iterator[dict[str, str]]:
        """{"row", "reason", "message", "content"} of every tree that was dropped, in the rows' order."""
        with (self.folder / _DROPPED).open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    @cached_property
    def _places(self) -> np.ndarray:
        return np.arange(len(self)) if self._indices is None else self._indices

    def _tree(self, place: int) -> TokenTree:
        arrays = self._arrays
        first, last = int(arrays["trees"][place]), int(arrays["trees"][place + 1])
        bounds = [int(bound) for bound in arrays["segments"][first : last + 1]]
        ids, mask = np.asarray(arrays["ids"]), np.asarray(arrays["mask"])
        branches = tuple(Branch(ids[start:end], mask[start:end]) for start, end in pairwise(bounds[1:]))
        margin, label = float(arrays["margins"][place]), int(arrays["labels"][place])
        scores = tuple(arrays["scores"][first + 1 : last].tolist())  # one a segment; the first segment is the prompt
        start, end = int(arrays["steps"][place]), int(arrays["steps"][place + 1])
        return TokenTree(
            prompt_ids=ids[bounds[0] : bounds[1]],
            branches=branches,
            key=arrays["keys"][16 * place : 16 * place + 16].tobytes().hex(),
            row=RowRef(self._meta["sources"][int(arrays["sources"][place])], int(arrays["rows"][place])),
            margin=None if np.isnan(margin) else margin,
            label=None if label < 0 else bool(label),
            scores=None if not scores or np.isnan(scores[0]) else scores,
            step_labels=tuple(arrays["step_labels"][start:end].tolist()) or None,
        )

    def _view(self, indices: np.ndarray) -> EncodedDataset:
        """The chosen trees; what was dropped or cut belongs to the whole and is not repeated."""
        # Without __init__, which would check every file again: a view is made for each split and each subset.
        view = EncodedDataset.__new__(EncodedDataset)
        view.folder, view._meta, view._arrays = self.folder, self._meta, self._arrays
        view._indices = self._places[indices]
        view.notes, view.reused = self.notes, self.reused
        stops = self._arrays["stops"][view._indices]
        view.counts = replace(
            EncodeCounts(read=len(indices), kept=len(indices)),
            tokens=int(view.num_tokens.sum()),
            trained_tokens=int(view.num_trained.sum()),
            stop_tokens=int(stops.sum()),
        )
        return view


def _reopen(folder: Path, indices: np.ndarray | None, notes: tuple[str, ...], reused: bool) -> EncodedDataset:
    dataset = EncodedDataset(folder, check=False)
    dataset.notes, dataset.reused = notes, reused
    return dataset if indices is None else dataset._view(indices)


def _mapped(path: Path, dtype: str) -> np.ndarray:
    """A file's array without reading it; an empty file, such as the step labels of pairs, cannot be mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TornStoreError(f"{_META} cannot be read ({error})") from error
    schema = meta.get("schema") if isinstance(meta, dict) else None
    if schema != STORE_SCHEMA:
        raise TornStoreError(f"{_META} is of schema {schema}, this is {STORE_SCHEMA}")
    return meta


def _check_files(folder: Path, meta: dict[str, Any]) -> None:
    for name, expected in meta["files"].items():
        path = folder / f"{name}.bin"
        size = path.stat().st_size if path.is_file() else -1
        if size != expected["bytes"]:
            raise TornStoreError(f"{path.name} has {max(size, 0):,} of {expected['bytes']:,} bytes")
        check = 0
        with path.open("rb") as file:
            while data := file.read(_CHECK_BYTES):
                check = zlib.crc32(data, check)
        if check != expected["crc32"]:
            raise TornStoreError(f"{path.name} was altered")
