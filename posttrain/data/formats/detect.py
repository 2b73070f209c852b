"""Which format a row has, and what to say when it has none."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from difflib import SequenceMatcher

from posttrain.data.formats.columns import Row
from posttrain.data.formats.table import COLUMNS, FORMATS, KIND_NAMES, Format, Kind, either
from posttrain.data.refusals import named_type, quoted, shown
from posttrain.errors import RowError
from posttrain.types import Task

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("instruction", "query", "input", "problem", "user", "context", "question", "prompts"),
    "completion": ("response", "output", "answer", "target", "solution", "reply", "chosen"),
    "answer": ("solution", "target", "label", "ground_truth", "final_answer", "gold"),
    "chosen": ("preferred", "better", "win", "winner", "accepted", "positive", "chosen_response"),
    "rejected": ("dispreferred", "worse", "lose", "loser", "negative", "rejected_response"),
    "messages": ("conversation", "dialogue", "dialog", "chat", "turns"),
    "conversations": ("conversation", "dialogue", "dialog", "chat", "turns"),
    "responses": ("completions", "answers", "outputs", "candidates"),
    "scores": ("ratings", "rewards"),
    "label": ("good", "thumbs_up", "feedback", "kto_tag", "is_good"),
    "output": ("response", "completion", "answer"),
    "instruction": ("prompt", "question", "query"),
}
"""Names that other tools use for our columns; only ever used to word a remedy."""


def detect(row: Row, kind: Kind | None = None) -> Format | None:
    """The first format of the table that the row fits; of this kind, where one is given. Null counts as absent."""
    keys = tuple([key for key, value in row.items() if value is not None])
    for candidate in _candidates(keys):
        if (kind is None or candidate.kind is kind) and candidate.fits(row):
            return candidate
    return None


@functools.lru_cache(maxsize=4096)
def _candidates(keys: tuple[str, ...]) -> tuple[Format, ...]:
    return tuple(entry for entry in FORMATS.values() if not entry.missing(keys))


def has_keys(row: Row, entry: Format) -> bool:
    """Whether the row has a value for all required keys of the format."""
    return _has_keys(tuple([key for key, value in row.items() if value is not None]), entry.name)


@functools.lru_cache(maxsize=4096)
def _has_keys(keys: tuple[str, ...], name: str) -> bool:
    return not FORMATS[name].missing(keys)


def unused_columns(row: Row, entry: Format) -> frozenset[str]:
    """The columns of a row that its format does not read; a task keeps them as metadata, so there are none."""
    return _unused_columns(tuple(row), entry.name)


@functools.lru_cache(maxsize=4096)
def _unused_columns(keys: tuple[str, ...], name: str) -> frozenset[str]:
    entry = FORMATS[name]
    if entry.kind is Task:
        return frozenset()
    return frozenset(keys) - {name for key in (*entry.keys, *entry.optional) for name in key.split("|")}


def no_object(row: object) -> RowError:
    return RowError(
        f"the row is {named_type(row)}, not an object with keys",
        reason="wrong_shape",
        found=shown(row),
        expected="an object whose keys are the columns",
        example=FORMATS["chat"].example_line,
        remedy='write each row as a JSON object; plain texts need a key, for example {"prompt": ...}',
    )


def fits_nothing(row: Row, kind: Kind | None = None) -> RowError:
    """The error for a row that no format fits: the keys found, the nearest format, what it lacks, and how to map it."""
    other = detect(row) if kind is not None else None
    entry = nearest_format(row, kind)
    missing = entry.missing(_filled(row))
    if other is not None and kind is not None:
        problem = f"these rows are {KIND_NAMES[other.kind]} (format '{other.name}'), not {KIND_NAMES[kind]}"
    else:
        problem = f"no format of {KIND_NAMES[kind]} fits this row" if kind is not None else "no format fits this row"
    lacks = f"missing: {either(missing)}" if missing else "its keys are all there, but so are those of others"
    return RowError(
        problem,
        reason="wrong_shape",
        found=_keys_found(row),
        expected=f"nearest is the format '{entry.name}' ({entry.signature}); {lacks}",
        example=entry.example_line,
        remedy=_mapping_remedy(row, entry, kind),
    )


def lacks_named_keys(row: Row, entry: Format) -> RowError:
    """The error for a row that lacks keys of the format that the user named."""
    other = detect(row)
    looks = f"; its keys are those of the format '{other.name}'" if other is not None else ""
    named = f"leave `format` out, or write `format: {other.name}`; else " if other is not None else ""
    return RowError(
        f"the row has no {_missing_keys(row, entry)}{looks}",
        reason="wrong_shape",
        found=_keys_found(row),
        expected=f"{entry.signature} (format '{entry.name}', named by `format`)",
        example=entry.example_line,
        remedy=named + _mapping_remedy(row, entry, entry.kind),
    )


def lacks_settled_keys(row: Row, entry: Format, settled_by: object) -> RowError:
    """The error for a row that lacks keys of the format that an earlier row, `settled_by`, has."""
    keys = _filled(row)
    columns = _likely_columns(keys, entry)
    slip = ", ".join(f"{theirs!r} to {ours!r}" for ours, theirs in columns.items())
    return RowError(
        f"the row has no {_missing_keys(row, entry)}, unlike {settled_by}",
        reason="wrong_shape",
        found=_keys_found(row),
        expected=f"{entry.signature} (format '{entry.name}', settled by {settled_by})",
        example=entry.example_line,
        remedy=(f"rename {slip} in this row" if slip else "complete the row or remove it")
        + "; `bad_rows: skip` leaves such rows out and counts them",
    )


def nearest_format(row: Row, kind: Kind | None = None) -> Format:
    """The format that explains most of the row's keys and lacks fewest, by name, by a likely other name, or misspelt.

    A format whose keys are all there is not meant: it would have been detected.
    """
    keys = _filled(row)
    lowered = {key.lower() for key in keys}
    entries = [entry for entry in FORMATS.values() if kind is None or entry.kind is kind]

    def closeness(entry: Format) -> float:
        found = sum(max(_likeness(name, keys) for name in key.split("|")) for key in entry.keys)
        return 2 * found - len(entry.keys) + len(lowered.intersection(entry.optional))

    lacking = [entry for entry in entries if entry.missing(keys)]
    return max(lacking or entries, key=lambda entry: round(closeness(entry), 3))


def _filled(row: Row) -> list[str]:
    return [key for key, value in row.items() if value is not None]


def _likeness(name: str, keys: Collection[str]) -> float:
    guess = likely_column(name, keys)
    if guess is None:
        return 0.0
    if guess == name:
        return 1.0
    return 0.4 if guess in COLUMNS else 0.7


def likely_column(name: str, keys: Collection[str]) -> str | None:
    """The key that most likely holds `name`: itself, another tool's word for it, or a near miss."""
    if name in keys:
        return name
    lowered = {key.lower(): key for key in keys}
    for alias in (name, *_ALIASES.get(name, ())):
        if alias in lowered:
            return lowered[alias]
    close = [(SequenceMatcher(None, name, key.lower()).ratio(), key) for key in keys if key not in COLUMNS]
    best = max(close, default=(0.0, None))
    return best[1] if best[0] >= 0.75 else None


