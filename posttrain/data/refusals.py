"""Why a row can be refused, and the one function that says so; used by every module that reads a part of a row.

The label of a refusal is what a skipped row is counted under, in `RowCounts.skipped`, in the file of rejected
rows and in the report, so the labels are a closed table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from posttrain.errors import RowError

BadRows = Literal["stop", "skip"]
"""What becomes of a bad row: it stops the reading, or is counted under its reason and skipped."""

REASONS = {
    "bad_json": "the line is not valid JSON",
    "duplicate_key": "an object names a key twice",
    "bad_encoding": "the line is not valid UTF-8",
    "too_long": "the row has more text than `longest_row_mb` allows",
    "cell_count": "a row of a CSV or TSV file has more or fewer cells than its header",
    "truncated": "the file ends in the middle of the row",
    "wrong_shape": "the row's keys or the type of a value fit no format",
    "mixed_kinds": "the row is of another kind than the rows before it",
    "empty_conversation": "there is no turn",
    "empty_turn": "a user's turn has no text",
    "empty_response": "an assistant's turn has neither text nor a tool call",
    "empty_text": "a row of bare text has none",
    "null_content": "a text is null",
    "content_not_text": "a text is a number, an object, an image ...; or the row has an image, audio or video column",
    "dialogue_as_text": "a text holds a whole dialogue",
    "bad_character": "a text holds a NUL or half of a surrogate pair",
    "unknown_role": "the name of a role is not mapped",
    "unknown_key": "a turn has a key that looks like a misspelt one",
    "bad_flag": "`train` (or another name of it) or `complete` is not a yes or no, or two flags contradict each other",
    "starts_with_assistant": "the conversation starts with the assistant",
    "repeated_role": "two turns of the same role in a row",
    "late_system": "a system turn that is not the first, or a second system prompt",
    "tool_without_call": "a tool's result that no call asked for",
    "bad_tool_call": "a tool call without a name or with unreadable arguments",
    "bad_tools": "the `tools` column is not a list of tools",
    "unanswered_turn": "the conversation does not end with the assistant",
    "answered_prompt": "a prompt ends with the assistant",
    "prompts_differ": "the two sides of a pair answer different prompts",
    "identical_responses": "two responses of a comparison are the same",
    "too_few_responses": "a comparison with fewer than two responses",
    "tie": "no response is better than the other",
    "score_order": "the scores say the opposite of the order",
    "bad_score": "a score, margin or vote is not a finite number",
    "bad_ranking": "a ranking is not an order of all responses",
    "bad_label": "a label or answer is not one of the allowed values",
    "before_skip": "the row is good, and `skip` leaves it out",
}


def refuse(reason: str, problem: str, *, found: str, expected: str, remedy: str) -> RowError:
    """A RowError that does not know its row yet: `Format.parse` fills in where, the keys and the example."""
    assert reason in REASONS, reason  # a reason that no table has would be missing in reports and docs/data.md
    return RowError(problem, reason=reason, found=found, expected=expected, remedy=remedy)


def quoted(words: Iterable[object], limit: int = 30) -> str:
    """quoted(["a", "b"]) -> "'a', 'b'"; "nothing" for no words; the first `limit` of very many."""
    texts = [repr(word) for word in words]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more or "nothing"


def shown(value: object, limit: int = 80) -> str:
    """A value in an error text: its repr, cut in the middle so that one line stays one line."""
    text = repr(value)
    if len(text) <= limit:
        return text
    half = (limit - 5) // 2  # both ends: what is wrong with a text is often at its end
    return f"{text[:half]} ... {text[-half:]}"


def named_type(value: object) -> str:
    """The type of a value in the words of JSON: named_type([]) -> "a list"."""
    # By exact type: True is an int in Python, and to a reader of JSON it is no number.
    names = {
        type(None): "null",
        bool: "a true/false value",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        tuple: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")
