"""Weights as files, read one tensor at a time.

    entries = entries_of(folder)                        # {"lm_head.weight": Entry(path, "BF16", (49152, 576), ...)}
    weight = read_tensor(entries["lm_head.weight"])

A merge of models that fit no memory needs it; `folders.shard_files` writes one tensor at a time. `safe_open` maps its
file, and the pages that were read stay in the process's account: two models of 1 GB measure as 2 GB, whatever is freed.
So tensors are read into memory of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import ModelError
from posttrain.models.folders.shard_files import DTYPES, INDEX
from posttrain.models.folders.weight_files import GET_AGAIN, check_weight_files


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: Entry(Path("model.safetensors"), "F32", (512, 64), start=4096, size=131072)."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Of its first byte in the file."""
    size: int

    @property
    def is_floating(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def entries_of(folder: Path) -> dict[str, Entry]:
    """Every tensor of a folder's safetensors files by name, in the order in which they lie on the disk.

    Raises:
        ModelError: a file is missing or torn.
    """
    check_weight_files(folder)
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    return {name: entry for file in names for name, entry in _entries(folder / file)}


def entries_of_file(path: Path) -> dict[str, Entry]:
    """The same of one file."""
    return dict(_entries(path))


def _entries(path: Path) -> Iterator[tuple[str, Entry]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, said in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, end = said["data_offsets"]
        yield name, Entry(path, said["dtype"], tuple(said["shape"]), 8 + length + first, end - first)


def rows_of(entry: Entry, first: int, end: int) -> Entry:
    """Some rows of a tensor, to be read alone: rows_of(entry, 0, 128)"""
    row = entry.size // entry.shape[0]
    shape, size = (end - first, *entry.shape[1:]), (end - first) * row
    return replace(entry, shape=shape, start=entry.start + first * row, size=size)


def read_tensor(entry: Entry) -> Tensor:
    """The tensor, in memory that goes when it goes.

    Raises:
        ModelError: the file is shorter than its header says.
    """
    raw = torch.empty(entry.size, dtype=torch.uint8)
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.start)
        view, done = memoryview(raw.numpy().data), 0
        while done < entry.size:  # the system reads at most 2 GB in a call
            count = file.readinto(view[done:])
            if not count:
                raise ModelError(
                    "the weight file is torn",
                    where=entry.path,
                    found=f"{done:,} bytes of a tensor of {entry.size:,}",
                    remedy=GET_AGAIN,
                )
            done += count
    return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)
