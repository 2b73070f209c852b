"""Contents in parts of several types, as LLaMA-Factory and the APIs of model makers write an assistant's turn.

split_parts([{"type": "reasoning", "value": "I add."}, {"type": "text", "value": "4"}], "assistant", place, None)
    # (["I add."], [{"type": "text", "value": "4"}], ())
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.data.noted import KeyNotes
from posttrain.data.refusals import refuse, shown
from posttrain.data.texts import CALL_PARTS, THOUGHT_PARTS, calls_of, part_kind, part_text

SPLIT_PARTS = frozenset({*THOUGHT_PARTS, *CALL_PARTS})


def split_parts(
    parts: Sequence[Any], role: str, place: str, noted: KeyNotes | None
) -> tuple[list[str], list[Any] | None, tuple[Mapping[str, Any], ...]]:
    """(thoughts, the text parts, tool calls): what `Message` has as separate fields.

    Raises:
        RowError: they stand in an order that a turn cannot keep: thoughts first, then text, then calls.
    """
    order = [0 if kind in THOUGHT_PARTS else 2 if kind in CALL_PARTS else 1 for kind in map(part_kind, parts)]
    # A `Message` has one text: text between two calls would move before them, and train in an order that nobody wrote.
    if order != sorted(order) or (0 in order and role != "assistant"):
        raise refuse(
            "content_not_text",
            f"the parts of {place} stand in an order that a turn cannot keep",
            found=f"{shown([part_kind(part) for part in parts])} in a turn of the {role}",
            expected="in a turn of the assistant: its thoughts, then its text, then its calls",
            remedy="write one turn for each round of thoughts and calls, with the tool's result between them",
        )
    thoughts: list[str] = []
    calls: tuple[Mapping[str, Any], ...] = ()
    for number, (part, kind) in enumerate(zip(parts, order, strict=True), 1):
        if kind == 0:
            thoughts.append(part_text(part, f"part {number} of {place}", noted))
        elif kind == 2:
            value = next((part[key] for key in ("value", "tool_call", "text") if part.get(key) is not None), None)
            calls += calls_of(value, f"part {number} of {place}", noted)
    text_parts = [part for part, kind in zip(parts, order, strict=True) if kind == 1]
    return thoughts, text_parts or None, calls
