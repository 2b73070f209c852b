"""Text and tool descriptions as rows write them, checked and in one layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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


def text_of(value: Any, place: str) -> str:
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
        return "".join([_part(part, f"part {number} of {place}") for number, part in enumerate(value, 1)])
    raise refuse(
        "content_not_text",
        f"{place} is {named_type(value)}, not text",
        found=shown(value),
        expected='a string, or a list of text parts such as [{"type": "text", "text": "..."}]',
        remedy="write the text as a JSON string",
    )


def _part(part: Any, place: str) -> str:
    if isinstance(part, Mapping):
        kind = part.get("type") or ("text" if "text" in part else None)
        if kind == "text":
            return text_of(part.get("text"), place)
        found = f"a part of type {kind!r}" if kind else f"a part with the keys {quoted(part)}"
    else:
        found = f"{named_type(part)}: {shown(part)}"
    raise refuse(
        "content_not_text",
        f"{place} is not text",
        found=found,
        expected='parts of the type "text": {"type": "text", "text": "..."}',
        remedy="only text is trained on here: remove the part or the row",
    )


# ---------------------------------------------------------------- tools


def tools_of(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The `tools` column, a list or the JSON text of one, in the OpenAI layout; bare functions are wrapped."""
    if value is None or value == "":
        return ()
    tools = json_value(value) if isinstance(value, str) else value
    if not isinstance(tools, list | tuple):
        raise _bad_tools(f"`tools` is {named_type(tools)}", value)
    return tuple([_tool(tool, number) for number, tool in enumerate(tools, 1)])


def _tool(tool: Any, number: int) -> Mapping[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else tool
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _bad_tools(f"tool {number} has no name", tool)
    return tool if "function" in tool else {"type": "function", "function": tool}


def _bad_tools(problem: str, value: Any) -> RowError:
    return refuse(
        "bad_tools",
        problem,
        found=shown(value),
        expected='a list such as [{"type": "function", "function": {"name": "add", "parameters": {...}}}], '
        "or the JSON text of one",
        remedy="write the tools as the chat template is to show them, or remove the column",
    )


def json_value(text: str) -> Any:
    """The value of a JSON text, or None: every caller refuses None in its own words."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def calls_of(value: Any, place: str) -> tuple[Mapping[str, Any], ...]:
    """Tool calls, one or a list, in the OpenAI layout with `arguments` as a mapping."""
    calls = value if isinstance(value, list | tuple) else (value,)
    return tuple([_call(call, f"tool call {number} of {place}") for number, call in enumerate(calls, 1)])


def _call(call: Any, place: str) -> Mapping[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise bad_call(f"{place} names no function", call)
    if "arguments" not in function and set(function) - {"name", "id", "type", "index"}:
        raise bad_call(f"{place} ({name!r}) has no 'arguments'", call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = json_value(arguments) if arguments.strip() else {}
    elif arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise bad_call(f"the arguments of {place} ({name!r}) are not an object", function.get("arguments"))
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
