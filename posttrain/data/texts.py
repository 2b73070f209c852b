"""Text, tool calls and tool descriptions as rows write them, checked and in one layout.

The lowest step of reading: `messages.py` and the formats call it for every text and every call of a row.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping
from typing import Any

from posttrain.data.flags import refuse_part_flag
from posttrain.data.noted import KeyNotes
from posttrain.data.refusals import named_type, quoted, refuse, shown
from posttrain.errors import RowError


def clean(text: str, place: str) -> str:
    """The text itself, if a tokenizer can take it; `place` names it in the error."""
    if "\0" in text:
        raise refuse(
            "bad_character",
            f"{place} holds a NUL character at position {text.index(chr(0))}",
            found=shown(text),
            expected="text without U+0000",
            remedy="the text was damaged before it was written here: mend or remove the row",
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise refuse(
                "bad_character",
                f"{place} holds half of a surrogate pair at position {error.start}",
                found=ascii(text[error.start : error.start + 1]),
                expected="whole characters; an emoji escaped as JSON is two \\u escapes, for example \\ud83d\\ude00",
                remedy="a string was cut in the middle of a character: write the row again from its source",
            ) from None
    return text


def text_of(value: Any, place: str, noted: KeyNotes | None = None) -> str:
    """A string, or a list of text parts joined: [{"type": "text", "text": "a"}, ...] -> "a..."."""
    if type(value) is str:
        return clean(value, place)
    if value is None:
        raise refuse(
            "null_content",
            f"{place} is null",
            found="null",
            expected="a string",
            remedy="remove the row, or write the text; only an assistant's turn with tool_calls may have null content",
        )
    if isinstance(value, list | tuple) and value:
        return "".join([_text_part(part, f"part {number} of {place}", noted) for number, part in enumerate(value, 1)])
    raise refuse(
        "content_not_text",
        f"{place} is {named_type(value)}, not text",
        found=shown(value),
        expected='a string, or a list of text parts such as [{"type": "text", "text": "..."}]',
        remedy="write the text as a JSON string",
    )


TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of a part that are text: OpenAI's chat, and its Responses."""
THOUGHT_PARTS = ("reasoning", "thinking")
CALL_PARTS = ("tool_call",)
_PART_KEYS = ("text", "value", "reasoning", "thinking")
"""Where a part's text stands: in most files, in LLaMA-Factory's, in Anthropic's."""


def part_kind(part: Any) -> str | None:
    """The type of a part of a content, or None if it is no such part."""
    if not isinstance(part, Mapping):
        return None
    kind = part.get("type")
    if isinstance(kind, str) and kind:
        return kind
    return "text" if any(isinstance(part.get(key), str) for key in ("text", "value")) else None


def _text_part(part: Any, place: str, noted: KeyNotes | None) -> str:
    kind = part_kind(part)
    if kind in TEXT_PARTS:
        return part_text(part, place, noted)
    if isinstance(part, Mapping):
        found = f"a part of type {part['type']!r}" if part.get("type") else f"a part with the keys {quoted(part)}"
    else:
        found = f"{named_type(part)}: {shown(part)}"
    raise refuse(
        "content_not_text",
        f"{place} is not text",
        found=found,
        expected='parts of the type "text": {"type": "text", "text": "..."}',
        remedy="only text is trained on here: remove the part or the row",
    )


def part_text(part: Mapping[str, Any], place: str, noted: KeyNotes | None) -> str:
    """The text of a part, under whichever of its usual keys it stands."""
    if len(part) > 1:
        refuse_part_flag(part, place)
    if noted is not None:
        noted.others("part", part)
    key = next((key for key in _PART_KEYS if part.get(key) is not None), None)
    if key is None and not any(name in part for name in _PART_KEYS):
        raise refuse(
            "content_not_text",
            f"{place} has no text",
            found=f"a part with the keys {quoted(part)}",
            expected='the text under "text": {"type": "text", "text": "..."}',
            remedy='name the text\'s key "text"',
        )
    return text_of(None if key is None else part[key], place, noted)


# ---------------------------------------------------------------- values stored as text


