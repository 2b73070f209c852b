"""Columns that several formats share: the prompt, a response, the system prompt, tools and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from posttrain.data.dialogues import refuse_dialogue, turns_in
from posttrain.data.media import refuse_placeholder
from posttrain.data.messages import turns_of
from posttrain.data.order import check_order, check_prompt, ordered
from posttrain.data.refusals import named_type, refuse, shown
from posttrain.data.repairs import NONE
from posttrain.data.roles import Rules
from posttrain.data.texts import text_of
from posttrain.types import Message

Row = Mapping[str, Any]
Messages = tuple[Message, ...]

VERDICT_WORDS: Mapping[str, bool] = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""How a table in text, which knows no other type, says that a response is good or bad."""
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
PROMPTS = ("prompt", "question")
"""The columns that a prompt may stand in, most specific first."""


def present(row: Row, names: tuple[str, ...]) -> str:
    """The first of `names` that the row has with a value; the first name of all where it has none."""
    for name in names:
        # Null counts as absent: tables with a column for every layout fill the others with null.
        if row.get(name) is not None:
            return name
    return names[0]


def prompt_of(row: Row, rules: Rules, names: tuple[str, ...] = PROMPTS) -> Messages:
    """The prompt, a string (one turn of the user) or a list of turns, with the `system` column before it."""
    column = present(row, names)
    messages = prompt_turns(row.get(column), column, rules)
    messages = with_system(messages, row)
    messages = ordered(messages, column, rules)
    check_prompt(messages, column)
    return messages


def prompt_turns(value: Any, column: str, rules: Rules) -> Messages:
    """A text is one turn of the user, except where it is turns that were stored as text."""
    if isinstance(value, str):
        turns = turns_in(value, rules)
        if turns is None:
            return (user_turn(value, column, rules),)
        value = turns
    return turns_of(value, column, rules)


def _plain_text(text: Any, column: str, rules: Rules) -> str:
    """The text of a column that holds one turn; a whole dialogue in it would train as that turn's words."""
    text = text_of(text, f"'{column}'")
    refuse_dialogue(text, f"'{column}'", rules)
    refuse_placeholder(text, f"'{column}'")
    return text


def one_turn_only(text: Any, column: str, rules: Rules) -> None:
    """Refuses turns that were stored as text in a column that holds one turn, as `instruction`."""
    # Read as one turn, its brackets and quotes would train as the user's or the assistant's words.
    if isinstance(text, str) and not rules.keep_dialogues and turns_in(text, rules) is not None:
        raise refuse(
            "dialogue_as_text",
            f"'{column}' is a list of turns, stored as text",
            found=shown(text),
            expected="the words of one turn",
            remedy="read the columns as prompt and completion, which may be turns: "
            "`format: prompt_completion, columns: {prompt: instruction, completion: output}`",
        )


def user_turn(text: Any, column: str, rules: Rules) -> Message:
    text = _plain_text(text, column, rules)
    if not text or text.isspace():
        raise refuse(
            "empty_turn",
            f"'{column}' has no text",
            found="an empty text, or nothing but white space",
            expected="what the user asks",
            remedy="write the prompt or remove the row; `bad_rows: skip` leaves such rows out and counts them",
        )
    return Message("user", text)


def assistant_turn(text: Any, column: str, rules: Rules) -> Message:
    text = _plain_text(text, column, rules)
    if not text or text.isspace():
        raise refuse(
            "empty_response",
            f"'{column}' has no text",
            found="an empty text, or nothing but white space",
            expected="what the assistant answers",
            remedy="write the response or remove the row; `bad_rows: skip` leaves such rows out and counts them",
        )
    return Message("assistant", text)


def response_turns(value: Any, column: str, rules: Rules) -> Messages:
    """A response: a string, one turn as an object, or a list of turns. Their order is checked with the prompt's."""
    if isinstance(value, str):
        turns = turns_in(value, rules)
        if turns is None:
            return (assistant_turn(value, column, rules),)
        value = turns
    if isinstance(value, Mapping):
        value = [value]
    if value is None or isinstance(value, list | tuple):
        return turns_of(value, column, rules)
    raise refuse(
        "wrong_shape",
        f"'{column}' is {named_type(value)}, not a response",
        found=shown(value),
        expected='a string, or a list of turns such as [{"role": "assistant", "content": "4"}]',
        remedy=f"write `{column}` as a string or a list of turns",
    )


def continuation(prompt: Messages, response: Messages, column: str, rules: Rules) -> Messages:
    """The response, if it can follow the prompt: it begins with the assistant and its turns are in order."""
    if rules.repairs is not NONE:
        response = rules.repairs.joined(response, column, rules.noted)
    if response[0].role != "assistant":
        raise refuse(
            "wrong_shape",
            f"'{column}' begins with a turn of the {response[0].role}",
            found=f"the role {response[0].role!r} in turn 1 of '{column}'",
            expected="a response, which begins with the assistant",
            remedy=f"leave in `{column}` only what follows the prompt",
        )
    if response[-1].role != "assistant":
        raise refuse(
            "unanswered_turn",
            f"'{column}' ends with a turn of the {response[-1].role}, which nobody answers",
            found=f"the role {response[-1].role!r} in the last turn of '{column}'",
            expected="a response whose last turn is the assistant's",
            remedy="add the answer or remove the last turn",
        )
    # With the prompt before it, whose last turn decides what may follow.
    if len(response) > 1:
        # The prompt was checked by itself: a greeting that it begins with was let pass.
        check_order(prompt + response, f"prompt + {column}", greeting=True)
    return response


def with_system(messages: Messages, row: Row) -> Messages:
    """The messages with the `system` column, if it has text, as their first turn."""
    system = row.get("system")
    # An empty cell is no system prompt: rendered, it would be an empty system turn in every row.
    if system is None or system == "":
        return messages
    text = text_of(system, "'system'")
    if messages[0].role == "system":
        # Exporters write the system prompt both ways at once; only two different ones are a contradiction.
        if messages[0].content == text:
            return messages
        raise refuse(
            "late_system",
            "the row has two system prompts: the column 'system' and the first turn",
            found=f"'system': {shown(text)}; the first turn: {shown(messages[0].content)}",
            expected="one system prompt",
            remedy="remove one of the two",
        )
    return (Message("system", text), *messages)


def number_of(value: Any, column: str) -> float:
    """A finite number, or the text of one, as tables in text have it; a truth value, NaN and infinity are refused."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    # A score of NaN would pass every comparison as "not worse", and a bool is a verdict, not a score.
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise refuse(
        "bad_score",
        f"'{column}' is {shown(value)}",
        found="a number that is not finite" if isinstance(value, float) else named_type(value),
        expected="a finite number",
        remedy=f"write `{column}` as a number, or remove the row",
    )


def verdict_of(row: Row, column: str) -> bool:
    """Whether a column calls the response good (true, 1) or bad (false, 0); the texts of these will do."""
    value = row.get(column)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in VERDICT_WORDS:
            return VERDICT_WORDS[word]
    # 1.0 and 0.0 as well: a column with one missing value becomes float in pandas.
    elif isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise refuse(
        "bad_label",
        f"'{column}' is {shown(value)}",
        found=named_type(value),
        expected="true (a good response) or false (a bad one); 1 and 0 will do",
        remedy="write true or false",
    )


def optional_number(row: Row, column: str) -> float | None:
    value = row.get(column)
    return None if value is None else number_of(value, column)
