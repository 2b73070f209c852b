"""What a strategy makes of the question and of answers to ask the model about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from posttrain.errors import ConfigError
from posttrain.types import Message


def question_text(messages: Sequence[Message]) -> str:
    """The question as a prompt quotes it: the only turn's text, or all turns with their roles, without system turns.

    Calls are quoted as `add({"a": 2})`: a result without its call would be read as an answer to nothing.
    """
    turns = [message for message in messages if message.role != "system"]
    if len(turns) == 1:
        return turns[0].content or ""
    return "\n".join(f"{turn.role}: {_said(turn)}" for turn in turns)


def _said(turn: Message) -> str:
    functions = [call["function"] for call in turn.tool_calls]
    calls = [f"{one['name']}({json.dumps(one['arguments'], ensure_ascii=False)})" for one in functions]
    return "\n".join([*([turn.content] if turn.content else []), *calls])


def asking(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """A conversation that asks `text` under the system turns of another one."""
    return (*(message for message in messages if message.role == "system"), Message("user", text))


def last_user(messages: Sequence[Message]) -> int:
    """Where the turn stands that a strategy writes into.

    Raises:
        ConfigError: nobody asks anything.
    """
    for at in reversed(range(len(messages))):
        if messages[at].role == "user":
            return at
    raise ConfigError(
        "the strategy writes into the last turn of the user, and the prompt has none",
        found=", ".join(message.role for message in messages),
        expected="a turn with the role `user`",
        remedy="add the question as a user's turn, or use another strategy for this prompt",
    )


def with_question(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The conversation with another text in the last turn of the user."""
    at = last_user(messages)
    return (*messages[:at], replace(messages[at], content=text), *messages[at + 1 :])


def with_system(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The conversation with a text behind its system turn, which is made if there is none."""
    if messages and messages[0].role == "system":
        own = messages[0].content or ""
        return (replace(messages[0], content=f"{own}\n\n{text}" if own else text), *messages[1:])
    return (Message("system", text), *messages)
