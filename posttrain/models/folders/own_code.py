"""Python files that a model folder names as its own classes (`auto_map`). They are never run.

Every call that reads a folder passes `trust_remote_code=False`. Left out, `transformers` asks on standard input whether
to run them, and `yes | posttrain run recipe.yaml` would run whatever a downloaded folder holds.
"""

from __future__ import annotations

import json
from pathlib import Path

_NAMING = ("config.json", "tokenizer_config.json")


def own_code(folder: Path) -> list[str]:
    """The files that the folder's settings name: ["modeling_mine.py (AutoModelForCausalLM, in config.json)"]."""
    named = []
    for name in _NAMING:
        try:
            settings = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # reading the model says what is wrong with it
        classes = settings.get("auto_map") if isinstance(settings, dict) else None
        for kind, target in (classes if isinstance(classes, dict) else {}).items():
            targets = target if isinstance(target, list) else [target]
            # "repository--module.Class": the part before the dashes is where the code would be fetched from.
            named += [f"{str(item).rpartition('.')[0]}.py ({kind}, in {name})" for item in targets if item]
    return named


def remedy_of(folder: Path, otherwise: str) -> str:
    """What to do about a folder that could not be read: without code of its own, `otherwise`."""
    files = own_code(folder)
    if not files:
        return otherwise
    return (
        f"the folder brings Python of its own, {', '.join(files)}, which would run with your rights and is not run: "
        "take a version of transformers that has the architecture itself, or a folder converted to one that it has"
    )
