"""What models have said of rows, by content: on disk where a selection has a folder, so that a kill loses one batch.

    with Said(tools.cache, f"ifd {fingerprint}") as said:
        said.get(tree.key)                       # array([-12.3, 8.]); None where the model has not been asked
        said.put(tree.key, [-12.3, 8.0])         # on disk when it returns

Entries are found by what a row is and never by its number: with other rows, another order or another budget only what
is new is asked. Equal rows are asked once.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from posttrain.models.logprob_store import LogprobStore, SegmentWriter


class Said:
    """A store of numbers a row.

    Args:
        folder: None keeps them in memory alone.
        key: what the numbers depend on beside the row: the model's weights, its encoder, what it was asked.
        again: whether what is put is asked for again by this process; vectors of many rows would fill the memory.

    Raises:
        ModelError: the folder's content was altered.
    """

    def __init__(self, folder: Path | None, key: str, *, dtype: type = np.float64, again: bool = True):
        self._dtype, self._again = np.dtype(dtype), again
        self._memory: dict[str, np.ndarray] = {}
        self._store: LogprobStore | None = None
        self._writer: SegmentWriter | None = None
        if folder is not None:
            self._store = LogprobStore(_place(folder, key), content_key(key), self._dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)

    def get(self, name: str) -> np.ndarray | None:
        found = self._memory.get(name)
        return found if found is not None or self._store is None else self._store.get(name)

    def put(self, name: str, values: Sequence[float] | np.ndarray) -> None:
        numbers = np.asarray(values, self._dtype)
        if self._again:
            self._memory[name] = numbers
        if self._store is not None:
            # Not before: a run that finds everything must not leave an empty file each time.
            if self._writer is None:
                self._writer = SegmentWriter(self._store.folder, self._dtype)
            self._writer.append(name, numbers)


def forget(folder: Path | None, key: str) -> None:
    """Delete a store from the disk: what it held is kept elsewhere by now, in whole."""
    if folder is not None:
        shutil.rmtree(_place(folder, key), ignore_errors=True)


def _place(folder: Path, key: str) -> Path:
    return folder / f"said-{content_key(key)[:32]}"


def content_key(line: str) -> str:
    """The name of a whole row: content_key(rows.line(3))."""
    return hashlib.sha256(line.encode("utf-8", "surrogatepass")).hexdigest()
