"""Which turn may follow which: the last check on a conversation, after each of its turns was read by `messages.py`.

The rules are those that chat templates assume. A template given anything else renders something, seldom what was meant.
"""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.refusals import quoted, refuse
from posttrain.data.repairs import NONE
from posttrain.data.roles import Rules
from posttrain.errors import RowError
from posttrain.types import Message


def ordered(messages: tuple[Message, ...], column: str, rules: Rules) -> tuple[Message, ...]:
    """The turns, repaired as the rules say, if they can follow one another; `column` names them in the error."""
    repairs = rules.repairs
    if repairs is NONE:
        check_order(messages, column)
        return messages
    messages = repairs.before_order(messages, column, rules.noted)
    check_order(messages, column, greeting=repairs.first_greeting == "keep")
    return messages


def check_order(messages: Sequence[Message], column: str, *, greeting: bool = False) -> None:
    """Refuses a conversation whose turns cannot follow one another; `column` names it in the error.

    Args:
        greeting: an answer may stand before the first question.
    """
    previous: str | None = None
    for number, message in enumerate(messages, 1):
        role = message.role
        if role == "tool":
            # Results follow the call or one another: several calls of one turn have several results.
            if previous != "tool" and not (number > 1 and messages[number - 2].tool_calls):
                raise _orphan(column, number, "no tool call comes before it")
            if message.tool_call_id is not None:
                _check_call_id(messages, number, column)
        elif role == "system":
            # Most templates write the system prompt at the top, and refuse, move or drop it elsewhere.
            if number > 1:
                raise _late_system(column, number)
        # Templates write two headers in a row for such turns, which no model has seen; some refuse them.
        elif role == previous:
            raise _repeated_role(role, column, number)
        elif role == "assistant" and previous in (None, "system") and (message.tool_calls or not greeting):
            raise _starts_with_assistant(column, number)
        previous = role


def check_end(messages: Sequence[Message], column: str) -> None:
    """Refuses a conversation to learn from that does not end with an answer."""
    role = messages[-1].role
    if role == "assistant":
        return
    raise refuse(
        "unanswered_turn",
        f"'{column}' ends with a turn of the {role}, which nobody answers",
        found=f"the roles {quoted(message.role for message in messages[-4:])} at the end",
        expected="a conversation whose last turn is the assistant's",
        remedy="add the answer or remove the last turn; "
        f"rows that are prompts to be answered read as `format: prompts, columns: {{prompt: {column}}}`",
    )


def check_prompt(messages: Sequence[Message], column: str) -> None:
    """Refuses a prompt that is not waiting for an answer."""
    role = messages[-1].role
    if role in ("user", "tool"):
        return
    if role == "system":
        raise refuse(
            "wrong_shape",
            f"'{column}' is a system prompt without a question",
            found="one turn of the system",
            expected="a prompt that ends with a turn of the user or a tool's result",
            remedy="add the user's turn or remove the row",
        )
    raise refuse(
        "answered_prompt",
        f"'{column}' ends with the assistant, so there is nothing left to answer",
        found=f"the roles {quoted(message.role for message in messages[-4:])} at the end",
        expected="a prompt that ends with a turn of the user or a tool's result",
        remedy="move the last turn into the response",
    )


def _check_call_id(messages: Sequence[Message], number: int, column: str) -> None:
    caller = next(message for message in reversed(messages[: number - 1]) if message.role != "tool")
    ids = [call["id"] for call in caller.tool_calls if "id" in call]
    call_id = messages[number - 1].tool_call_id
    if ids and call_id not in ids:  # where the calls have no ids, results belong to them in their order
        raise _orphan(column, number, f"its tool_call_id {call_id!r} is none of the calls' ids {quoted(ids)}")


def _orphan(column: str, number: int, why: str) -> RowError:
    return refuse(
        "tool_without_call",
        f"{place_of(column, number)} is a tool's result, but {why}",
        found="a tool's result",
        expected="an assistant's turn with tool_calls, then one result for each call",
        remedy="put the call in `tool_calls` of the assistant's turn before it; where calls are written out in the "
        "assistant's text, read results as turns of the user: `roles: {tool: user, user: user}` "
        "(in a from/value file `roles: {tool: user, human: user}`)",
    )


def _late_system(column: str, number: int) -> RowError:
    return refuse(
        "late_system",
        f"{place_of(column, number)} is a system prompt in the middle of the conversation",
        found=f"a system turn at position {number}",
        expected="at most one system prompt, as the first turn",
        remedy="move the text to the first turn or into a turn of the user; `repairs: {system_into_user: true}` puts "
        "each system turn of the file into the user's turn that follows it, and counts them",
    )


def _repeated_role(role: str, column: str, number: int) -> RowError:
    return refuse(
        "repeated_role",
        f"turns {number - 1} and {number} of '{column}' are both of the {role}",
        found=f"two turns of the {role} in a row",
        expected="turns of the user and the assistant in alternation (only tool results may follow one another)",
        remedy="join the two turns if they belong together (`repairs: {join_same_role: true}` does, and counts them), "
        "or remove the row; `bad_rows: skip` leaves such rows out and counts them",
    )


def _starts_with_assistant(column: str, number: int) -> RowError:
    return refuse(
        "starts_with_assistant",
        f"'{column}' starts with the assistant",
        found=f"the assistant in turn {number}, before any turn of the user",
        expected="an optional system prompt, then the user, then the assistant",
        remedy="remove the first turn, put what it answers before it, or check that `roles` does not swap the two; for "
        "greetings, `repairs: {first_greeting: drop}` leaves them out, and `keep` keeps them as context",
    )


def place_of(column: str, number: int) -> str:
    return f"turn {number} of '{column}'"
