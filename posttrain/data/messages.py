"""Turns of a conversation, as files write them, to `Message`.

Two dialects of the same thing are known: `role`/`content` (OpenAI, most chat files) and `from`/`value` (ShareGPT).
What a turn may say is settled here, once for all formats:

- Text is a string, or a list of text parts, which are joined. Anything else is refused by name.
- A user's turn has text; an assistant's turn has text or a tool call; a tool's result and a system prompt may be empty.
- The arguments of a tool call are a mapping or the JSON text of one; they end as a mapping.
- Only known role names are read. A map given by the user for a role replaces that role's default names, so that
  a file that says `human` by mistake in place of `user` is refused, not guessed.

Which turn may follow which is settled in `order.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

from posttrain.data.order import place_of
from posttrain.data.refusals import named_type, quoted, refuse, shown
from posttrain.data.roles import FUNCTION_CALL, Dialect, Rules, unknown_role
from posttrain.data.texts import bad_call, calls_of, clean, json_value, text_of
from posttrain.errors import RowError, nearest
from posttrain.types import Message, Role

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TURN_KEYS = frozenset(
    {"tool_calls", "function_call", "name", "tool_call_id", "train", "weight", "complete", *_REASONING_KEYS}
)
_NOT_TEXT = frozenset({"image", "images", "audio", "audios", "video", "videos"})


def _turn(turn: Any, dialect: Dialect, column: str, number: int) -> Message:
    try:
        name, content = turn[dialect.role_key], turn[dialect.content_key]
        role = dialect.roles[name]
    except (KeyError, TypeError):
        name, content, role = _odd_turn(turn, dialect, column, number)
    plain = len(turn) == 2
    if plain and type(content) is str and role != FUNCTION_CALL:
        if role in ("user", "assistant") and (not content or content.isspace()):
            raise _empty(role, column, number)
        if not content.isascii() or "\0" in content:
            clean(content, place_of(column, number))
        return Message(cast(Role, role), content)
    return _full_turn(turn, content, role, column, number, dialect)


def _full_turn(turn: Mapping[str, Any], content: Any, role: str, column: str, number: int, dialect: Dialect) -> Message:
    """A turn with more than a role and a string: tools, reasoning, flags, parts, null content."""
    place = place_of(column, number)
    _refuse_odd_keys(turn, dialect, place)
    calls: tuple[Mapping[str, Any], ...] = ()
    if role == FUNCTION_CALL:
        parsed = json_value(content) if isinstance(content, str) else content
        if parsed is None:
            raise bad_call(f"{place} is a function call, but not JSON", content)
        calls, content, role = calls_of(parsed, place), None, "assistant"
    elif turn.get("tool_calls"):
        calls = calls_of(turn["tool_calls"], place)
    elif turn.get("function_call"):
        calls = calls_of(turn["function_call"], place)
    if calls and role != "assistant":
        raise bad_call(f"{place} is a {role}'s, but only the assistant calls tools", turn)
    if content is not None or not calls:
        content = "" if content == [] else text_of(content, f"the text of {place}")
        if role in ("user", "assistant") and not calls and (not content or content.isspace()):
            raise _empty(role, column, number)
    return Message(
        role=cast(Role, role),
        content=content,
        tool_calls=calls,
        name=_optional_text(turn, "name", place),
        tool_call_id=_optional_text(turn, "tool_call_id", place),
        reasoning=next((text for key in _REASONING_KEYS if (text := _optional_text(turn, key, place))), None),
        train=_train_flag(turn, place),
        complete=_complete_flag(turn, role, place),
    )


def _optional_text(turn: Mapping[str, Any], key: str, place: str) -> str | None:
    value = turn.get(key)
    return None if value is None else text_of(value, f"`{key}` in {place}")


def _train_flag(turn: Mapping[str, Any], place: str) -> bool | None:
    value = turn.get("train")
    key, allowed = "train", "true or false"
    if value is None:
        value = turn.get("weight")
        key, allowed = "weight", "0 or 1"
    if value is None or isinstance(value, bool):
        return value
    if key == "weight" and value in (0, 1):
        return bool(value)
    raise refuse(
        "bad_flag",
        f"`{key}` in {place} is {shown(value)}",
        found=named_type(value),
        expected=f"{allowed}: whether this turn trains",
        remedy=f"write {allowed}, or leave `{key}` out to follow the rule of the run",
    )


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


def _empty(role: str, column: str, number: int) -> RowError:
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
    calls = turn.get("tool_calls") or turn.get("function_call")
    missing = [key for key in keys if key not in turn and not (key == dialect.content_key and calls)]
    if missing:
        guess = nearest(missing[0], [key for key in turn if key not in keys])
        raise refuse(
            "wrong_shape",
            f"{place} has no {quoted(missing)}",
            found=f"a turn with the keys {quoted(turn)}",
            expected=f"a turn with the keys {quoted(keys)}",
            remedy=f"rename {guess!r} to {missing[0]!r}" if guess else f"write {quoted(missing)} in every turn",
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
                expected=f"{quoted(sorted({dialect.role_key, dialect.content_key, *_TURN_KEYS}))}",
                remedy=f"rename it to {meant!r}, or to something that is not close to a known key",
            )
        if turn[key]:
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
    known = {role_key, content_key, *_TURN_KEYS}
    odd: list[tuple[str, str | None]] = [(key, None) for key in keys if key in _NOT_TEXT]
    for key in keys:
        meant = nearest(key, known - set(keys)) if key not in known and key not in _NOT_TEXT else None
        if meant is not None and _one_slip(key, meant):
            odd.append((key, meant))
    return tuple(odd)


def _one_slip(word: str, meant: str) -> bool:
    """Whether `word` is `meant` with a letter too many, too few, wrong or swapped, or another separator."""
    if word.lower().replace("-", "_").replace(" ", "_") == meant:
        return True
    if abs(len(word) - len(meant)) > 1 or len(meant) < 4:
        return False
    if len(word) == len(meant):
        wrong = [i for i, (a, b) in enumerate(zip(word, meant, strict=True)) if a != b]
        return len(wrong) == 1 or (len(wrong) == 2 and sorted(word) == sorted(meant))
    short, long = sorted((word, meant), key=len)
    return any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


# ---------------------------------------------------------------- conversations


def turns_of(value: Any, column: str, rules: Rules) -> tuple[Message, ...]:
    """A list of turns to messages, each right in itself; their order is for `check_order`."""
    if not isinstance(value, list | tuple):
        raise refuse(
            "null_content" if value is None else "wrong_shape",
            f"'{column}' is {named_type(value)}, not a list of turns",
            found=shown(value),
            expected='a list such as [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]',
            remedy=f"write '{column}' as a list of turns",
        )
    if not value:
        raise refuse(
            "empty_conversation",
            f"'{column}' has no turns",
            found="an empty list",
            expected="at least one turn",
            remedy="remove the row; `bad_rows: skip` leaves such rows out and counts them",
        )
    first = value[0]
    dialect = rules.dialect(first) if isinstance(first, Mapping) else rules.openai
    return tuple([_turn(turn, dialect, column, number) for number, turn in enumerate(value, 1)])
