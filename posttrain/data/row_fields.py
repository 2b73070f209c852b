"""Columns of a row by name or by a path into what a column holds: how `columns:` of a recipe is looked up.

field_of({"reward_model": {"ground_truth": "4"}}, "reward_model.ground_truth")    # "4"
field_of({"answers": {"text": ["4", "four"]}}, "answers.text.0")                  # "4"
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from posttrain.data.texts import stored

ABSENT: Any = object()
"""What `field_of` returns for a column that is not there; a null is there."""
_DEPTH = 3
"""Levels below a column that are proposed in errors; deeper paths work, and are too many to list."""


def field_of(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or what a dotted path leads to; a column with a dot in its name comes first.

    Objects and lists that were stored as text are looked into as well; a number is a place in a list, from 0.
    """
    if path in row:
        return row[path]
    return _value_at(row, path)


def _value_at(value: Any, path: str) -> Any:
    value = stored(value)
    if isinstance(value, Mapping):
        if path in value:
            return value[path]
        # A key may hold a dot itself ("gpt-4.1"), so the path is tried at each of its dots, the first one first.
        for dot in (place for place, mark in enumerate(path) if mark == "."):
            if path[:dot] in value:
                return _value_at(value[path[:dot]], path[dot + 1 :])
        return ABSENT
    if isinstance(value, list):
        first, _, remaining = path.partition(".")
        if first.isdecimal() and int(first) < len(value):
            return _value_at(value[int(first)], remaining) if remaining else value[int(first)]
    return ABSENT


def top_of(row: Mapping[str, Any], path: str) -> str:
    """The column that a path begins with."""
    if path in row:
        return path
    ends = [place for place, mark in enumerate(path) if mark == "."]
    return next((path[:at] for at in ends if path[:at] in row), path)


def paths_in(row: Mapping[str, Any]) -> Iterator[str]:
    """The columns of a row that hold something, and the paths to what stands inside objects: "answers.text.0"."""
    for column, value in row.items():
        if value is not None:
            yield column
            yield from _paths_below(value, column, _DEPTH)


def _paths_below(value: Any, before: str, depth: int) -> Iterator[str]:
    value = stored(value)
    if isinstance(value, Mapping) and depth:
        for key, item in value.items():
            if item is not None and "." not in key:
                path = f"{before}.{key}"
                yield path
                yield from _paths_below(item, path, depth - 1)
    elif isinstance(value, list) and "." in before and value and isinstance(value[0], str):
        yield f"{before}.0"


def mapped_row(row: Mapping[str, Any], columns: Mapping[str, str], known: Collection[str]) -> dict[str, Any]:
    """The row under our names: {ours: what the path leads to}, and the columns that are not mapped.

    A column that a path only looks into stays, as it holds more than that, unless its name is one of `known`, which
    would be read as a column of a format.
    """
    entered = {top_of(row, theirs) for theirs in columns.values() if theirs not in row}
    replaced = {*columns.values(), *(top for top in entered if top in known)}
    others = {key: value for key, value in row.items() if key not in replaced}
    return others | {ours: field_of(row, theirs) for ours, theirs in columns.items()}
