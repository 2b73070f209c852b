"""Repairs of conversations that chat templates refuse: each is off unless it is asked for, and each is counted.

read("chats.jsonl", repairs={"system_into_user": True, "join_same_role": True, "first_greeting": "drop"})

The formats repair a conversation before its order is checked (`order.ordered`), both sides of a pair alike, so that
what trains is what a template writes. A repair changes the rows only: whoever speaks to the model later with a system
prompt has to put it into the user's turn, too, since its template refuses it there as it does here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from posttrain.data.noted import KeyNotes
from posttrain.data.refusals import named_type, refuse, shown
from posttrain.errors import ConfigError, unknown
from posttrain.types import Demonstration, Example, Message

Messages = tuple[Message, ...]
Greeting = Literal["refuse", "drop", "keep"]
GREETINGS: tuple[Greeting, ...] = ("refuse", "drop", "keep")
SEPARATOR = "\n\n"
"""Between two texts that become one turn, where `join_same_role` names no other."""

DONE: Mapping[str, str] = {
    "system_into_user": "system turns put into the user's turn that follows",
    "join_same_role": "turns joined to the one before them, of the same role",
    "first_greeting: drop": "greetings of the assistant, before any question, dropped",
    "first_greeting: keep": "greetings of the assistant, before any question, kept as context that does not train",
}
"""Repair -> what its count counts; in pairs, on each side."""


@dataclass(frozen=True, slots=True)
class Repairs:
    """What is repaired: Repairs(system_into_user=True, join_same_role="\\n", first_greeting="drop")."""

    system_into_user: bool = False
    """Put the text of a system turn before that of the user's turn that follows, with an empty line between."""
    join_same_role: bool | str = False
    """Make one turn of several that follow each other and have the same role; a text is what stands between theirs."""
    first_greeting: Greeting = "refuse"
    """What becomes of an answer that stands before any question: `drop` it, or `keep` it as context."""

    @classmethod
    def of(cls, value: Any) -> Repairs:
        """From a map, as a recipe has it; None repairs nothing. Raises ConfigError, UnknownKeyError."""
        if isinstance(value, cls):
            return value
        if value is None:
            return NONE
        if not isinstance(value, Mapping):
            raise _wrong("repairs", value, "a map from a repair to whether it is wanted")
        known = [entry.name for entry in fields(cls)]
        for name in value:
            if name not in known:
                raise unknown("repair", name, known, problem=f"`repairs` has no `{name}`", otherwise="leave it out")
        made = cls(**value)
        if not isinstance(made.system_into_user, bool):
            raise _wrong("repairs.system_into_user", made.system_into_user, "true or false")
        if not isinstance(made.join_same_role, bool | str):
            raise _wrong("repairs.join_same_role", made.join_same_role, "true, false, or the text between two turns")
        if made.first_greeting not in GREETINGS:
            raise _wrong("repairs.first_greeting", made.first_greeting, "`refuse`, `drop` or `keep`")
        return made

    def before_order(self, messages: Messages, column: str, noted: KeyNotes | None) -> Messages:
        """The turns of a conversation or a prompt, repaired as far as their order goes."""
        if self.system_into_user:
            # The first turn stays for `folded`: a `system` column may still be put before it.
            messages = (*messages[:1], *_systems_folded(messages[1:], noted))
        messages = self.joined(messages, column, noted)
        start = 1 if messages[0].role == "system" else 0
        if self.first_greeting == "refuse" or not _is_greeting(messages[start : start + 1]):
            return messages
        _note(noted, f"first_greeting: {self.first_greeting}")
        if self.first_greeting == "keep":
            # Kept, it is no answer to anything: trained, the model would learn to speak before it is asked.
            kept = messages[start]
            greeting = kept if kept.train else replace(kept, train=False)
            return (*messages[:start], greeting, *messages[start + 1 :])
        return (*messages[:start], *messages[start + 1 :]) if len(messages) > start + 1 else messages

    def joined(self, messages: Messages, column: str, noted: KeyNotes | None) -> Messages:
        """The turns with those of one role in a row made one. Raises RowError for two that no single turn can hold."""
        if self.join_same_role is False:
            return messages
        separator = SEPARATOR if self.join_same_role is True else self.join_same_role
        turns: list[Message] = []
        for number, message in enumerate(messages, 1):
            if not turns or message.role != turns[-1].role or message.role == "tool":
                turns.append(message)
                continue
            if (why := _unjoinable(turns[-1], message)) is not None:
                raise refuse(
                    "repeated_role",
                    f"turns {number - 1} and {number} of '{column}' are both of the {message.role}, and cannot be "
                    f"joined: {why}",
                    found=f"{shown(turns[-1].content, 40)} and {shown(message.content, 40)}",
                    expected="two turns that one turn can hold: thoughts, then text, then calls, with one flag",
                    remedy="correct the row or remove it; `bad_rows: skip` leaves such rows out and counts them",
                )
            turns[-1] = _joined(turns[-1], message, separator)
            _note(noted, "join_same_role")
        return tuple(turns)

    def folded(self, example: Example, noted: KeyNotes | None) -> Example:
        """The example without a system turn at its beginning, wherever the row had it: in a turn or in a column."""
        if not self.system_into_user:
            return example
        if isinstance(example, Demonstration):
            messages = _systems_folded(example.messages, noted)
            return example if messages is example.messages else replace(example, messages=messages)
        prompt = _systems_folded(example.prompt, noted)
        return example if prompt is example.prompt else replace(example, prompt=prompt)


