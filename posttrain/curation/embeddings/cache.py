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
KEPT = 4
"""Files of one folder: a selection that is tried with many settings must not fill the disk. The oldest go."""


def cached_vectors(
    folder: Path | None, key: str, count: int, make: Callable[[], Iterable[np.ndarray]], notes: list[str]
) -> np.ndarray:
    """float32 [count, D], of a file in `folder` named by `key`; made of the blocks [n, D] of `make` where there is
    none.

    Args:
        folder: None keeps them in memory alone.
        notes: `make` adds to it what there is to say of the rows. It is kept, and said again beside vectors that are
            read, which are as incomplete as they were.

    Raises:
        DataError: the file was altered after it was written.
    """
    if folder is None:
        blocks = list(make())
        return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)
    path = folder / f"embeddings-{key[:32]}.npy"
    if not path.is_file():
        _write(path, count, make(), notes)
        return np.load(path, mmap_mode="r")
    vectors = np.load(path, mmap_mode="r")
    notes += _require_unaltered(path, vectors, count)
    return vectors


def _write(path: Path, count: int, blocks: Iterable[np.ndarray], notes: list[str]) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(path.parent, f".{path.name}.")
    temporary = path.with_name(f".{path.name}.{owner_tag()}.part")
    shape, done, checksum = None, 0, 0
    # By writing, not through a map: a full disk is then an error with a name, and not the end of the process.
    with temporary.open("wb") as file:
        for block in blocks:
            content = np.ascontiguousarray(block, "<f4")
            with writing(path):
                if shape is None:
                    shape = (count, content.shape[1])
                    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(content.tobytes())
            done += len(content)
            checksum = zlib.crc32(content.tobytes(), checksum)
        assert done == count, f"{done} vectors for {count} rows"
        with writing(path):
            file.flush()
            os.fsync(file.fileno())
    with writing(path):
        record = {"schema": SCHEMA, "crc32": checksum, "notes": notes}
        _record_file(path).write_text(json.dumps(record) + "\n", encoding="utf-8")
        # Last: a file under its name is one whose record is there too.
        os.replace(temporary, path)
    newest = sorted(path.parent.glob("embeddings-*.npy"), key=lambda file: file.stat().st_mtime_ns)
    for old in newest[:-KEPT]:
        old.unlink(missing_ok=True)
        _record_file(old).unlink(missing_ok=True)


def _require_unaltered(path: Path, vectors: np.ndarray, count: int) -> list[str]:
    """The notes that were kept with the vectors."""
    checksum = 0
    for start in range(0, len(vectors), 1 << 14):
        checksum = zlib.crc32(np.ascontiguousarray(vectors[start : start + (1 << 14)]).tobytes(), checksum)
    try:
        record = json.loads(_record_file(path).read_text(encoding="utf-8"))
        notes = [str(note) for note in record["notes"]]
        written = (record["schema"], record["crc32"])
    except (OSError, ValueError, KeyError, TypeError):
        notes, written = [], (None, None)
    if written != (SCHEMA, checksum) or len(vectors) != count:
        raise DataError(
            "the embeddings were altered after they were written",
            where=path,
            found=f"{len(vectors):,} vectors with the checksum {checksum}",
            expected=f"{count:,} vectors with the checksum in {_record_file(path).name}: {written[1]}",
            remedy="delete this file; the embeddings are computed again",
        )
    return notes


def _record_file(path: Path) -> Path:
    return path.with_suffix(".json")
