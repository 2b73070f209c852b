"""Files that a recipe reads, as somebody else has to put them: short names, and hashes to know them by.

outside_files("stages:\\n- {data: /home/ada/pairs.jsonl}", started=None)
# [OutsideFile("/home/ada/pairs.jsonl", "pairs.jsonl", sha256="9f2c...", changed=False)]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

WILD = "*?["


@dataclass(frozen=True, slots=True)
class OutsideFile:
    """OutsideFile("/home/ada/pairs.jsonl", "pairs.jsonl", sha256="9f2c...", changed=False)"""

    path: str
    """As the recipe has it; without the name of a function after a colon."""
    name: str
    """As a card has it: the last part, or as many as tell it from the others."""
    sha256: str | None
    """None of a folder, a pattern, or a file that is not there any more."""
    changed: bool = False
    """Whether it was written to after the training began."""

    @property
    def is_pattern(self) -> bool:
        return any(sign in self.path for sign in WILD)

    def __str__(self) -> str:
        """For a list: which file it is."""
        if self.sha256 is not None:
            note = ", **written to after the training began**" if self.changed else ""
            return f"`{self.name}`: sha256 `{self.sha256}`{note}"
        if self.is_pattern:
            return f"`{self.name}`: all files of this pattern, with no hash of each"
        return f"`{self.name}`: was not there as a file when this card was written"


def outside_files(recipe: str, started: str | None) -> list[OutsideFile]:
    """Every file of this machine that the recipe names, but for the model it starts from.

    Args:
        started: when the training began, in ISO 8601.
    """
    content = yaml.safe_load(recipe)
    fields = {key: value for key, value in content.items() if key not in ("model", "out")}
    paths = list(dict.fromkeys(_paths(fields)))
    names = short_names(paths)
    began = datetime.fromisoformat(started).timestamp() if started else None
    return [_outside(path, names[path], began) for path in paths]


def renamed(text: str, files: Iterable[OutsideFile]) -> str:
    """A text with the short name of every file in the place of its path."""
    for file in sorted(files, key=lambda one: -len(one.path)):  # /a/b.jsonl stands inside of /a/b.jsonl.gz
        text = text.replace(file.path, file.name)
    return text


def short_names(paths: Sequence[str]) -> Mapping[str, str]:
    """The fewest last parts that tell each from the others: /x/a/d.jsonl and /x/b/d.jsonl are a/d.jsonl, b/d.jsonl."""
    names = {path: path.rstrip("/").split("/") for path in paths}

    def tail(path: str, parts: int) -> str:
        return "/".join(names[path][-parts:]).lstrip("/~")

    found = {}
    for path in paths:
        # A pattern keeps its folder: a text that begins with `*` is something else in YAML.
        parts = 2 if any(sign in path for sign in WILD) else 1
        while parts < len(names[path]) and any(
            tail(path, parts) == tail(other, parts) for other in paths if other != path
        ):
            parts += 1
        found[path] = tail(path, parts)
    return found


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _paths(one)
    elif isinstance(value, list):
        for one in value:
            yield from _paths(one)
    elif isinstance(value, str) and value.startswith(("/", "~/")) and "\n" not in value:
        # `letters.py:vowels` is a function of a file.
        path, _, name = value.rpartition(":")
        yield path if path and name.isidentifier() else value


def _outside(path: str, name: str, began: float | None) -> OutsideFile:
    file = Path(path).expanduser()
    if not file.is_file():
        return OutsideFile(path, name, None)
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return OutsideFile(path, name, digest, began is not None and file.stat().st_mtime > began)
