"""Weights on their way to an engine in another process: a folder of safetensors, in memory where there is such a place.

Each version has a folder of its own and the one before it is removed, so that an engine never reads half of each.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path

from torch import nn

from posttrain.models.adapters.folding import merged_copy, record_tying
from posttrain.models.folders.quiet import quiet

IN_MEMORY = Path("/dev/shm")


def write_whole(model: nn.Module, folder: Path, *, untied: bool = False) -> None:
    """The model as a folder of safetensors, an adapter merged.

    Args:
        untied: whether an output projection that shares its weights with the embedding is written as one of its own.
            The model computes the same. vLLM 0.32 on a CPU packs that projection when it starts, and again when weights
            are reloaded only if it is a layer of its own; else it goes on with the old one.
    """
    merged = merged_copy(model)
    if untied and (head := merged.get_output_embeddings()) is not None:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        record_tying(merged)
    with quiet():
        merged.save_pretrained(folder)


class WeightFolder:
    """Where one engine's weights are written; removed when it is cleared or forgotten.

    Args:
        parent: on a file system that the engine sees too; None is memory (/dev/shm), or the temporary folder.
        untied: see `write_whole`.
    """

    def __init__(self, parent: Path | None = None, *, untied: bool = False):
        self._parent = parent
        self._untied = untied
        self._root: Path | None = None
        self._latest: Path | None = None

    def write(self, model: nn.Module, version: int) -> Path:
        """The folder with the weights of `model`, an adapter merged, under the names of its checkpoint.

        The model in memory stays as it is. One copy of the weights is made on the CPU and one in the folder.
        """
        folder = self._open() / f"version-{version}"
        partial = folder.with_name(folder.name + ".partial")
        write_whole(model, partial, untied=self._untied)
        if folder.exists():
            shutil.rmtree(folder)
        # The engine reads a name that appears whole.
        partial.rename(folder)
        if self._latest is not None and self._latest != folder:
            shutil.rmtree(self._latest, ignore_errors=True)
        self._latest = folder
        return folder

    def clear(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
        self._root = self._latest = None

    def _open(self) -> Path:
        if self._root is None:
            parent = self._parent
            if parent is None and IN_MEMORY.is_dir() and os.access(IN_MEMORY, os.W_OK):
                parent = IN_MEMORY
            elif parent is not None:
                parent.mkdir(parents=True, exist_ok=True)
            self._root = Path(tempfile.mkdtemp(prefix="posttrain-weights-", dir=parent))
            # /dev/shm outlives the process: a run that dies must not leave a model in memory.
            weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)
        return self._root
