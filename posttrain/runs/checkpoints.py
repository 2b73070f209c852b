"""Checkpoints as files: which are there, and whether one is whole; `posttrain.training.checkpoint` writes them.

    for path in whole_checkpoints(stage.checkpoints):     # the oldest first
        read(path).state["step"]

A checkpoint holds its tensors whole, in two files, or in the parts that the ranks of a sharded model wrote:

    step-00000050/weights.safetensors, optimizer.safetensors, state.json, manifest.json
    step-00000050/shards/*.safetensors,                       state.json, manifest.json

Apart from the writing, because a merge averages the checkpoints of a run and trains nothing. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError

MANIFEST = "manifest.json"
FILES = ("weights.safetensors", "optimizer.safetensors", "state.json")
STATE = FILES[2]
SHARDS = "shards"
"""The folder of the parts; `torch.distributed.checkpoint` writes them, and each says where in its tensor it lies."""
CHECKPOINT_NAME = re.compile(r"step-\d{8,}")

Identity = Mapping[str, Any]
"""Of a file: {"sha256": "...", "bytes": 4096}."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found whole: Checkpoint(path=.../step-00000050, step=50, state={...})."""

    path: Path
    step: int
    """Steps taken before it."""
    state: Mapping[str, Any]


def read(path: Path) -> Checkpoint:
    """Verify a checkpoint's files against its manifest.

    Raises:
        CheckpointError: naming the file that is missing, differs or was added.
    """
    manifest = contents(path)
    for name, identity in manifest.items():
        verify(path, name, identity)
    return read_state(path)


def read_state(path: Path) -> Checkpoint:
    """What state.json says, unverified."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    return Checkpoint(path, int(state["step"]), state)


def contents(path: Path) -> dict[str, Identity]:
    """What the manifest lists, all of which is there; no file is hashed.

    Raises:
        CheckpointError: no manifest, a damaged one, a file that is missing, or a part that nobody listed.
    """
    if not (path / MANIFEST).exists():
        raise CheckpointError("the checkpoint has no manifest: it is torn", where=path, remedy=_remedy(path))
    manifest = _read_manifest(path)
    for name in manifest:
        if not (path / name).exists():
            raise CheckpointError(f"the checkpoint lacks {name}", where=path, remedy=_remedy(path))
    # Whoever reads the parts reads all that lie there: one of another checkpoint would be taken for part of this one.
    for part in sorted((path / SHARDS).glob("*")):
        if f"{SHARDS}/{part.name}" not in manifest:
            raise CheckpointError(f"{SHARDS}/{part.name} was added", where=path, remedy=_remedy(path))
    return manifest


def verify(path: Path, name: str, identity: Identity) -> None:
    """
    Raises:
        CheckpointError: the file has another size or content.
    """
    # The size first: a cut file of many gigabytes is refused at once.
    same = (path / name).stat().st_size == identity["bytes"] and file_identity(path / name) == identity
    if not same:
        # The hashes themselves tell nobody anything: two lines of 64 letters for one fact.
        raise CheckpointError(f"{name} is not what was saved", where=path, remedy=_remedy(path))


def tensor_files(path: Path) -> list[Path]:
    """The files with weights and moments, whole or in parts, of a checkpoint that has a manifest."""
    return [path / name for name in contents(path) if name.endswith(".safetensors")]


def tensor_folder(path: Path) -> Path:
    """Where these files lie."""
    return path / SHARDS if is_in_parts(path) else path


def is_in_parts(path: Path) -> bool:
    """Whether the checkpoint is of a model that several ranks shared."""
    return (path / SHARDS).is_dir()


def _remedy(path: Path) -> str:
    return f"remove {path.name} to go on from the checkpoint before it, or start anew with --fresh"


def _read_manifest(path: Path) -> dict[str, Identity]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except ValueError:  # also of bytes that are no text
        manifest = None
    if not isinstance(manifest, dict) or not _is_complete(manifest):
        raise CheckpointError(f"{MANIFEST} is not what was saved", where=path, remedy=_remedy(path))
    return manifest


def _is_complete(manifest: Mapping[str, Any]) -> bool:
    """Whether it lists the state, and the tensors in one of the two forms."""
    parts = [name for name in manifest if name.startswith(f"{SHARDS}/")]
    known = set(manifest) <= {*FILES, *parts} and all(isinstance(entry, dict) for entry in manifest.values())
    return known and (set(FILES) <= set(manifest) if not parts else set(manifest) == {STATE, *parts})


def whole_checkpoints(folder: Path) -> list[Path]:
    """Paths by step; whether each is whole says `read`."""
    there = folder.iterdir() if folder.exists() else ()
    return sorted(path for path in there if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir())


def file_identity(path: Path) -> dict[str, Any]:
    """As a checkpoint's manifest has it."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
