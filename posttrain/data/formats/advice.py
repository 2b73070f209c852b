"""What to say of a row that no format fits: what was found, what is nearest, and a way to read it that was tried.

A map of columns is proposed only if the row reads under it, and with what it would leave unread; where nothing that was
tried reads, the error says what is missing and proposes no map.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.dialogues import dialogue_format
from posttrain.data.formats.columns import Row
from posttrain.data.formats.detect import ALIASES, detect, filled, likely_column, nearest_format
from posttrain.data.formats.table import COLUMNS, FORMATS, KIND_NAMES, ExampleKind, Format, either
from posttrain.data.refusals import named_type, quoted, shown
from posttrain.data.row_fields import field_of, mapped_row, paths_in
from posttrain.errors import RowError
from posttrain.types import Demonstration, RowRef, Task

UNGUESSED = frozenset({"ranking", "overall_response", "votes"})
"""Columns that say which response is better, each in a way of its own: an index from 0 or from 1, a place or a number.
Another column's number read as one of these would train the worse response, so none is proposed."""
_TRIALS = 200
_CHOICES = 4
_TEXT_COLUMNS = ("text", *ALIASES["text"])
"""What the column of bare text is called."""
TRY_REF = RowRef("the row", 1)


@dataclass(frozen=True, slots=True)
class Reading:
    """A way to read a row that was tried: Reading(FORMATS["alpaca"], {"output": "response"}, unread=("id",))."""

    entry: Format
    columns: Mapping[str, str]
    unread: tuple[str, ...]
    """Columns with something in them that this reading does not use; a task keeps them as metadata."""

    @property
    def words(self) -> str:
        pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in self.columns.items())
        options = f"`format: {self.entry.name}, columns: {{{pairs}}}`"
        lost = "metadata then, in no prompt" if self.entry.kind is Task else "not read then"
        return options + (f" ({lost}: {quoted(self.unread)})" if self.unread else "")


def reading_of(row: Row, kinds: Sequence[ExampleKind]) -> Reading | None:
    """The map of columns under which the row reads and the fewest of its columns are lost; None where none was found.

    reading_of({"instruction": "Who?", "context": "Ann came.", "response": "Ann."}, [Demonstration])
        -> format alpaca, {"output": "response", "input": "context"}
    """
    best: Reading | None = None
    paths = list(paths_in(row))
    for entry in FORMATS.values():
        # Nearly every row reads as bare prompts, so that reading would hide every better one.
        if entry.published or entry.kind not in kinds or (entry.name == "prompts" and len(kinds) > 1):
            continue
        reading = _reading(row, entry, paths)
        if reading is not None and (best is None or _order(reading) < _order(best)):
            best = reading
    return best


def _order(reading: Reading) -> tuple[int, int, int]:
    # Fewest columns lost, then fewest renamed: what reads as it stands needs no map.
    renamed = sum(ours != theirs.lower() for ours, theirs in reading.columns.items())
    return len(reading.unread), renamed, len(reading.columns)


def answer_path(columns: Row) -> str | None:
    """The column, or the path into one, that most likely holds a task's answer: "reward_model.ground_truth"."""
    for _, path in _candidates("answer", list(paths_in(columns))):
        if isinstance(field_of(columns, path), str | int | float):
            return path
    return None


def _reading(row: Row, entry: Format, paths: Sequence[str]) -> Reading | None:
    keys = filled(row)
    missing = entry.missing(keys)
    # Which response is better cannot be guessed from names; a wrong guess would turn every pair around.
    if any(set(key.split("|")) <= UNGUESSED for key in missing):
        return None
    held = {name for key in entry.keys for name in key.split("|") if name in keys}
    choices = [_candidates(key, [path for path in paths if path not in held]) for key in missing]
    for chosen in itertools.islice(itertools.product(*choices), _TRIALS):
        columns = dict(chosen)
        # One column cannot be prompt and answer at once.
        if len(set(columns.values())) < len(columns):
            continue
        more = _optional(row, entry, columns, [path for path in paths if path not in held])
        # Some rows read only with an optional column: two answers as texts are a pair only beside their prompt.
        # What is proposed was read: a remedy that fails in its turn costs more trust than none.
        for tried in ({**columns, **more}, columns):
            if _reads(row, entry, tried):
                return Reading(entry, tried, _left(row, entry, tried))
    return None


def _optional(row: Row, entry: Format, columns: Mapping[str, str], paths: Sequence[str]) -> dict[str, str]:
    """Optional columns that other columns of the row most likely hold, each of which the row reads with."""
    found: dict[str, str] = {}
    for name in entry.optional:
        if row.get(name) is not None:
            continue
        taken = {*columns.values(), *found.values()}
        for _, path in _candidates(name, [path for path in paths if path not in taken]):
            if _reads(row, entry, {**columns, **found, name: path}):
                found[name] = path
                break
    return found


