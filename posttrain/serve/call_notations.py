"""The ways in which templates write a tool call, each with a function that reads one back.

    NOTATIONS["json"]('{"name": "add", "arguments": {"a": 1}}', 0, "") -> Reading((Call("add", {"a": 1}),), end=39)

A reader is given a text and where a call begins, behind whatever announces it, and says where the call ends. Which
notation a template uses is found by rendering (`call_format`), never by the family's name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, NamedTuple

_DECODER = json.JSONDecoder()
_NAME = r"[A-Za-z_][\w.:-]*"


class Call(NamedTuple):
    """A tool call as a model wrote it: Call("add", {"a": 1}, typed=True)."""

    name: str
    arguments: Mapping[str, Any]
    typed: bool = True
    """Whether the notation says what is text and what is a number; else values are texts, and the schema decides."""


class Reading(NamedTuple):
    calls: tuple[Call, ...]
    end: int


Reader = Callable[[str, int, str], Reading | None]
"""(text, where, what stands between name and arguments) -> what was read, or None."""


def _json(text: str, at: int) -> tuple[Any, int] | None:
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None


def _call_of(value: Any) -> Call | None:
    """A JSON object as a call; families call its name and its arguments otherwise."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = next((value[key] for key in ("name", "tool_name", "function") if isinstance(value.get(key), str)), None)
    key = next((key for key in ("arguments", "parameters", "args") if key in value), None)
    if not name or key is None:
        return None
    arguments = value[key]
    if isinstance(arguments, str):
        read = _json(arguments, 0)
        arguments = read[0] if read is not None else None
    return Call(name, arguments) if isinstance(arguments, dict) else None


def read_json(text: str, at: int, between: str) -> Reading | None:
    """{"name": "add", "arguments": {"a": 1}}"""
    read = _json(text, at) if text[at : at + 1] == "{" else None
    call = _call_of(read[0]) if read is not None else None
    return None if read is None or call is None else Reading((call,), read[1])


def read_json_list(text: str, at: int, between: str) -> Reading | None:
    """[{"name": "add", "arguments": {"a": 1}}, ...]"""
    read = _json(text, at) if text[at : at + 1] == "[" else None
    if read is None or not isinstance(read[0], list) or not read[0]:
        return None
    calls = [_call_of(item) for item in read[0]]
    return None if None in calls else Reading(tuple(call for call in calls if call is not None), read[1])


def read_named_json(text: str, at: int, between: str) -> Reading | None:
    """add```json\\n{"a": 1}: the name, what the template puts between, and the arguments."""
    name = re.compile(_NAME).match(text, at)
    if name is None or not between.strip():
        return None
    # A name may hold what begins the text between (a colon): the match gives back letters until it fits.
    for end in range(name.end(), at, -1):
        middle = flexible(between).match(text, end)
        read = _json(text, middle.end()) if middle is not None else None
        if read is not None and isinstance(read[0], dict):
            return Reading((Call(text[at:end], read[0]),), read[1])
    return None


_FUNCTION = re.compile(rf"<function=({_NAME})>\s*")
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)


def read_xml(text: str, at: int, between: str) -> Reading | None:
    """<function=add>\\n<parameter=a>\\n1\\n</parameter>\\n</function>"""
    head = _FUNCTION.match(text, at)
    return None if head is None else _pairs(text, head[1], head.end(), _PARAMETER, "</function>")


_KEYED = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


def read_keyed(text: str, at: int, between: str) -> Reading | None:
    """add\\n<arg_key>a</arg_key>\\n<arg_value>1</arg_value>"""
    head = re.compile(rf"({_NAME})\s*").match(text, at)
    # Without an argument nothing would tell a call from a word of prose but what stands around it.
    if head is None or not (text.startswith("<arg_key>", head.end()) or text.startswith("</", head.end())):
        return None
    return _pairs(text, head[1], head.end(), _KEYED, "")


def _pairs(text: str, name: str, at: int, pair: re.Pattern[str], close: str) -> Reading | None:
    arguments = {}
    while (match := pair.match(text, at)) is not None:
        arguments[match[1].strip()] = match[2]
        at = match.end()
    if not text.startswith(close, at):
        return None
    return Reading((Call(name, arguments, typed=False),), at + len(close))


_PYTHON_END = re.compile(r"\)\s*\]")
_MOST_ENDS = 64
"""Brackets that are tried as the end of a list: a text in it may hold thousands, and each try parses all before it."""


def read_python(text: str, at: int, between: str) -> Reading | None:
    """[add(a=1, b='two'), ...]: literals only, nothing is run."""
    if text[at : at + 1] != "[":
        return None
    for end in islice((match.end() for match in _PYTHON_END.finditer(text, at)), _MOST_ENDS):
        try:
            tree = ast.parse(text[at:end], mode="eval").body
            calls = [_python_call(node) for node in getattr(tree, "elts", ())]
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            continue  # the bracket was inside of a text
        if calls and None not in calls:
            return Reading(tuple(call for call in calls if call is not None), end)
    return None


def _python_call(node: ast.expr) -> Call | None:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        return None
    values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    json.dumps(values)  # a set or bytes have no JSON, and are no argument: ValueError or TypeError
    return Call(ast.unparse(node.func), values)


_QUOTE = '<|"|>'
_BRACED = re.compile(rf"call:({_NAME})\{{")


def read_braced(text: str, at: int, between: str) -> Reading | None:
    """call:add{a:1,b:<|"|>two<|"|>}"""
    head = _BRACED.match(text, at)
    if head is None:
        return None
    at, arguments = head.end(), dict[str, Any]()
    while not text.startswith("}", at):
        key = re.compile(r",?\s*([\w.-]+)\s*:\s*").match(text, at)
        if key is None:
            return None
        at = key.end()
        if text.startswith(_QUOTE, at):
            end = text.find(_QUOTE, at + len(_QUOTE))
            if end < 0:
                return None
            arguments[key[1]], at = text[at + len(_QUOTE) : end], end + len(_QUOTE)
        elif (read := _json(text, at)) is not None:
            arguments[key[1]], at = read
        else:
            return None
    return Reading((Call(head[1], arguments),), at + 1)


NOTATIONS: dict[str, Reader] = {
    "json_list": read_json_list,
    "json": read_json,
    "xml": read_xml,
    "keyed": read_keyed,
    "python": read_python,
    "braced": read_braced,
    "named_json": read_named_json,
}
"""In the order in which a probe tries them: `json` would read one object out of a list, `named_json` any object."""


def flexible(literal: str) -> re.Pattern[str]:
    """A pattern of a literal in which white space may be of any length, since models are not exact about it."""
    return re.compile(r"\s*" + r"\s*".join(re.escape(word) for word in literal.split()) + r"\s*")
