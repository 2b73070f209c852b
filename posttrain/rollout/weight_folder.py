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

from posttrain.models.adapters.folding import merged_copy
from posttrain.models.folders.quiet import quiet

IN_MEMORY = Path("/dev/shm")


class WeightFolder:
    """Where one engine's weights are written; removed when it is cleared or forgotten.

    Args:
        parent: on a file system that the engine sees too; None is memory (/dev/shm), or the temporary folder.
    """

    def __init__(self, parent: Path | None = None):
        self._parent = parent
        self._root: Path | None = None
        self._latest: Path | None = None

    def write(self, model: nn.Module, version: int) -> Path:
        """The folder with the weights of `model`, an adapter merged, under the names of its checkpoint.

        The model in memory stays as it is. One copy of the weights is made on the CPU and one in the folder.
        """
        folder = self._open() / f"version-{version}"
        partial = folder.with_name(folder.name + ".partial")
        with quiet():
            merged_copy(model).save_pretrained(partial)
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
