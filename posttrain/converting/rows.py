"""Where the rows of another tool's file are: paths, splits, columns and roles, one `Rows` for each of its data sets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.converting.draft import Draft

_SLICE = re.compile(r"([A-Za-z0-9_.-]+)\[:(\d+)(%?)\]")


@dataclass
class Rows:
    """Rows("org/set:main", split="train", columns={"prompt": "question"})"""

    path: str | list[str]
    split: str = "train"
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    weight: float | None = None

    def settings(self) -> str | dict[str, Any]:
        """As a recipe writes it: the path alone, where nothing else is said."""
        usual = Rows(self.path)
        keys = ("path", "format", "columns", "roles", "split", "limit", "weight")
        written = {key: getattr(self, key) for key in keys if getattr(self, key) != getattr(usual, key)}
        if not written and isinstance(self.path, str):
            return self.path
        return {"path": self.path, **written}


@dataclass(frozen=True, slots=True)
class Folders:
    """Where paths of the other tool's file lead: Folders(Path("configs"), Path("recipes"))."""

    source: Path
    """The folder of its file."""
    out: Path
    """The folder of the recipe, to which the recipe's own paths are relative."""

    def local(self, name: str) -> str | None:
        """The file or folder as the recipe names it, where it is there; None: a hub id, or missing."""
        for folder in (Path.cwd(), self.source):
            path = (folder / name).resolve()
            if path.exists():
                return name if Path(name).is_absolute() else self.relative(path)
        return None

    def relative(self, path: Path) -> str:
        """A path as the recipe names it."""
        found = os.path.relpath(path.resolve(), self.out.resolve())
        # `data/set` would else be a hub id where there is no such folder.
        return found if found.startswith(".") or "." in Path(found).name else f"./{found}"

    def of_model(self, name: str) -> str:
        return self.local(name) or name


def address(folders: Folders, path: str, name: str | None = None, files: Any = None) -> str | list[str]:
    """A data set as posttrain names it: a local path, `owner/name:config`, or the files of one.

    address(folders, "json", files="rows.jsonl") -> "rows.jsonl"
    """
    listed = [files] if isinstance(files, str) else list(files) if isinstance(files, Sequence) else []
    loader = path in ("json", "csv", "parquet", "arrow", "text")
    if listed and (loader or folders.local(path) is not None):
        inside = listed if loader else [str(Path(path) / file) for file in listed]
        found = [folders.local(str(file)) or str(file) for file in inside]
        return found[0] if len(found) == 1 else found
    here = folders.local(path)
    if here is not None:
        return here
    return f"{path}:{name}" if name and name != "default" else path


def split_of(draft: Draft, rows: Rows, key: str, split: Any) -> None:
    """`train[:100]` is the first 100 rows; a share of them is not known before they are counted."""
    if split is None:
        return
    match = _SLICE.fullmatch(str(split))
    if match and not match[3]:
        rows.split, rows.limit = match[1], int(match[2])
    elif "[" in str(split) or "+" in str(split):
        rows.split = re.split(r"[\[+]", str(split))[0] or "train"
        draft.miss(key, "a split is named as a whole, and rows are limited by number", "write `data: {limit: N}`")
    else:
        rows.split = str(split)


def put_rows(draft: Draft, sets: Sequence[Rows], *sources: str, key: str = "data") -> None:
    """One data set by itself, several as `sources` with their weights, or in one pool."""
    if not sets:
        return
    if len(sets) == 1:
        sets[0].weight = None  # a share of itself
        draft.put(key, sets[0].settings(), *sources)
        return
    plain = [rows.settings() for rows in sets]
    if all(isinstance(one, str) for one in plain):
        draft.put(key, plain, *sources)
        return
    weighted = all(rows.weight is not None for rows in sets)
    numbered = [{"path": one} if isinstance(one, str) else one for one in plain]
    named = [{"name": f"set{index + 1}", **one} for index, one in enumerate(numbered)]
    draft.put(key, {"sources": named, "mixing": "weights" if weighted else "concatenate"}, *sources)


def renamed(columns: Mapping[str, Any]) -> dict[str, str]:
    """Columns of another name than the format's own: {"prompt": "q", "answer": "answer"} -> {"prompt": "q"}"""
    return {ours: str(theirs) for ours, theirs in columns.items() if theirs and str(theirs) != ours}