def _candidates(key: str, paths: Sequence[str]) -> list[tuple[str, str]]:
    """(our column, a path of the row that may hold it), the likeliest first."""
    candidates: list[tuple[str, str]] = []
    for name in key.split("|"):
        if name in UNGUESSED:
            continue
        for alias in (name, *ALIASES.get(name, ())):
            # `text` alone is bare text; only inside `answers` is it an answer. `messages` must hold turns to read.
            candidates += [
                (name, path)
                for path in paths
                if _last(path) == alias and (alias != "text" or name == "messages" or path.startswith("answer"))
            ]
        near = [path for path in paths if "." not in path and likely_column(name, [path]) == path]
        if len(near) == 1:  # of conversation_a and conversation_b, neither is meant
            candidates.append((name, near[0]))
    return list(dict.fromkeys(candidates))[:_CHOICES]


def _last(path: str) -> str:
    """The word that a path ends with: answers.text.0 -> "text"."""
    return next((part for part in reversed(path.split(".")) if not part.isdecimal()), path).lower()


def _reads(row: Row, entry: Format, columns: Mapping[str, str]) -> bool:
    tried = mapped_row(row, columns, COLUMNS)
    if entry.missing(filled(tried)) or not entry.fits(tried):
        return False
    try:
        entry.parse(tried, TRY_REF)
    except RowError:
        return False
    return True


def _left(row: Row, entry: Format, columns: Mapping[str, str]) -> tuple[str, ...]:
    read = {name for key in (*entry.keys, *entry.optional) for name in key.split("|")}
    taken = {path.split(".")[0] for path in columns.values()} | {name for name in read if name not in columns}
    return tuple(key for key in filled(row) if key not in taken)


# ---------------------------------------------------------------- the errors


def no_object(row: object, ref: RowRef = TRY_REF) -> RowError:
    """The error for a row that is no object."""
    remedy = 'write each row as a JSON object; plain texts need a key, for example {"prompt": ...}'
    if isinstance(row, list) and row and isinstance(row[0], Mapping):
        remedy = (
            f"write each list of turns as {{\"messages\": [...]}}: `jq -c '{{messages: .}}' {shlex.quote(ref.source)} "
            "> rows.jsonl`"
        )
    return RowError(
        f"the row is {named_type(row)}, not an object with keys",
        reason="wrong_shape",
        found=shown(row),
        expected="an object whose keys are the columns",
        example=FORMATS["chat"].example_line,
        remedy=remedy,
    )


def fits_nothing(row: Row, kind: ExampleKind | None = None, ref: RowRef = TRY_REF, *, search: bool = True) -> RowError:
    """The error for a row that no format fits: the keys found, the nearest format, what it lacks, and how to map it.

    Args:
        search: try maps of columns; it costs up to a tenth of a second.
    """
    other = detect(row) if kind is not None else None
    entry = nearest_format(row, kind)
    missing = entry.missing(filled(row))
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
        remedy=_remedy(row, entry, kind, ref, search),
    )


def lacks_named_keys(row: Row, entry: Format, ref: RowRef = TRY_REF, *, search: bool = True) -> RowError:
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
        remedy=named + _remedy(row, entry, entry.kind, ref, search),
    )


def lacks_settled_keys(row: Row, entry: Format, settled_by: object) -> RowError:
    """The error for a row that lacks keys of the format that an earlier row, `settled_by`, has."""
    reading = _reading(row, entry, filled(row))
    slip = ", ".join(f"{theirs!r} to {ours!r}" for ours, theirs in (reading.columns if reading else {}).items())
    return RowError(
        f"the row has no {_missing_keys(row, entry)}, unlike {settled_by}",
        reason="wrong_shape",
        found=_keys_found(row),
        expected=f"{entry.signature} (format '{entry.name}', settled by {settled_by})",
        example=entry.example_line,
        remedy=(f"rename {slip} in this row" if slip else "complete the row or remove it")
        + "; `bad_rows: skip` leaves such rows out and counts them",
    )


def better_remedy(row: Row, error: RowError, kind: ExampleKind | None, ref: RowRef) -> str:
    """What to do with a row that a format has refused, where its whole says more than the value that was wrong."""
    if error.reason == "unanswered_turn" and kind in (None, Demonstration, Task):
        reading = reading_of(row, [Task])
        if reading is not None:
            mend = "add the answer or remove the last turn"
            return f"{mend}; rows that are prompts to be answered read as {reading.words}"
    return _columns_remedy(row, kind, ref) or error.remedy


