"""The data sets of a LLaMA-Factory file: their names lead to `dataset_info.json`, which says where rows are and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.converting.draft import Draft
from posttrain.converting.entry import number
from posttrain.converting.rows import Folders, Rows, put_rows, renamed
from posttrain.errors import ConfigError

ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", "system": "system"}
"""What `columns` of an Alpaca set calls the keys of our `alpaca` formats; other names are the same in both."""
SAME = ("chosen", "rejected", "kto_tag", "tools", "system")


def read_data(draft: Draft, folders: Folders, *, texts: bool) -> None:
    """`dataset`, `eval_dataset` and how they are mixed."""
    known = _known(draft, folders)
    for key, here in (("dataset", "data"), ("eval_dataset", "held_out")):
        names = _names(draft.get(key))
        if not names:
            draft.leave(key, "not set")
            continue
        sets = [_one(draft, name, known, folders, key, texts) for name in names]
        if key == "dataset":
            _weights(draft, sets)
            limit = draft.number("max_samples", 0)
            if limit >= 1:
                for rows in sets:
                    rows.limit = int(limit)
                draft.said["max_samples"] = "data.limit"
        put_rows(draft, sets, key, key=here)
    if "data" not in draft.lines:
        draft.miss("dataset", "the file names no rows", "write a file or a hub id in place of `FILL-IN`")
        draft.put("data", "FILL-IN")
    if known is not None:
        draft.said["dataset_dir"] = "data"
    for key in ("interleave_probs", "mix_strategy", "dataset_dir", "max_samples"):
        draft.leave(key, "one pool of rows, as here")
    if "dataset_dir" not in draft.found:
        draft.said.pop("dataset_dir", None)


def _names(value: Any) -> list[str]:
    if value is None:
        return []
    listed = value if isinstance(value, list) else str(value).split(",")
    return [str(name).strip() for name in listed if str(name).strip()]


def _known(draft: Draft, folders: Folders) -> tuple[Path, Mapping[str, Any]] | None:
    path = dataset_file(folders, str(draft.get("dataset_dir", "data")))
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            "the list of data sets is no JSON", where=path, found=str(error), remedy="mend it, or move it away"
        ) from None
    return path, found if isinstance(found, dict) else {}


def _one(
    draft: Draft, name: str, known: tuple[Path, Mapping[str, Any]] | None, folders: Folders, key: str, texts: bool
) -> Rows:
    entry = known[1].get(name) if known is not None else None
    if not isinstance(entry, Mapping):
        where = "dataset_info.json was not found" if known is None else f"{known[0].name} does not list it"
        draft.miss(
            f"{key}: {name}",
            f"where its rows are stands in dataset_info.json, and {where}",
            f"write their file in place of `{name}.jsonl`",
        )
        return Rows(f"{name}.jsonl")
    assert known is not None
    if "file_name" in entry:
        rows = Rows(folders.relative(known[0].parent / str(entry["file_name"])))
    else:
        path = entry.get("hf_hub_url") or entry.get("ms_hub_url") or entry.get("script_url") or f"{name}.jsonl"
        rows = Rows(f"{path}:{entry['subset']}" if entry.get("subset") else str(path))
    rows.split = str(entry.get("split", "train"))
    if entry.get("num_samples"):
        rows.limit = int(entry["num_samples"])
    _columns(draft, rows, entry, f"{key}: {name}", texts)
    return rows


def _columns(draft: Draft, rows: Rows, entry: Mapping[str, Any], key: str, texts: bool) -> None:
    columns = {str(ours): theirs for ours, theirs in (entry.get("columns") or {}).items() if theirs}
    if texts:
        rows.format = "text"
        rows.columns = renamed({"text": columns.get("prompt", "text")})
        return
    if entry.get("formatting", "alpaca") == "sharegpt":
        messages = columns.pop("messages", "conversations")
        if messages not in ("messages", "conversations", "conversation"):
            rows.columns["messages"] = str(messages)
        tags = {str(tag): str(value) for tag, value in (entry.get("tags") or {}).items()}
        usual = {"user": "human", "assistant": "gpt"}
        if (tags.get("role_tag", "from"), tags.get("content_tag", "value")) not in (
            ("from", "value"),
            ("role", "content"),
        ):
            draft.miss(key, f"turns have other keys: {tags}", "a turn has `role` and `content`, or `from` and `value`")
        for role in ("user", "assistant", "system", "observation", "function"):
            tag = tags.get(f"{role}_tag")
            if tag and tag not in (role, usual.get(role)):
                rows.roles[tag] = {"observation": "tool", "function": "function_call"}.get(role, role)
    else:
        # A query column that is set but has another meaning changes what is asked; ours joins `input` the same way.
        rows.columns.update(renamed({ALPACA[name]: columns.pop(name) for name in list(columns) if name in ALPACA}))
    rows.columns.update(renamed({name: columns.pop(name) for name in list(columns) if name in SAME}))
    for name, column in columns.items():
        draft.miss(f"{key}.columns.{name}", f"no column `{column}` is read", "rows are text: docs/data.md")


def _weights(draft: Draft, sets: list[Rows]) -> None:
    strategy = str(draft.get("mix_strategy", "concat"))
    shares = draft.get("interleave_probs")
    if strategy == "concat":
        return
    listed = _names(shares)
    if len(listed) == len(sets):
        try:
            for rows, share in zip(sets, listed, strict=True):
                rows.weight = number(share)
            draft.said["interleave_probs"] = "data.sources.weight"
        except ValueError as error:
            draft.miss("interleave_probs", str(error), "write `data.sources`, each with its `weight`: docs/mixing.md")
    elif len(sets) > 1:
        for rows in sets:
            rows.weight = 1.0
    if "mix_strategy" in draft.found:
        draft.said["mix_strategy"] = "data.mixing"


def dataset_file(folders: Folders, folder: str) -> Path | None:
    """`dataset_info.json` of the file's `dataset_dir`, which is relative to where LLaMA-Factory runs."""
    for base in (Path.cwd(), folders.source, *folders.source.parents[:3]):
        path = base / folder / "dataset_info.json"
        if path.is_file():
            return path
    return None
