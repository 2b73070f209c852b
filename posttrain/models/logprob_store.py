"""Log-probs of token trees on disk, found by the tree's content: what a cached reference is made of.

A store is a folder for one set of weights. It holds segments, each written by one process: a file of numbers and a
file of fixed-size records that say whose numbers they are. Writers only append, numbers before record, so a process
killed at any moment leaves whole entries and at most one torn tail, which readers drop; the next build goes on
from there. Files are memory-mapped, so the data may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zlib
from pathlib import Path
from types import TracebackType

import numpy as np

from posttrain.errors import ModelError

META = "store.json"
RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("offset", "<u8"), ("length", "<u4"), ("crc", "<u4")])
"""128 bits of the tree key's hash, where its numbers lie (in elements), how many, and their checksum."""


class LogprobStore:
    """Read access to a store: store.get(tree.key) -> array of the tree's N trained tokens, or None.

    Args:
        folder: made if it is not there.
        key: what the numbers depend on besides the tree (weights, config, precision).

    Raises:
        ModelError: the folder belongs to another key.
    """

    def __init__(self, folder: Path, key: str, dtype: np.dtype):
        self.folder = folder
        self.dtype = np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)
        self._check(key)
        self.refresh()

    def refresh(self) -> None:
        """See what other processes and finished writers have added."""
        self._values: list[np.ndarray] = []
        records, segments = [np.empty(0, RECORD)], [np.empty(0, np.int32)]
        for index in sorted(self.folder.glob("*.index")):
            values = _map(index.with_suffix(".values"), self.dtype)
            entries = _map(index, RECORD)
            # Numbers that are not all there: of a writer that goes on meanwhile, or of a machine that went down.
            whole = entries["offset"] + entries["length"] <= len(values)
            records.append(entries[whole])
            segments.append(np.full(int(whole.sum()), len(self._values), np.int32))
            self._values.append(values)
        joined = np.concatenate(records)
        # Sorted once, looked up by bisection: a dict of millions of keys would be larger than the store.
        order = np.argsort(joined["high"], kind="stable")
        self._records, self._segments = joined[order], np.concatenate(segments)[order]

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, tree_key: str) -> bool:
        return self._find(tree_key) is not None

    def get(self, tree_key: str) -> np.ndarray | None:
        """The numbers of one tree.

        Raises:
            ModelError: they were altered after they were written.
        """
        place = self._find(tree_key)
        if place is None:
            return None
        record = self._records[place]
        start = int(record["offset"])
        values = self._values[self._segments[place]][start : start + int(record["length"])]
        # At each read: a flipped bit in a reference log-prob moves one row's loss and nothing else would show it.
        if zlib.crc32(values.tobytes()) != int(record["crc"]):
            raise ModelError(
                "cached log-probs were altered after they were written",
                where=self.folder,
                remedy="delete this folder; the numbers are computed again",
            )
        return values

    def _find(self, tree_key: str) -> int | None:
        high, low = _digest(tree_key)
        place = int(np.searchsorted(self._records["high"], np.uint64(high)))
        while place < len(self._records) and int(self._records[place]["high"]) == high:
            # Two keys may share the first 64 bits; the other 64 decide.
            if int(self._records[place]["low"]) == low:
                return place
            place += 1
        return None

    def _check(self, key: str) -> None:
        """A store made with other weights is never read."""
        path = self.folder / META
        mine = {"schema": 1, "key": key, "dtype": self.dtype.name}
        if not path.is_file():
            # Written apart and renamed: two processes that start at once both see a whole file.
            temporary = self.folder / f".{META}.{os.getpid()}"
            temporary.write_text(json.dumps(mine), encoding="utf-8")
            os.replace(temporary, path)
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != mine:
            raise ModelError(
                "the cached log-probs were computed with other weights or settings",
                where=self.folder,
                found=found,
                expected=mine,
                remedy="delete this folder; the numbers are computed again",
            )


class SegmentWriter:
    """Appends to a store through files of its own, so that writers never meet."""

    def __init__(self, folder: Path, dtype: np.dtype):
        self.dtype = np.dtype(dtype)
        stem = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._values = stem.with_suffix(".values").open("wb", buffering=0)
        self._index = stem.with_suffix(".index").open("wb", buffering=0)
        self._length = 0

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._values.close()
        self._index.close()

    def append(self, tree_key: str, values: np.ndarray) -> None:
        content = np.ascontiguousarray(values, self.dtype).tobytes()
        high, low = _digest(tree_key)
        # Numbers before the record that points to them: killed in between, they are never found instead of found torn.
        self._values.write(content)
        record = np.array([(high, low, self._length, len(values), zlib.crc32(content))], RECORD)
        self._index.write(record.tobytes())
        self._length += len(values)


def _digest(tree_key: str) -> tuple[int, int]:
    raw = hashlib.blake2b(tree_key.encode(), digest_size=16).digest()
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    """The whole elements of a file that may be empty or end in a torn one."""
    count = path.stat().st_size // dtype.itemsize if path.is_file() else 0
    return np.memmap(path, dtype, "r", shape=(count,)) if count else np.empty(0, dtype)
