"""What a program passes where examples or messages are taken: the records themselves, or what they are written as.

as_examples([{"prompt": "2 + 2?", "completion": "4"}])     # Examples, as `read` makes them
as_messages([{"role": "user", "content": "2 + 2?"}])       # (Message("user", "2 + 2?"),)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.arguments import described
from posttrain.data.messages import turns_of
from posttrain.data.read import Examples, read
from posttrain.data.roles import DEFAULT_RULES
from posttrain.errors import ConfigError, RowError
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, StepwiseFeedback, Task

Conversation = str | Message | Mapping[str, Any] | Iterable[Message | Mapping[str, Any]]
"""What `as_messages` takes."""
EXAMPLES = (Demonstration, Comparison, Feedback, StepwiseFeedback, Task)


def as_examples(data: Any, **options: Any) -> Iterable[Example]:
    """Examples as they are; rows, tables and paths are read, with the options of `posttrain.data.read.read`.

    An iterator is put in a list, since every reader of examples goes over them more than once.

    Raises what `read` raises; ConfigError for a list in which some items are examples and others are not.
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, Iterator):
        data = list(data)
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        records = [isinstance(item, EXAMPLES) for item in data]
        if all(records):  # also of none: what an empty list means is for its reader to say
            return data
        if any(records):
            place = records.index(False)
            raise ConfigError(
                f"item {place + 1} of the examples is none",
                found=described(data[place]),
                expected="examples alone (Demonstration, Comparison, Feedback, Task), or rows alone",
                remedy="pass rows as a list of their own, or read them first: `pt.read(rows)`",
            )
    elif _yields_examples(data):
        return data
    return read(data, **options)


def _yields_examples(data: Any) -> bool:
    """Whether an object that is no list, and can be iterated again, gives examples: looks at its first item."""
    if isinstance(data, str | bytes | Path | Mapping | type) or not isinstance(data, Iterable):
        return False
    return isinstance(next(iter(data), None), EXAMPLES)


def as_messages(prompt: Any) -> tuple[Message, ...]:
    """A conversation's messages from a user's text, one turn, or a list of turns, each a `Message` or an object.

    as_messages("2 + 2?")                                  # (Message("user", "2 + 2?"),)
    as_messages([{"from": "human", "value": "2 + 2?"}])    # the same: the dialects of files are known

    Raises:
        ConfigError: there are no turns, or one of them is neither; it is named with what is wrong in it.
    """
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if isinstance(prompt, Message | Mapping):
        prompt = (prompt,)
    if isinstance(prompt, Iterable) and not isinstance(prompt, bytes | type):
        turns = list(prompt)
        if all(isinstance(turn, Message) for turn in turns) and turns:
            return tuple(turns)
        if turns and all(isinstance(turn, Message | Mapping) for turn in turns):
            return tuple(turn if isinstance(turn, Message) else _message(turn, at) for at, turn in enumerate(turns, 1))
        odd = next((turn for turn in turns if not isinstance(turn, Message | Mapping)), prompt)
    else:
        odd = prompt
    raise ConfigError(
        "a conversation is a list of turns",
        found=described(odd),
        expected="a user's text, or turns as posttrain.types.Message or as objects with `role` and `content`",
        example='encoder.prompt([{"role": "user", "content": "2 + 2?"}])',
        remedy='write each turn as `{"role": "user", "content": "..."}`',
    )


def _message(turn: Mapping[str, Any], number: int) -> Message:
    try:
        return turns_of([turn], "messages", DEFAULT_RULES)[0]
    except RowError as error:  # there is no row to mend here, but an argument
        # A file's roles can be mapped, those of an argument are simply written as they are called here.
        remedy = "write one of the roles that are expected" if "`roles:" in error.remedy else error.remedy
        raise ConfigError(
            error.problem.replace("turn 1 of 'messages'", f"turn {number} of the conversation"),
            found=error.found,
            expected=error.expected,
            remedy=remedy,
        ) from None
