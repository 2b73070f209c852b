"""Rows to `Demonstration`: chat messages, ShareGPT, Alpaca, prompt and completion, bare text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from posttrain.data.dialogues import refuse_dialogue, turns_in
from posttrain.data.formats.columns import (
    Messages,
    Row,
    assistant_turn,
    continuation,
    one_turn_only,
    present,
    prompt_of,
    response_turns,
    user_turn,
    with_system,
)
from posttrain.data.media import refuse_placeholder
from posttrain.data.messages import turns_of
from posttrain.data.order import check_end, ordered
from posttrain.data.refusals import named_type, refuse, shown
from posttrain.data.roles import Rules
from posttrain.data.texts import stored, text_of, tools_of
from posttrain.types import Demonstration, Message, RowRef

CONVERSATIONS = ("messages", "conversations", "conversation")
"""The columns that a list of turns may stand in."""


def chat(row: Row, ref: RowRef, rules: Rules) -> Demonstration:
    """`messages` (or `conversations`): a list of turns in either dialect, with `system` and `tools` columns."""
    column = present(row, CONVERSATIONS)
    return _conversation(row, column, ref, rules)


def sharegpt(row: Row, ref: RowRef, rules: Rules) -> Demonstration:
    """`conversations` (or `messages`): a list of from/value turns, with `system` and `tools` columns."""
    column = present(row, ("conversations", "messages", "conversation"))
    return _conversation(row, column, ref, rules)


def _conversation(row: Row, column: str, ref: RowRef, rules: Rules) -> Demonstration:
    messages = turns_of(row.get(column), column, rules)
    if row.get("system"):
        messages = with_system(messages, row)
    messages = ordered(messages, column, rules)
    # A conversation that ends with the user has nothing to imitate after it, and its last answer was probably cut off.
    check_end(messages, column)
    return Demonstration(messages, ref, tools_of(row.get("tools"), rules.noted))


def alpaca(row: Row, ref: RowRef, rules: Rules, columns: tuple[str, str] = ("instruction", "output")) -> Demonstration:
    """`instruction`, `output`, and optionally `input`, `history` (pairs of question and answer), `system`.

    Instruction and input are joined by a newline, as in LLaMA-Factory; the chat template does the rest.

    Args:
        columns: what the instruction and the output are called.
    """
    instruction, output = columns
    for column in (instruction, "input", output):
        one_turn_only(row.get(column), column, rules)
    text = text_of(row.get(instruction), f"'{instruction}'")
    extra = row.get("input")
    if extra is not None and extra != "":
        extra = text_of(extra, "'input'")
        text = f"{text}\n{extra}" if text else extra
    turns = (
        # Before the row's own question: it is what was said earlier, and its answers train like any.
        *_history(row.get("history"), rules),
        user_turn(text, instruction, rules),
        assistant_turn(row.get(output), output, rules),
    )
    return Demonstration(with_system(turns, row), ref, tools_of(row.get("tools"), rules.noted))


def _history(value: Any, rules: Rules) -> Messages:
    value = stored(value)
    if value is None:
        return ()
    pairs = value if isinstance(value, list | tuple) else [value]
    turns: list[Message] = []
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise refuse(
                "wrong_shape",
                f"entry {number} of 'history' is {named_type(pair)}, not a pair",
                found=shown(pair),
                expected='a list of pairs: [["first question", "first answer"], ...]',
                remedy="write `history` as pairs, or leave it out",
            )
        turns.append(user_turn(pair[0], f"question {number} of history", rules))
        turns.append(assistant_turn(pair[1], f"answer {number} of history", rules))
    return tuple(turns)


def prompt_completion(row: Row, ref: RowRef, rules: Rules, column: str = "completion") -> Demonstration:
    """`prompt` and `completion`, strings or turns. Only the completion trains, whatever turns the prompt has.

    Args:
        column: what the completion is called.
    """
    prompt = prompt_of(row, rules)
    completion = continuation(prompt, response_turns(row.get(column), column, rules), column, rules)
    # An answer inside the prompt is context here; in `chat` the same turn would train.
    context = tuple([_untrained(message) for message in prompt])
    return Demonstration(context + completion, ref, tools_of(row.get("tools"), rules.noted))


def _untrained(message: Message) -> Message:
    # A flag that the row sets itself is kept.
    return replace(message, train=False) if message.role == "assistant" and message.train is None else message


def text(row: Row, ref: RowRef, rules: Rules) -> Demonstration:
    """`text`: bare text with neither question nor answer, one turn of the assistant alone (`Demonstration.is_text`)."""
    words = text_of(row.get("text"), "'text'")
    if not words or words.isspace():
        raise refuse(
            "empty_text",
            "'text' has no text",
            found="an empty text, or nothing but white space",
            expected="the text to learn",
            remedy="remove the row; `bad_rows: skip` leaves such rows out and counts them",
        )
    if not rules.keep_dialogues and turns_in(words, rules) is not None:
        raise refuse(
            "dialogue_as_text",
            "'text' holds the turns of a conversation",
            found=shown(words),
            expected="text that trains as it stands",
            remedy="read it as a conversation, `format: chat, columns: {messages: text}`, or, to train it as it "
            "stands, write `dialogues_in_text: keep`",
        )
    refuse_dialogue(words, "'text'", rules)
    refuse_placeholder(words, "'text'")
    return Demonstration((Message("assistant", words),), ref)
