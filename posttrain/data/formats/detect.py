"""Which format a row has, and which is nearest when it has none; what is then said is in `advice.py`."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from difflib import SequenceMatcher

from posttrain.data.formats.columns import Row
from posttrain.data.formats.table import COLUMNS, FORMATS, ExampleKind, Format
from posttrain.data.origin import ORIGIN
from posttrain.types import Task

ALIASES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("instruction", "query", "input", "problem", "user", "question", "prompts", "messages", "context"),
    "question": ("query", "problem"),
    "completion": ("response", "output", "answer", "target", "solution", "reply", "canonical_solution", "chosen"),
    "answer": (
        *("ground_truth", "solution", "target", "label", "final_answer", "gold", "expected_answer"),
        *("reference_answer", "correct_answer", "text"),
    ),
    "chosen": (
        *("preferred", "better", "win", "winner", "accepted", "positive", "chosen_response", "chosen_messages"),
        *("response_chosen", "chosen_answer", "response_j"),
    ),
    "rejected": (
        *("dispreferred", "worse", "lose", "loser", "negative", "rejected_response", "rejected_messages"),
        *("response_rejected", "rejected_answer", "response_k"),
    ),
    "messages": ("conversation", "dialogue", "dialog", "chat", "turns", "text"),
    "conversations": ("conversation", "dialogue", "dialog", "chat", "turns"),
    "responses": ("completions", "answers", "outputs", "candidates"),
    "scores": ("ratings", "rewards"),
    "label": ("good", "thumbs_up", "feedback", "kto_tag", "is_good"),
    "output": ("response", "completion", "answer", "target", "solution", "text"),
    "instruction": ("prompt", "question", "query", "problem"),
    "input": ("context", "passage", "paragraph", "document", "background", "inputs"),
    "system": ("system_prompt", "system_message", "sys"),
    "tools": ("functions",),
    "text": ("content", "document", "body", "raw_content", "article"),
    "history": ("chat_history", "conversation_history"),
}
"""Names that other tools use for our columns; only ever used to word a remedy."""


def detect(row: Row, kind: ExampleKind | None = None) -> Format | None:
    """The first format of the table that the row fits; of this kind, where one is given. Null counts as absent."""
    # Keys alone pick the candidates, and files have few sets of keys, so the search is cached by them.
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
    return frozenset(keys) - {ORIGIN} - {name for key in (*entry.keys, *entry.optional) for name in key.split("|")}


def nearest_format(row: Row, kind: ExampleKind | None = None) -> Format:
    """The format that explains most of the row's keys and lacks fewest, by name, by a likely other name, or misspelt.

    A format whose keys are all there is not meant: it would have been detected.
    """
    keys = filled(row)
    lowered = {key.lower() for key in keys}
    entries = [entry for entry in FORMATS.values() if not entry.published and (kind is None or entry.kind is kind)]

    def closeness(entry: Format) -> float:
        # Required keys that are there count for it, those that are missing against it, optional ones a little.
        present = sum(max(_likeness(name, keys) for name in key.split("|")) for key in entry.keys)
        return 2 * present - len(entry.keys) + len(lowered.intersection(entry.optional))

    lacking = [entry for entry in entries if entry.missing(keys)]
    return max(lacking or entries, key=lambda entry: round(closeness(entry), 3))


def filled(row: Row) -> list[str]:
    return [key for key, value in row.items() if value is not None]


def _likeness(name: str, keys: Collection[str]) -> float:
    guess = likely_column(name, keys)
    if guess is None:
        return 0.0
    if guess == name:
        return 1.0
    # A near name that is another column of ours probably means that one.
    return 0.4 if guess in COLUMNS else 0.7


def likely_column(name: str, keys: Collection[str]) -> str | None:
    """The key that most likely holds `name`: itself, another tool's word for it, or a near miss."""
    if name in keys:
        return name
    lowered = {key.lower(): key for key in keys}
    for alias in (name, *ALIASES.get(name, ())):
        if alias in lowered:
            return lowered[alias]
    close = [(SequenceMatcher(None, name, key.lower()).ratio(), key) for key in keys if key not in COLUMNS]
    best = max(close, default=(0.0, None))
    return best[1] if best[0] >= 0.75 else None
