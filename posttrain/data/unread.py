"""Columns that nothing reads: a misspelt `system` is lost there without a word, and so is a label under SFT.

Worded here, after reading, from the counts of `RowCounts`; the stages and `posttrain audit` print it.

unread_columns({"systm", "id"}, "prompt_completion", {})    # columns ("id", "systm"), and a doubt about the second
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from posttrain.data.counts import RowCounts
from posttrain.data.flags import FLAGS
from posttrain.data.formats import FORMATS, Format
from posttrain.data.messages import TURN_KEYS
from posttrain.data.noted import KNOWN_KEYS
from posttrain.errors import did_you_mean, nearest
from posttrain.types import Demonstration, Task

LABEL_COLUMNS = ("label", "kto_tag")
"""Says of a response that it is good or bad: a row with one is feedback."""
COLUMN_SYNONYMS = {"system_prompt": "system", "system_message": "system", "sys": "system", "functions": "tools"}
"""What others call a column of ours."""
KEYS_BY_PLACE: Mapping[str, Collection[str]] = {**KNOWN_KEYS, "turn": TURN_KEYS}
"""Place inside a row -> the keys that are read there."""
SIMILAR = 0.75
"""Likeness from which on a column is taken for a misspelt one; `id` and `input` are not."""


@dataclass(frozen=True, slots=True)
class UnreadColumns:
    """UnreadColumns(columns=("id", "systm"), doubts=("`systm`: did you mean `system`?",))"""

    columns: tuple[str, ...]
    doubts: tuple[str, ...]
    """What somebody should look at, a sentence each; an unread `id` needs none."""

    def __str__(self) -> str:
        return f"columns that nothing reads: {', '.join(self.columns)}" if self.columns else "every column is read"


def unread_columns(columns: Collection[str], format_name: str, mapped: Mapping[str, str]) -> UnreadColumns:
    """What to say of the columns that a format does not read.

    Args:
        mapped: our column -> the file's, as `columns` has it in a recipe.
    """
    entry = FORMATS[format_name]
    doubts = [doubt for name in sorted(columns) if (doubt := _doubt(name, entry, mapped)) is not None]
    return UnreadColumns(tuple(sorted(columns)), tuple(doubts))


def misspelt(names: Collection[str], known: Collection[str]) -> dict[str, str]:
    """{name: what it may have been meant to be} of those that are nearly a known one; `prompt_id` is no `prompt`."""
    meant = {}
    for name in sorted(names):
        lowered = name.lower()
        near = COLUMN_SYNONYMS.get(lowered) or nearest(lowered, known, cutoff=SIMILAR)
        # `prompt_id` is near to `prompt`, and is about it: a name that holds the known one as a word is no slip.
        part_of_it = near in lowered.split("_") and lowered not in COLUMN_SYNONYMS
        if near is not None and near in known and name not in known and not part_of_it:
            meant[name] = near
    return meant


CONTEXT_COLUMNS = ("context", "passage", "paragraph", "document", "background", "input", "inputs")
"""Columns without whose text a question cannot be answered."""


def not_in_prompt(task: Task) -> Iterator[str]:
    """What to say of a task's columns that belong to the question, and that the prompt does not hold."""
    for name in CONTEXT_COLUMNS:
        text = task.metadata.get(name)
        in_prompt = isinstance(text, str) and any(text.strip() in (turn.content or "") for turn in task.prompt)
        if isinstance(text, str) and text.strip() and not in_prompt:
            yield (
                f"`{name}` is kept as metadata and stands in no prompt, so the model answers without it: join it to "
                "the prompt where it is needed"
            )


def unread_keys(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Keys inside rows that nothing reads, a sentence each, with what they may have been meant to be."""
    sentences = []
    for where, count in sorted(counts.items()):
        place, _, key = where.partition(".")
        # A known synonym of another tool first; likeness of spelling would find nothing near `input_schema`.
        known = KEYS_BY_PLACE.get(place, ())
        near = KEY_SYNONYMS.get(key) if KEY_SYNONYMS.get(key) in known else misspelt([key], known).get(key)
        sentences.append(f"`{key}` in {count:,} {place}s is not read" + (f": {did_you_mean(near)}" if near else ""))
    return tuple(sentences)


def reading_notes(counts: RowCounts, format_name: str) -> tuple[str, ...]:
    """All that a user should know of what was read and what was not, a sentence each: notes, columns, doubts, keys."""
    unread = unread_columns(counts.unused_columns, format_name, {})
    columns = (str(unread),) if unread.columns else ()
    return (*counts.notes, *columns, *unread.doubts, *unread_keys(counts.unread_keys))


KEY_SYNONYMS = {
    "input_schema": "parameters",
    "inputSchema": "parameters",
    "args": "arguments",
    "input": "arguments",
} | {
    "tool_name": "name",
    "content": "text",
    "tools_calls": "tool_calls",
    "thought": "reasoning",
    "thoughts": "reasoning",
}
"""What others call a key of ours inside a turn, a call or a tool."""


def _join_advice(name: str, entry: Format, mapped: Mapping[str, str]) -> str:
    """How a column that belongs to the question gets into the prompt: as the `input` of an instruction."""
    if "input" in entry.optional:
        pairs = {**mapped, "input": name}
        form = entry.name
    else:
        prompt = mapped.get("prompt") or mapped.get("question")
        if entry.name != "prompt_completion" or prompt is None:
            return "join it to the prompt where it is needed"
        pairs = {"instruction": prompt, "input": name, "output": mapped.get("completion", "completion")}
        form = "alpaca"
    columns = ", ".join(f"{ours}: {theirs}" for ours, theirs in pairs.items())
    return f"join it to the prompt, for example with `format: {form}, columns: {{{columns}}}`"


def _doubt(name: str, entry: Format, mapped: Mapping[str, str]) -> str | None:
    # By how much they change what is trained: a label that is ignored turns bad answers into examples to follow.
    if entry.kind is Demonstration and name in LABEL_COLUMNS:
        return (
            f"`{name}` is not read: bad responses are imitated like good ones; for rows that are judged use "
            "`method: kto`, or remove the bad ones"
        )
    if name == "input" and "instruction" in mapped.values():
        ours = next(ours for ours, theirs in mapped.items() if theirs == "instruction")
        return (
            f"`input` is not read, and `{ours}` is only the instruction: leave `columns` out (Alpaca's rows are "
            "known), or join the two"
        )
    if name in CONTEXT_COLUMNS and entry.kind is not Task:
        return f"`{name}` is not read, so every prompt stands without it: {_join_advice(name, entry, mapped)}"
    if name in FLAGS:
        return (
            f"`{name}` of a row is not read: every row trains with the same weight; leave out the rows that must not "
            "train, or put the flag into the turns"
        )
    # Against optional columns alone: without a required one the row would not have this format.
    near = misspelt([name], entry.optional).get(name)
    return f"`{name}` is not read: {did_you_mean(near)}" if near is not None else None
