"""Faults that can be mended in the row itself: a cleaned copy (`fix.py`) changes these rows and keeps them.

mend({"prompt": "2 &lt; 3?", "chosen": "2 &lt; 3? Yes."}, {"html_entities", "repeated_prompt"}, turn="2 &lt; 3?")
# {"prompt": "2 < 3?", "chosen": "Yes."}

A row is the file's own, whatever its columns and however deep its turns, so that texts are found by what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from posttrain.auditing.leftovers import has_entities, repeated_length, unescaped
from posttrain.auditing.marks import NULL_WORDS

MENDED: Mapping[str, str] = {
    "repeated_prompt": "the prompt was taken off the responses",
    "html_entities": "HTML entities were turned back",
    "null_words": "an input that was the word for nothing was emptied",
}
"""Check -> what the log says was done."""
_INPUTS = frozenset(("input", "context", "system", "instruction_input", "additional_context"))
"""Columns beside a prompt that may be empty."""
DEEPEST_VALUE = 12
"""Levels of a row that are looked at; turns with tool calls have about seven."""


def mend(row: Mapping[str, Any], checks: Collection[str], *, turn: str) -> dict[str, Any]:
    """The row without the faults that the checks named; equal to it where nothing can be mended.

    Args:
        turn: the last turn of the user, which responses may repeat.
    """
    mended: Any = dict(row)
    if "repeated_prompt" in checks:
        # A text that is the turn and nothing else is the prompt's own column: it is kept.
        mended = _each_text(mended, lambda text, key: text[repeated_length(turn, text) :].lstrip() or text)
    if "html_entities" in checks:
        mended = _each_text(mended, lambda text, key: unescaped(text) if has_entities(text) else text)
    if "null_words" in checks:
        # By column, since the word may stand as a text of its own elsewhere: an answer "None" is an answer.
        mended = _each_text(mended, lambda text, key: "" if key in _INPUTS and text.strip() in NULL_WORDS else text)
    return dict(mended)


def _each_text(value: Any, change: Callable[[str, str], str], key: str = "", depth: int = 0) -> Any:
    if isinstance(value, str):
        return change(value, key)
    if depth >= DEEPEST_VALUE:
        return value
    if isinstance(value, Mapping):
        return {name: _each_text(item, change, str(name), depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(item, change, key, depth + 1) for item in value]
    return value