def _remedy(row: Row, entry: Format, kind: ExampleKind | None, ref: RowRef, search: bool) -> str:
    keys = filled(row)
    if search and (wrapped := wrapped_remedy(row, ref.source)) is not None:
        return wrapped
    reading = reading_of(row, [kind] if kind is not None else list(KIND_NAMES)) if search else None
    if reading is not None and reading.columns:
        return f"map the columns, {reading.words}"
    missing = entry.missing(keys)
    if not missing:
        return f"if the rows are meant to be read so, name the format: `format: {entry.name}`"
    others = next((remedy for remedy in _other_shapes(row, kind, ref)), None)
    if others is not None:
        return others
    blank = ", ".join(f"{key.split('|')[0]}: YOUR_COLUMN" for key in missing)
    names = ", ".join(
        other.name for other in FORMATS.values() if not other.published and (kind is None or other.kind is kind)
    )
    better = [name for key in missing for name in key.split("|") if name in UNGUESSED]
    say = f"; `{better[0]}` must say which response is better in the way of the example" if better else ""
    return (
        f"write the rows like the example, or map your columns, `columns: {{{blank}}}`{say}; the formats are: {names}"
    )


# ---------------------------------------------------------------- rows of another shape


def _other_shapes(row: Row, kind: ExampleKind | None, ref: RowRef) -> Iterator[str]:
    """Remedies for rows that are no rows: bare text, a wrapper around the rows, columns in place of rows."""
    columns = _columns_remedy(row, kind, ref)
    if columns is not None:
        yield columns
    if any({*names} <= {*row} for names in (("role", "content"), ("from", "value"))):
        yield 'the row is one turn of a conversation: write all turns of one in a row, {"messages": [...]}'
    column = next((name for name in _TEXT_COLUMNS if isinstance(row.get(name), str) and row[name].strip()), None)
    if column is not None and kind in (None, Demonstration):
        mapped = "" if column == "text" else f", columns: {{text: {column}}}"
        yield (
            f"to train on the text of `{column}` alone, as in pretraining, write `format: text{mapped}`; for a kind of "
            "rows that reads the other columns too, see the formats in docs/data.md"
        )


def _columns_remedy(row: Row, kind: ExampleKind | None, ref: RowRef) -> str | None:
    """For {"prompt": ["a", "b"], "completion": ["c", "d"]}: the columns of a table, where its first line reads.

    pandas writes {"prompt": {"0": "a", "1": "b"}, ...} unless it is told otherwise.
    """
    cells = {
        key: list(value.items() if isinstance(value, Mapping) else enumerate(value))
        for key, value in row.items()
        if isinstance(value, list | Mapping) and value
    }
    if len(cells) < max(len(row), 1) or len({tuple([at for at, _ in column]) for column in cells.values()}) != 1:
        return None
    first = {key: column[0][1] for key, column in cells.items()}
    entry = detect(first, kind)
    if entry is None or not _reads(first, entry, {}):
        return None
    return (
        "the file holds columns, not rows: "
        f"`python -c \"import json, pandas; pandas.DataFrame(json.load(open('{ref.source}')))"
        ".to_json('rows.jsonl', orient='records', lines=True)\"`"
    )


def wrapped_remedy(row: Mapping[str, Any], source: str) -> str | None:
    """What to do with an object that holds the rows, in a list or one under each key; None for any other."""
    inner = rows_inside(row)
    if inner is not None:
        inside = f".{inner}[]" if inner.isidentifier() else f'.["{inner}"][]'
        return f"the rows are under {inner!r}: `jq -c '{inside}' {shlex.quote(source)} > rows.jsonl`"
    values = list(row.values())
    if values and all(isinstance(value, dict) for value in values) and detect(row) is None and detect(values[0]):
        return f"each row is under a key of its own: `jq -c '.[]' {shlex.quote(source)} > rows.jsonl`"
    return None


def rows_inside(row: Mapping[str, Any]) -> str | None:
    """The key of a list in whose elements some format sees rows; None for an object that is a row itself.

    A wrapper says a version or a name beside its rows; what has words of its own is a row with examples inside.
    """
    if detect(row) is not None or any(isinstance(value, str) and " " in value.strip() for value in row.values()):
        return None
    kinds = list(KIND_NAMES)
    for key, value in row.items():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and (detect(first) is not None or reading_of(first, kinds) is not None):
            return key
    return None


def text_remedy(text: str, source: str) -> str:
    """What to do with a file of plain text whose first line is `text`: a row for each line, all of which trains."""
    name = dialogue_format(text)
    if name is not None:
        return (
            f"the text is a dialogue in the form of {name}: write its turns, "
            '{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}'
        )
    return (
        "write each line as a row, `python -c \"import json, sys; [print(json.dumps({'text': line.strip()})) "
        f"for line in open(sys.argv[1], encoding='utf-8') if line.strip()]\" {shlex.quote(source)} > rows.jsonl`, and "
        "train on all of it with `encoding: {template: raw}`"
    )


def _missing_keys(row: Row, entry: Format) -> str:
    missing = entry.missing(filled(row))
    null = any(name in row for key in missing for name in key.split("|"))
    return either(missing) + (" (the value is null)" if null else "")


def _keys_found(row: Row) -> str:
    if not row:
        return "an object without keys"
    null = [key for key, value in row.items() if value is None]
    nulls = f" (null: {quoted(null)})" if null else ""
    return f"the keys {quoted(row)}{nulls}; the row is {shown(dict(row), 100)}"
