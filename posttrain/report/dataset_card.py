"""A card for rows that are published: what is in the files, and how a stage of posttrain came to them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.report.card import list_item, without_places
from posttrain.report.numbers import count
from posttrain.runs.folder import StageFolder
from posttrain.runs.records.selection import SelectionManifest
from posttrain.runs.tolerant import Files, json_object


@dataclass(frozen=True, slots=True)
class RowFile:
    """RowFile("data.jsonl", rows=1200, keys={"prompt": 1200, "chosen": 1200, "rejected": 1200}, sha256="9f2c...")"""

    name: str
    rows: int | None
    """None of a file that is not read here."""
    keys: dict[str, int]
    """In how many rows each stands, the most frequent first."""
    sha256: str

    @classmethod
    def of(cls, path: Path) -> RowFile:
        digest, keys, rows = hashlib.sha256(), Counter[str](), 0
        with path.open("rb") as lines:
            for line in lines:
                digest.update(line)
                if path.suffix == ".jsonl" and line.strip():
                    rows += 1
                    keys.update(list(json_object(line) or {}))
        return cls(path.name, rows if path.suffix == ".jsonl" else None, dict(keys.most_common()), digest.hexdigest())


def dataset_card(paths: Sequence[Path], *, name: str, license: str | None = None) -> str:
    """The README.md of a data set; where a file lies in a stage's folder, with the settings that made it."""
    lines = ["---", *([f"license: {json.dumps(license)}"] if license else []), 'tags: ["posttrain"]', "---\n"]
    lines += [f"# {name.rpartition('/')[2]}\n", f"- License: {license or 'none was chosen'}"]
    for file in (RowFile.of(path) for path in paths):
        seldom = {key: "" if number == file.rows else f" ({count(number)})" for key, number in file.keys.items()}
        columns = ", ".join(f"{key}{note}" for key, note in seldom.items())
        counted = "" if file.rows is None else f": {count(file.rows)} rows of {list_item(columns)}"
        lines.append(f"- `data/{file.name}`{counted}; sha256 `{file.sha256}`")
    for folder in dict.fromkeys(path.parent for path in paths):
        lines += _made(folder)
    return without_places("\n".join(lines)).rstrip() + "\n"


def _made(folder: Path) -> Iterator[str]:
    files = Files(folder)
    stage, selection = StageFolder(folder), files.document(folder / SelectionManifest.FILE, SelectionManifest)
    yield "\n## How they were made\n"
    if not stage.exists:
        yield "Not recorded: the file lies in no stage's folder.\n"
        return
    record = stage.stage()
    yield f"By the stage `{folder.name}` ({record.method or 'method not recorded'}, {record.status}) of posttrain."
    if record.model_name:
        yield f"It asked or started from `{record.model_name}`."
    if selection is not None and selection.steps:
        yield f"\nOf {count(selection.read)} rows {count(selection.kept)} were kept:\n"
        for step in selection.steps:
            yield f"- {list_item(step.step)}: {count(step.rows_in)} -> {count(step.rows_out)}"
    config = files.text(folder / "config.yaml")
    if config:
        yield f"\n<details><summary>its settings</summary>\n\n```yaml\n{config.rstrip()}\n```\n\n</details>"
    yield "\nLicenses of the rows that went in are not recorded. Whoever publishes these has to know them.\n"
