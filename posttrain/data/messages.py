"""Turns of a conversation, as files write them, to `Message`.

Two dialects of the same thing are known: `role`/`content` (OpenAI, most chat files) and `from`/`value` (ShareGPT).
What a turn may say is decided here, once for all formats:

- Text is a string, or a list of text parts, which are joined. Anything else is refused by name, also an `<image>`.
- Turns, calls and tools may be stored as text; a key that nothing reads is counted.
- A user's turn has text; an assistant's turn has text or a tool call; a tool's result and a system prompt may be empty.
- The arguments of a tool call are a mapping or the JSON text of one; they end as a mapping.
- Only known role names are read. A map given by the user for a role replaces that role's default names, so that
  a file that says `human` by mistake in place of `user` is refused, not guessed.

Which turn may follow which is decided in `order.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

from posttrain.data.dialogues import refuse_dialogue, turns_in
from posttrain.data.flags import FLAGS, SPANS, train_flag
from posttrain.data.media import MEDIA, has_media, refuse_placeholder
from posttrain.data.noted import KeyNotes, is_filled
from posttrain.data.order import place_of
from posttrain.data.parts import SPLIT_PARTS, split_parts
from posttrain.data.refusals import named_type, quoted, refuse, shown
from posttrain.data.roles import FUNCTION_CALL, Dialect, Rules, unknown_role
from posttrain.data.texts import bad_call, calls_of, clean, part_kind, stored, text_of
from posttrain.errors import RowError, nearest
from posttrain.types import Message, Role

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_SPELT_KEYS = frozenset(
    {"tool_calls", "function_call", "name", "tool_call_id", "train", "weight", "complete", *_REASONING_KEYS}
    | {"training", "trainable", "train_on_turn", "loss_weight", "loss_mask", "loss_scale"}
)
"""Keys that a slip of the pen may have been meant for; `mask` and `loss` are too near to ordinary words."""
TURN_KEYS = frozenset({*_SPELT_KEYS, *FLAGS, *SPANS})
"""Keys that a turn may have beside who speaks and what."""


def _message(turn: Any, dialect: Dialect, column: str, number: int, rules: Rules) -> Message:
    # Nearly all turns are a role and a string: they take this short way, and whatever is odd about the others is found
    # in the long one. Reading is as fast as the short way is.
    try:
        name, content = turn[dialect.role_key], turn[dialect.content_key]
        role = dialect.roles[name]
    except (KeyError, TypeError):
        name, content, role = _odd_turn(turn, dialect, column, number)
    is_plain = len(turn) == 2
    if is_plain and type(content) is str and role != FUNCTION_CALL:
        if role in ("user", "assistant") and (not content or content.isspace()):
            raise _empty_turn(role, column, number)
        if not content.isascii() or "\0" in content:
            clean(content, place_of(column, number))
        if "<" in content:
            refuse_placeholder(content, place_of(column, number))
        return Message(cast(Role, role), content)
    return _full_message(turn, content, role, column, number, dialect, rules.noted)


def _full_message(
    turn: Mapping[str, Any],
    content: Any,
    role: str,
    column: str,
    number: int,
    dialect: Dialect,
    noted: KeyNotes | None,
) -> Message:
    """A turn with more than a role and a string: tools, reasoning, flags, parts, null content."""
    place = place_of(column, number)
    _refuse_odd_keys(turn, dialect, place)
    if noted is not None and len(turn) > 2:
        noted.others("turn", turn, {dialect.role_key, dialect.content_key, *TURN_KEYS})

    # Calls come in four layouts: ShareGPT's turn of their own, `tool_calls`, the older `function_call`, and parts.
    calls: tuple[Mapping[str, Any], ...] = ()
    thoughts: list[str] = []
    if role == FUNCTION_CALL:
        parsed = stored(content)
        if parsed is None or isinstance(parsed, str):
            raise bad_call(f"{place} is a function call, but not JSON", content)
        calls, content, role = calls_of(parsed, place, noted), None, "assistant"
    elif is_filled(turn.get("tool_calls")):
        calls = calls_of(turn["tool_calls"], place, noted)
    # The older key counts where the newer one says nothing: rows that have both repeat the call.
    if not calls and is_filled(turn.get("function_call")):
        calls = calls_of(turn["function_call"], place, noted)
    if isinstance(content, list | tuple) and any(part_kind(part) in SPLIT_PARTS for part in content):
        thoughts, content, more_calls = split_parts(content, role, place, noted)
        calls += more_calls

    if calls and role != "assistant":
        raise bad_call(f"{place} is a {role}'s, but only the assistant calls tools", turn)
    if content is not None or not calls:
        content = "" if content == [] else text_of(content, f"the text of {place}", noted)
        if role in ("user", "assistant") and not calls and (not content or content.isspace()):
            raise _empty_turn(role, column, number)
        refuse_placeholder(content, place)

    return Message(
        role=cast(Role, role),
        content=content,
        tool_calls=calls,
        name=_optional_text(turn, "name", place),
        tool_call_id=_optional_text(turn, "tool_call_id", place),
        reasoning=_reasoning(turn, thoughts, place, noted),
        train=train_flag(turn, role, place, noted),
        complete=_complete_flag(turn, role, place),
    )


def _optional_text(turn: Mapping[str, Any], key: str, place: str) -> str | None:
    value = turn.get(key)
    return None if value is None else text_of(value, f"`{key}` in {place}")


def _reasoning(turn: Mapping[str, Any], thoughts: Sequence[str], place: str, noted: KeyNotes | None) -> str | None:
    """The thoughts of a turn; where two keys hold different ones, the first is read and the other noted."""
    text_of_key = {key: text for key in _REASONING_KEYS if (text := _optional_text(turn, key, place))}
    texts = list(text_of_key.values()) or (["".join(thoughts)] if thoughts else [])
    if noted is not None:
        for key, text in text_of_key.items():
            if text != texts[0]:
                noted.key("turn", key)
    return texts[0] if texts else None


def _complete_flag(turn: Mapping[str, Any], role: str, place: str) -> bool:
    value = turn.get("complete")
    if value is None or value is True or (value is False and role == "assistant"):
        return value is not False
    raise refuse(
        "bad_flag",
        f"`complete` in {place} is {shown(value)}" + ("" if role == "assistant" else f", in a turn of the {role}"),
        found=named_type(value),
        expected="true or false, in a turn of the assistant: false for an answer that was cut before its end",
        remedy="write true or false, or leave `complete` out for an answer that is whole",
    )


def _empty_turn(role: str, column: str, number: int) -> RowError:
    reason = "empty_response" if role == "assistant" else "empty_turn"
    allowed = "text or a tool call" if role == "assistant" else "text"
    return refuse(
        reason,
        f"{place_of(column, number)} ({role}) has no text",
        found="an empty text, or nothing but white space",
        expected=f"{allowed} in a turn of the {role}",
        remedy="write the text or remove the row; `bad_rows: skip` leaves such rows out and counts them",
    )


def _odd_turn(turn: Any, dialect: Dialect, column: str, number: int) -> tuple[str, Any, str]:
    """A turn that is no object, lacks one of its two keys, or names an unknown role.

    Only a missing content may be right: an assistant's turn that calls a tool.
    """
    place = place_of(column, number)
    keys = (dialect.role_key, dialect.content_key)
    if not isinstance(turn, Mapping):
        raise refuse(
            "wrong_shape",
            f"{place} is {named_type(turn)}, not an object",
            found=shown(turn),
            expected=f"an object with the keys {quoted(keys)}",
            remedy=f'write each turn as {{"{keys[0]}": ..., "{keys[1]}": ...}}',
        )
    name = turn.get(dialect.role_key)
    calls = is_filled(turn.get("tool_calls")) or is_filled(turn.get("function_call"))
    missing = [key for key in keys if key not in turn and not (key == dialect.content_key and calls)]
    if missing:
        guess = nearest(missing[0], [key for key in turn if key not in keys])
        raise refuse(
            "wrong_shape",
            f"{place} has no {quoted(missing)}",
            found=f"a turn with the keys {quoted(turn)}",
            expected=f"a turn with the keys {quoted(keys)}",
            remedy=f"rename `{guess}` to `{missing[0]}`"
            if guess
            else f"write {', '.join(f'`{key}`' for key in missing)} in every turn",
        )
    role = dialect.roles.get(name) if isinstance(name, str) else None
    if role is None:
        raise unknown_role(name, dialect, place)
    return cast(str, name), turn.get(dialect.content_key), role


def _refuse_odd_keys(turn: Mapping[str, Any], dialect: Dialect, place: str) -> None:
    for key, meant in _odd_keys(tuple(turn), dialect.role_key, dialect.content_key):
        if meant is not None:
            raise refuse(
                "unknown_key",
                f"{place} has the key {key!r}, which looks like {meant!r}",
                found=f"a turn with the keys {quoted(turn)}",
                expected=f"{quoted(sorted({dialect.role_key, dialect.content_key, *TURN_KEYS}))}",
                remedy=f"rename it to `{meant}`, or to something that is not close to a known key",
            )
        if has_media(turn[key]):
            raise refuse(
                "content_not_text",
                f"{place} carries {key!r}",
                found=f"{key!r}: {shown(turn[key])}",
                expected="text only",
                remedy="only text is trained on here: remove the key or the row",
            )


@functools.lru_cache(maxsize=1024)
def _odd_keys(keys: tuple[str, ...], role_key: str, content_key: str) -> tuple[tuple[str, str | None], ...]:
    """Keys that look like a known one that is absent (with the one meant) or carry no text (with None)."""
    known = {role_key, content_key, *TURN_KEYS}
    meant_keys = {role_key, content_key, *_SPELT_KEYS} - set(keys)
    odd_keys: list[tuple[str, str | None]] = [(key, None) for key in keys if key in MEDIA]
    for key in keys:
        if key in known or key in MEDIA:
            continue
        # Capitals and hyphens apart, the key is one that is read: `LOSS: false` would train what it is to spare.
        spelling = _spelt(key)
        meant = spelling if spelling in known and spelling not in keys else nearest(key, meant_keys)
        if meant is not None and _one_slip(key, meant):
            odd_keys.append((key, meant))
    return tuple(odd_keys)


def _one_slip(word: str, meant: str) -> bool:
    """Whether `word` is `meant` with a letter too many, too few, wrong or swapped, or another separator."""
    if _spelt(word) == meant:
        return True
    if abs(len(word) - len(meant)) > 1 or len(meant) < 4:
        return False
    if len(word) == len(meant):
        wrong = [i for i, (a, b) in enumerate(zip(word, meant, strict=True)) if a != b]
        return len(wrong) == 1 or (len(wrong) == 2 and sorted(word) == sorted(meant))
    short, long = sorted((word, meant), key=len)
    return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


def _spelt(key: str) -> str:
    """_spelt("Loss-Mask") -> "loss_mask"."""
    return key.strip().lower().replace("-", "_").replace(" ", "_")


# ---------------------------------------------------------------- conversations


def turns_of(value: Any, column: str, rules: Rules) -> tuple[Message, ...]:
    """A list of turns, or the text of one, to messages, each right in itself; their order is for `check_order`."""
    given = value
    if isinstance(value, str):
        parsed = stored(value)
        value = parsed if isinstance(parsed, list) or parsed is None else turns_in(value, rules) or given
        if isinstance(value, str):
            refuse_dialogue(value, f"'{column}'", rules)
    if not isinstance(value, list | tuple):
        raise refuse(
            "null_content" if given is None else "wrong_shape",
            f"'{column}' is {named_type(given)}, not a list of turns",
            found=shown(given),
            expected='a list such as [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}], '
            "or the JSON text of one",
            remedy=f"write `{column}` as a list of turns",
        )

    if not value:
        raise refuse(
            "empty_conversation",
            f"'{column}' has no turns",
            found="an empty list",
            expected="at least one turn",
            remedy="remove the row; `bad_rows: skip` leaves such rows out and counts them",
        )

    # A table of strings: each turn may be stored as text of its own.
    if isinstance(value[0], str):
        value = [turn if isinstance(parsed := stored(turn), str) or parsed is None else parsed for turn in value]
    first = value[0]  # one dialect a conversation
    dialect = rules.dialect(first) if isinstance(first, Mapping) else rules.openai
    return tuple([_message(turn, dialect, column, number, rules) for number, turn in enumerate(value, 1)])