def stored(value: Any) -> Any:
    """A nested value, or the text that a file stored it as: JSON, JSON of JSON, or Python's notation.

    stored('[{"role": "user"}]') -> [{"role": "user"}]        stored("null") -> None        stored("add(2)") -> "add(2)"
    """
    # Tables without nested columns store JSON as text, and some pipelines do it twice.
    for _ in range(_STORED_DEPTH):
        if not isinstance(value, str):
            return value
        text = value.strip()
        if not text:
            return None
        # "4" and "true" are JSON too, and as an answer they are meant as texts: only what nests is parsed.
        if text[0] not in _STORED_BEGINS and text != "null":
            return value
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            return _python_value(text, value)
        if parsed == value:
            return value
        value = parsed
    return value


_STORED_BEGINS = '[{"'
_STORED_DEPTH = 3


def _python_value(text: str, otherwise: Any) -> Any:
    """`str(row)` of Python: [{'role': 'user', 'content': None}]; literals only, nothing is run."""
    if text[0] not in "[{":
        return otherwise
    try:
        with warnings.catch_warnings():  # prose such as "[1](x)" compiles with a warning
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return otherwise


# ---------------------------------------------------------------- tools


def tools_of(value: Any, noted: KeyNotes | None = None) -> tuple[Mapping[str, Any], ...]:
    """The `tools` column, a list or the text of one, in the OpenAI layout; bare functions are wrapped."""
    tools = stored(value)
    if tools is None:
        return ()
    if not isinstance(tools, list | tuple):
        raise _bad_tools(f"`tools` is {named_type(tools)}", value)
    return tuple([_tool(stored(tool), number, noted) for number, tool in enumerate(tools, 1)])


def _tool(tool: Any, number: int, noted: KeyNotes | None) -> Mapping[str, Any]:
    function = stored(tool.get("function", tool)) if isinstance(tool, Mapping) else tool
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _bad_tools(f"tool {number} has no name", tool)
    if noted is not None:
        noted.others("tool", tool)
        if function is not tool:
            noted.others("tool", function)
    schema = function.get("parameters")  # Arrow cannot hold schemas of different shapes, so files store them as text
    if isinstance(schema, str) and isinstance(stored(schema), Mapping):
        function = {**function, "parameters": stored(schema)}
    if "function" not in tool:
        return {"type": "function", "function": function}
    return tool if function is tool["function"] else {**tool, "function": function}


def _bad_tools(problem: str, value: Any) -> RowError:
    return refuse(
        "bad_tools",
        problem,
        found=shown(value),
        expected='a list such as [{"type": "function", "function": {"name": "add", "parameters": {...}}}], '
        "or the JSON text of one",
        remedy="write the tools as the chat template is to show them, or remove the column",
    )


def calls_of(value: Any, place: str, noted: KeyNotes | None = None) -> tuple[Mapping[str, Any], ...]:
    """Tool calls, one or a list or the text of either, in the OpenAI layout with `arguments` as a mapping."""
    calls = stored(value)
    if calls is None:
        return ()
    calls = calls if isinstance(calls, list | tuple) else (calls,)
    return tuple(
        [_tool_call(stored(call), f"tool call {number} of {place}", noted) for number, call in enumerate(calls, 1)]
    )


def _tool_call(call: Any, place: str, noted: KeyNotes | None) -> Mapping[str, Any]:
    function = stored(call.get("function", call)) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise bad_call(f"{place} names no function", call)
    if "arguments" not in function and set(function) - {"name", "id", "type", "index"}:
        raise bad_call(f"{place} ({name!r}) has no 'arguments'", call)
    arguments = stored(function.get("arguments"))
    # No arguments are written as null, "" or "[]"; to a template all of them are an empty object.
    if arguments is None or (isinstance(function.get("arguments"), str) and arguments == []):
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise bad_call(f"the arguments of {place} ({name!r}) are not an object", function.get("arguments"))
    if noted is not None:
        noted.others("tool call", call)
        if function is not call:
            noted.others("tool call", function)
    # Built anew: what else a row puts into a call would reach the template's text.
    wrapped: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
    if call.get("id") is not None:
        wrapped["id"] = call["id"]
    return wrapped


def bad_call(problem: str, value: Any) -> RowError:
    return refuse(
        "bad_tool_call",
        problem,
        found=shown(value),
        expected='{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}; '
        "arguments may also be the JSON text of an object",
        remedy="write each call with its name and an object of arguments",
    )
