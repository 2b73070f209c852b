"""The arguments of `read`, checked before a file is opened.

A call from Python has no reader of recipes before it: what comes in may be of any type, and each wrong one is an error
that says what was meant, not a TypeError from the middle of the reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from posttrain.arguments import checked_whole, described, wrong_argument
from posttrain.data.formats import COLUMNS, FORMATS, KIND_NAMES, ExampleKind, Format
from posttrain.data.refusals import BadRows, named_type, quoted
from posttrain.errors import ConfigError, nearest, unknown


def named_format(name: Any, kind: ExampleKind | None) -> Format | None:
    """The format of that name; None for "auto"."""
    if name == "auto":
        return None
    if not isinstance(name, str) or name not in FORMATS:
        raise unknown(
            "format",
            name,
            FORMATS,
            found=repr(name) if isinstance(name, str) else described(name),
            expected=f"'auto' or one of {quoted(FORMATS)}",
            otherwise="leave `format` out to have it detected",
        )
    entry = FORMATS[name]
    if kind is not None and entry.kind is not kind:
        fitting = quoted(other.name for other in FORMATS.values() if other.kind is kind)
        raise ConfigError(
            f"the format '{name}' gives {KIND_NAMES[entry.kind]}, but {KIND_NAMES[kind]} are needed",
            found=f"`format: {name}`",
            expected=f"one of {fitting}",
            remedy="leave `format` out, or name a format of the kind that is needed",
        )
    return entry


def checked_columns(columns: Any) -> dict[str, str]:
    checked = names("columns", columns, "{'prompt': 'my_question'}")
    for ours, theirs in checked.items():
        # The commonest slip is to write the map the other way round, and the error says so.
        if ours not in COLUMNS:
            swapped = theirs in COLUMNS
            raise unknown(
                "column",
                ours,
                () if swapped else COLUMNS,
                problem=f"`columns` maps `{ours}`, which no format reads",
                found=f"{{{ours}: {theirs}}}",
                expected=f"our column -> the file's column; ours are {quoted(sorted(COLUMNS))}",
                otherwise=f"turn it round: `columns: {{{theirs}: {ours}}}`"
                if swapped
                else "name a column of the format first, then the file's",
            )
    return checked


def checked_bad_rows(bad_rows: Any, rejected_path: str | Path | None) -> BadRows:
    if bad_rows == "skip":
        return "skip"
    if bad_rows != "stop":
        raise ConfigError(
            f"`bad_rows` is {bad_rows!r}",
            found=repr(bad_rows),
            expected="'stop' or 'skip'",
            remedy=f"write `bad_rows: {nearest(str(bad_rows), ('stop', 'skip')) or 'stop'}`",
        )
    # Allowed, the path would stay empty, and a reader of the recipe would take that for "no bad rows".
    if rejected_path is not None:
        raise ConfigError(
            "`rejected_path` is given, but a bad row stops the reading, so none is ever written there",
            found=f"`rejected_path: {rejected_path}` with `bad_rows: stop`",
            expected="`rejected_path` together with `bad_rows: skip`",
            remedy="write `bad_rows: skip`, or leave `rejected_path` out",
        )
    return "stop"


def checked_dialogues(value: Any) -> bool:
    if value not in ("refuse", "keep"):
        raise ConfigError(
            f"`dialogues_in_text` is {value!r}",
            found=repr(value),
            expected="'refuse' or 'keep'",
            remedy=f"write `dialogues_in_text: {nearest(str(value), ('refuse', 'keep')) or 'refuse'}`",
        )
    return value == "keep"


def checked_limit(limit: Any) -> int | None:
    if limit is None:
        return None
    # True is an int in Python, and `limit=True` would keep one row.
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ConfigError(
            f"`limit` is {limit!r}",
            found=f"{named_type(limit)}: {limit!r}",
            expected="a whole number of rows from 1, or nothing for all",
            remedy="write a number, as `limit=1000`, or leave `limit` out to read all rows",
        )
    return limit


def checked_skip(skip: Any) -> int:
    return checked_whole("skip", skip, least=0, example=1000)


def checked_megabytes(name: str, value: Any) -> int:
    return checked_whole(name, value, least=1, example=64)


def checked_kind(kind: Any) -> ExampleKind | None:
    if kind is None or any(kind is known for known in KIND_NAMES):
        return cast("ExampleKind | None", kind)
    classes = {entry.__name__: entry for entry in KIND_NAMES}
    near = nearest(str(kind).title(), classes) or "Demonstration"
    raise ConfigError(
        f"`kind` is {kind!r}, which is no kind of rows",
        found=f"{named_type(kind)}: {kind!r}",
        expected=f"one of the classes {quoted(classes)} of posttrain.types, or nothing for whatever the rows are",
        remedy=f"`from posttrain.types import {near}`, then `kind={near}`",
    )


def names(argument: str, value: Any, example: str) -> dict[str, str]:
    """A map from text to text, such as `columns` and `roles`; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong_argument(
            argument,
            value,
            expected="a map from a name to a name",
            remedy=f"write it as `{argument}={example}`, or leave `{argument}` out",
        )
    # YAML and JSON also give numbers, flags and lists here, and none of them names a column.
    for key, item in value.items():
        if not isinstance(key, str) or not isinstance(item, str):
            raise ConfigError(
                f"`{argument}` maps {key!r} to {item!r}, and both must be text",
                found=f"{named_type(key)} and {named_type(item)}",
                expected="a map from a name to a name",
                remedy=f"write the names as text: `{argument}={{{str(key)!r}: {str(item)!r}}}`",
            )
    return dict(value)
