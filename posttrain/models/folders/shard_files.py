"""Weights written one tensor at a time, as `save_pretrained` lays them out: files of a bounded size and their index.

    writer = ShardWriter(folder, {"lm_head.weight": ((49152, 576), torch.bfloat16), ...})
    writer.write("lm_head.weight", weight); writer.close()

For what fits no process's memory: a merge, and a model that several ranks share.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

INDEX = "model.safetensors.index.json"
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Of the safetensors format, as its headers write them; 8-bit floats are weights that somebody quantised."""
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
SHARD_BYTES = 5_000_000_000
"""Of a file, as `save_pretrained` has it with `max_shard_size="5GB"`."""


def size_of(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """In bytes."""
    return torch.Size(shape).numel() * dtype.itemsize


class ShardWriter:
    """Writes `model.safetensors`, or several shards and their index, a tensor at a time in the order of `kinds`.

    The format's header stands first and says where each tensor lies. Shapes and dtypes are known before a merge begins,
    so the header is written first and no tensor waits in memory for the others of its file.
    """

    def __init__(
        self,
        folder: Path,
        kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        shard_bytes: int = SHARD_BYTES,
        *,
        name: str = "model.safetensors",
    ):
        """
        Args:
            kinds: shape and dtype by name, in the order in which the tensors will be given.
            name: of the file, where there is one.
        """
        self.folder = folder
        self.kinds = kinds
        self.bytes = sum(size_of(*kind) for kind in kinds.values())
        self.checksums: dict[str, int] = {}
        """zlib.crc32 of the bytes of each tensor that was written."""
        shards = _shards(kinds, shard_bytes)
        count = len(shards)
        files = [name] if count == 1 else [_shard_name(k, count) for k in range(1, count + 1)]
        self.file_of = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        self._waiting = list(kinds)
        self._headers = {file: _header(shard, kinds) for file, shard in zip(files, shards, strict=True)}
        self._open: tuple[str, IO[bytes]] | None = None
        self._stack = ExitStack()

    def write(self, name: str, tensor: Tensor) -> None:
        """The tensor whose turn it is."""
        self.write_blocks(name, [tensor])

    def write_blocks(self, name: str, blocks: Iterable[Tensor]) -> None:
        """The same, in blocks of its rows, of which one at a time has to be in memory."""
        assert self._waiting.pop(0) == name, name
        file, checksum, rows = self._file(self.file_of[name]), 0, 0
        shape, dtype = self.kinds[name]
        for block in blocks:
            assert block.dtype == dtype and tuple(block.shape[1:]) == shape[1:], name
            # Through uint8, since numpy has no bf16.
            data = block.contiguous().reshape(-1).view(torch.uint8).numpy().data
            file.write(data)
            checksum, rows = zlib.crc32(data, checksum), rows + (block.shape[0] if shape else 1)
        assert rows == (shape[0] if shape else 1), name
        self.checksums[name] = checksum

    def close(self) -> None:
        """Write the index where there are several files."""
        assert not self._waiting, self._waiting
        self._stack.close()
        if len(self._headers) > 1:
            index = {"metadata": {"total_size": self.bytes}, "weight_map": dict(sorted(self.file_of.items()))}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def abandon(self) -> None:
        """Let go of a file that was begun."""
        self._stack.close()

    def _file(self, name: str) -> IO[bytes]:
        if self._open is None or self._open[0] != name:
            self._stack.close()
            file = self._stack.enter_context((self.folder / name).open("wb"))
            file.write(self._headers[name])
            self._open = (name, file)
        return self._open[1]


def _shards(kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]], most: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, kind in kinds.items():
        size = size_of(*kind)
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _header(names: list[str], kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> bytes:
    # transformers refuses files whose metadata do not say that they are torch's.
    said: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        shape, dtype = kinds[name]
        end = at + size_of(shape, dtype)
        said[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that data begins at a multiple of 8, as readers that map the file want it
    return len(text).to_bytes(8, "little") + text
