"""Results of steps on disk, by a key of all that they depend on: what was computed before a kill is not computed again.

    stored = StoredSteps(Path("picked/.steps"))
    key = step_key(before, settings, seed)
    stored.save(2, key, taken, seconds=3.1)
    stored.load(key)                            # (Taken, 3.1); None where there is none

A result is one file, written whole or not at all; a changed setting changes the keys of its step and of all after it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.config.values import Settings
from posttrain.curation.rows import Removed, Taken
from posttrain.models.folders.named import fingerprint_of, named_content
from posttrain.runs.files import write_bytes

FORMAT = 1
"""Raised when a step begins to give something else for the same settings."""
SHOWN_KEY = 16


def step_key(before: str, settings: Settings, seed: int, model: str | Path | None) -> str:
    """Of a step that is given what the step of the key `before` left.

    Args:
        before: for the first step, the fingerprint of the rows.
        model: whose tokens and hidden states count, for a step that asks it.
    """
    content = "" if model is None else fingerprint_of(model)
    parts: list[Any] = [FORMAT, version("posttrain"), before, type(settings).__name__, seed, content]
    # What files and models hold counts, not where they lie: an evaluation set may be another one under its old name.
    parts += [settings.model_dump(mode="json"), named_content(settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


class StoredSteps:
    """The folder of the results; with no folder nothing is kept."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def save(self, place: int, key: str, taken: Taken, seconds: float) -> None:
        if self.folder is None:
            return
        facts = {
            "removed": [[one.row, one.reason, one.message, one.nearest, one.similarity] for one in taken.removed],
            "is_order": taken.is_order,
            "notes": list(taken.notes),
            "scores": list(taken.scores),
            "seconds": seconds,
        }
        text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
        scores = {f"score_{number}": values for number, values in enumerate(taken.scores.values())}
        content = io.BytesIO()
        np.savez_compressed(content, kept=taken.kept, facts=text, **scores)  # type: ignore[arg-type]
        write_bytes(self.folder / f"{place:02}-{key[:SHOWN_KEY]}.npz", content.getvalue())

    def load(self, key: str) -> tuple[Taken, float] | None:
        """None where there is no such result, or what is there cannot be read: it is then computed."""
        if self.folder is None:
            return None
        path = next(self.folder.glob(f"*-{key[:SHOWN_KEY]}.npz"), None)
        if path is None:
            return None
        try:
            # Opened here: numpy leaves a file open that is no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                facts = json.loads(arrays["facts"].tobytes())
                scores = {name: arrays[f"score_{number}"] for number, name in enumerate(facts["scores"])}
                removed = tuple(Removed(*values) for values in facts["removed"])
                taken = Taken(arrays["kept"], removed, scores, bool(facts["is_order"]), tuple(facts["notes"]))
                return taken, float(facts["seconds"])
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None

    def keep_only(self, keys: Collection[str]) -> None:
        """Removes results of other settings: a folder in which many budgets were tried must not grow with each."""
        if self.folder is not None and self.folder.is_dir():
            for path in self.folder.glob("[0-9][0-9]-*.npz"):
                if path.stem[3:] not in {key[:SHOWN_KEY] for key in keys}:
                    path.unlink(missing_ok=True)
