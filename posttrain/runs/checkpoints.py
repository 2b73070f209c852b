"""Checkpoints as files: which are there, and whether one is whole; `posttrain.training.checkpoint` writes them.

    for path in whole_checkpoints(stage.checkpoints):     # the oldest first
        read(path).state["step"]

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
CHECKPOINT_NAME = re.compile(r"step-\d{8,}")


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
        CheckpointError: naming the file that is missing or differs.
    """
    remedy = f"remove {path.name} to go on from the checkpoint before it, or start anew with --fresh"
    if not (path / MANIFEST).exists():
        raise CheckpointError("the checkpoint has no manifest: it is torn", where=path, remedy=remedy)
    manifest = _read_manifest(path / MANIFEST, remedy)
    for name in FILES:
        if not (path / name).exists():
            raise CheckpointError(f"the checkpoint lacks {name}", where=path, remedy=remedy)
        # The hashes themselves tell nobody anything: two lines of 64 letters for one fact.
        if file_identity(path / name) != manifest[name]:
            raise CheckpointError(f"{name} is not what was saved", where=path, remedy=remedy)
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(path, int(state["step"]), state)


def _read_manifest(path: Path, remedy: str) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # also of bytes that are no text
        manifest = None
    if not isinstance(manifest, dict) or any(name not in manifest for name in FILES):
        raise CheckpointError(f"{MANIFEST} is not what was saved", where=path.parent, remedy=remedy)
    return manifest


def whole_checkpoints(folder: Path) -> list[Path]:
    """Paths by step; whether each is whole says `read`."""
    there = folder.iterdir() if folder.exists() else ()
    return sorted(path for path in there if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir())


def file_identity(path: Path) -> dict[str, Any]:
    """As a checkpoint's manifest has it."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}
