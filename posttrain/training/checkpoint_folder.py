"""The folder of one checkpoint: written under a temporary name, and renamed when its manifest is there.

draft = Draft(folder, step=50, state=text, keep=2)
draft.clear()                        # an empty folder; what a killed writer left is gone
...                                  # files into draft.temporary
draft.publish(identities)            # state.json, manifest.json, the name
...                                  # read back
draft.remove_older()
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from posttrain.runs.checkpoints import MANIFEST, STATE, Identity, file_identity, whole_checkpoints
from posttrain.runs.disk import sync_folder

ASIDE = ".replaced-"
"""Prefix of a checkpoint that makes room for a new one of the same step, until that one has been read back."""


@dataclass(frozen=True, slots=True)
class Draft:
    """See the module's docstring."""

    folder: Path
    step: int
    state: str
    """Content of state.json."""
    keep: int
    """How many checkpoints stay, this one included."""

    @property
    def target(self) -> Path:
        return self.folder / f"step-{self.step:08d}"

    @property
    def temporary(self) -> Path:
        return self.folder / f".writing-{self.target.name}"

    def clear(self) -> None:
        # Of any step: a run that was killed while it wrote may never come to that step again.
        for stale in self.folder.glob(".writing-step-*"):
            shutil.rmtree(stale, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def publish(self, identities: Mapping[str, Identity]) -> None:
        """Write the state and the manifest, and give the folder its name; one of the same step is put aside.

        Args:
            identities: of the files that are there, by their names in the folder.
        """
        (self.temporary / STATE).write_text(self.state, encoding="utf-8")
        manifest = {**identities, STATE: file_identity(self.temporary / STATE)}
        # Last of all: a folder without it was torn by a kill, whatever else is in it.
        (self.temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in self.temporary.rglob("*"):
            if path.is_file():
                _sync(path)
        # A run that goes on from an older checkpoint comes to a step that has one already.
        if self.target.exists():
            shutil.rmtree(self._aside, ignore_errors=True)
            os.replace(self.target, self._aside)
        os.replace(self.temporary, self.target)
        sync_folder(self.folder)

    def remove_older(self) -> None:
        """After this one was read back: all but the newest `keep` go."""
        shutil.rmtree(self._aside, ignore_errors=True)
        for old in whole_checkpoints(self.folder)[: -self.keep]:
            shutil.rmtree(old)

    @property
    def _aside(self) -> Path:
        return self.folder / f"{ASIDE}{self.target.name}"


def put_back(folder: Path) -> None:
    """A kill between the two renames of `publish` leaves the old checkpoint aside: it gets its name again."""
    for aside in folder.glob(f"{ASIDE}step-*"):
        target = folder / aside.name.removeprefix(ASIDE)
        if target.exists():
            shutil.rmtree(aside)
        else:
            os.replace(aside, target)


def _sync(path: Path) -> None:
    """Down to the disk, so that a rename never outlives the data it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