NONE = Repairs()


def repair_notes(done: Mapping[str, int]) -> tuple[str, ...]:
    """A sentence for each repair that was needed: repair_notes({"join_same_role": 12})."""
    return tuple(f"{DONE[name]}: {count:,} (`repairs`)" for name, count in sorted(done.items()))


def _systems_folded(messages: Messages, noted: KeyNotes | None) -> Messages:
    """Each system turn put into the next turn of the user; one with none behind it stays, and is refused later."""
    if all(message.role != "system" for message in messages):
        return messages
    turns: list[Message] = []
    waiting: list[Message] = []
    for message in messages:
        if message.role == "system":
            waiting.append(message)
            continue
        if waiting and message.role == "user":
            message = _with_systems(waiting, message)
            for _ in waiting:
                _note(noted, "system_into_user")
            waiting = []
        turns.append(message)
    return messages if waiting else tuple(turns)


def _with_systems(systems: list[Message], user: Message) -> Message:
    turns = [*systems, user]
    # A turn trains in full or not at all: a flag for a part of it cannot be kept.
    if len({bool(turn.train) for turn in turns}) > 1:
        raise refuse(
            "bad_flag",
            "a system turn is to stand in the user's, and only one of the two has a flag that trains it",
            found=", ".join(f"{turn.role}: train {turn.train}" for turn in turns),
            expected="one flag for both, since they become one turn",
            remedy="leave `train` out of both turns, or set it in both",
        )
    return replace(user, content=SEPARATOR.join([text for turn in turns if (text := turn.content)]))


def _is_greeting(turns: Messages) -> bool:
    """Whether an answer that stands first is words alone; a call that nobody asked for is no greeting."""
    return bool(turns) and turns[0].role == "assistant" and not turns[0].tool_calls


def _unjoinable(first: Message, second: Message) -> str | None:
    """Why one turn cannot say what two say in this order; None where it can."""
    if first.tool_calls and (second.content or second.reasoning):
        return "the text of the second would move before the calls of the first"
    if second.reasoning and first.content:
        return "the thoughts of the second would move before the text of the first"
    if first.train != second.train:
        return "one of them trains and the other does not"
    if not first.complete:
        return "the first was cut before its end"
    return "their names differ" if first.name != second.name else None


def _joined(first: Message, second: Message, separator: str) -> Message:
    contents = [text for text in (first.content, second.content) if text]
    thoughts = [text for text in (first.reasoning, second.reasoning) if text]
    return replace(
        first,
        content=separator.join(contents) if contents else first.content,
        reasoning=separator.join(thoughts) if thoughts else None,
        tool_calls=first.tool_calls + second.tool_calls,
        complete=second.complete,
    )


def _note(noted: KeyNotes | None, repair: str) -> None:
    if noted is not None:
        noted.repair(repair)


def _wrong(name: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(
        f"`{name}` is {shown(value)}",
        found=named_type(value),
        expected=expected,
        remedy="write `repairs: {system_into_user: true, join_same_role: true, first_greeting: drop}`, or those that "
        "are needed",
    )