def _likely_columns(keys: Collection[str], entry: Format) -> dict[str, str]:
    """Our column -> the row's, for the missing keys of a format for which a column of the row will do."""
    needed = {name for key in entry.keys for name in key.split("|")}
    free = [key for key in keys if key not in needed]
    columns: dict[str, str] = {}
    for key in entry.missing(keys):
        for name in key.split("|"):
            guess = likely_column(name, [column for column in free if column not in columns.values()])
            if guess is not None:
                columns[name] = guess
                break
    for key in free:
        if key not in entry.optional and key.lower() in entry.optional and columns:
            columns[key.lower()] = key
    return columns


def _mapping_remedy(row: Row, entry: Format, kind: Kind | None) -> str:
    keys = _filled(row)
    missing = entry.missing(keys)
    if not missing:
        return f"if the rows are meant to be read so, name the format: `format: {entry.name}`"
    columns = _likely_columns(keys, entry)
    if columns:
        pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in columns.items())
        also = ", and add what is still missing" if len(columns) < len(missing) else ""
        return f"map the columns, `format: {entry.name}, columns: {{{pairs}}}`{also}"
    blank = ", ".join(f"{key.split('|')[0]}: YOUR_COLUMN" for key in missing)
    names = ", ".join(one.name for one in FORMATS.values() if kind is None or one.kind is kind)
    return f"write the rows like the example, or map your columns, `columns: {{{blank}}}`; the formats are: {names}"


def _missing_keys(row: Row, entry: Format) -> str:
    missing = entry.missing(_filled(row))
    null = any(name in row for key in missing for name in key.split("|"))
    return either(missing) + (" (the value is null)" if null else "")


def _keys_found(row: Row) -> str:
    if not row:
        return "an object without keys"
    null = [key for key, value in row.items() if value is None]
    nulls = f" (null: {quoted(null)})" if null else ""
    return f"the keys {quoted(row)}{nulls}; the row is {shown(dict(row), 100)}"
