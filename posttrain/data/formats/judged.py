"""Rows to `Feedback` (one response, good or bad) and to `Task` (a prompt, with or without its answer)."""

from __future__ import annotations

from typing import Any

from posttrain.data.formats.columns import PROMPTS, Row, continuation, present, prompt_of, response_turns, verdict_of
from posttrain.data.padding import whole
from posttrain.data.refusals import named_type, refuse, shown
from posttrain.data.roles import Rules
from posttrain.data.texts import clean, tools_of
from posttrain.types import Feedback, RowRef, Task


def feedback(row: Row, ref: RowRef, rules: Rules) -> Feedback:
    """`prompt`, `completion` and `label`: true or 1 for a good response, false or 0 for a bad one."""
    good = verdict_of(row, "label")
    prompt = prompt_of(row, rules)
    response = continuation(prompt, response_turns(row.get("completion"), "completion", rules), "completion", rules)
    return Feedback(prompt, response, good, ref, tools_of(row.get("tools"), rules.noted))


def task(row: Row, ref: RowRef, rules: Rules) -> Task:
    """`prompt` or `question`, optionally `answer` (text or a number); every other column becomes metadata."""
    prompt = prompt_of(row, rules)
    used = {present(row, PROMPTS), "answer", "system", "tools"}
    # Integers that an exporter turned into 3.0 are 3 again: a verifier that compares texts would see another value.
    metadata = {key: whole(value) for key, value in row.items() if key not in used}
    return Task(prompt, answer_of(row.get("answer")), ref, metadata, tools_of(row.get("tools"), rules.noted))


def answer_of(value: Any, column: str = "answer") -> str | None:
    """The answer of a task as a text; None where there is none."""
    if value is None:
        return None
    if isinstance(value, str) and value.strip():
        return clean(value, f"'{column}'")
    # A bool is an int in Python, and "True" is the answer to another kind of question.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(whole(value))
    raise refuse(
        "bad_label",
        f"'{column}' has no text" if isinstance(value, str) else f"'{column}' is {named_type(value)}",
        found=shown(value),
        expected="the right answer as a text or a number",
        remedy="write the answer, or leave the column out where none is known",
    )
