"""Vectors on disk by a key of their content, memory-mapped: what they were computed from is part of their name.

A file appears under its name when it is complete, so that a process killed while it writes leaves nothing that another
would read.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from posttrain.errors import DataError
from posttrain.runs.disk import writing
from posttrain.runs.owner import owner_tag, remove_dead

SCHEMA = 1


def cached_vectors(folder: Path | None, key: str, count: int, make: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """float32 [count, D], of a file in `folder` named by `key`; made of the blocks [n, D] of `make` where there is
    none.

    folder: None keeps them in memory alone.

    Raises:
        DataError: the file was altered after it was written.
    """
    if folder is None:
        blocks = list(make())
        return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)
    path = folder / f"embeddings-{key[:32]}.npy"
    if not path.is_file():
        _write(path, count, make())
    vectors = np.load(path, mmap_mode="r")
    _require_unaltered(path, vectors, count)
    return vectors


def _write(path: Path, count: int, blocks: Iterable[np.ndarray]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(path.parent, f".{path.name}.")
    temporary = path.with_name(f".{path.name}.{owner_tag()}.part")
    vectors, done, checksum = None, 0, 0
    for block in blocks:
        with writing(path):
            if vectors is None:
                vectors = np.lib.format.open_memmap(temporary, "w+", np.float32, (count, block.shape[1]))
            vectors[done : done + len(block)] = block
        done += len(block)
        checksum = zlib.crc32(np.ascontiguousarray(block, np.float32).tobytes(), checksum)
    assert done == count, f"{done} vectors for {count} rows"
    with writing(path):
        if vectors is None:
            np.save(temporary.open("wb"), np.empty((0, 0), np.float32))
        else:
            vectors.flush()
        _checksum_file(path).write_text(json.dumps({"schema": SCHEMA, "crc32": checksum}) + "\n", encoding="utf-8")
        # Last: a file under its name is one whose checksum is there too.
        os.replace(temporary, path)


def _require_unaltered(path: Path, vectors: np.ndarray, count: int) -> None:
    checksum = 0
    for start in range(0, len(vectors), 1 << 14):
        checksum = zlib.crc32(np.ascontiguousarray(vectors[start : start + (1 << 14)]).tobytes(), checksum)
    try:
        written = json.loads(_checksum_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        written = None
    if written != {"schema": SCHEMA, "crc32": checksum} or len(vectors) != count:
        raise DataError(
            "the embeddings were altered after they were written",
            where=path,
            found=f"{len(vectors):,} vectors with the checksum {checksum}",
            expected=f"{count:,} vectors with that of {_checksum_file(path).name}: {written}",
            remedy="delete this file; the embeddings are computed again",
        )


def _checksum_file(path: Path) -> Path:
    return path.with_suffix(".json")
