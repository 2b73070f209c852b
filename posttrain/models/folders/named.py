"""What the models and files hold that strategies and scorers name: results depend on that, not on where they lie.

named_content(stage)        # {"strategy.scorer.model": "9f2c...", "strategy.documents": "77aa..."}
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from posttrain.config.nested import files_within, models_within
from posttrain.config.values import Settings
from posttrain.models.folders.manifest import folder_fingerprint, sha256_of


def named_content(record: Settings) -> dict[str, str]:
    """A hash for each model, file and folder that is named in it, by the path of its key.

    Raises:
        ModelError: a model that is not there.
    """
    named = {path: fingerprint_of(name) for path, name in models_within(record)}
    named |= {path: _hash_of(Path(name).expanduser()) for path, name in files_within(record)}
    return {".".join(map(str, path)): found for path, found in named.items()}


def fingerprint_of(model: str | Path) -> str:
    """Of a model by its name or folder. Raises ModelError for one that is not there."""
    # Only here: settings that name files alone are hashed without torch, which takes seconds and 300 MB to load.
    from posttrain.models.folders.loading import resolve

    return folder_fingerprint(resolve(model).folder)


def _hash_of(path: Path) -> str:
    """Of a file, or of all files in a folder with their names."""
    if not path.is_dir():
        # What is not there is refused by whoever reads it, in its own words.
        return sha256_of(path) if path.is_file() else ""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    content = "\n".join(f"{file.relative_to(path)} {sha256_of(file)}" for file in files)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
