"""The body of a request as a JSON object, within limits: bytes, depth, and no key twice."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.requests import Request

from posttrain.serve.fields import shown
from posttrain.serve.refusals import RequestRefused

DEEPEST = 64
"""Objects and lists within each other: schemas of tools have about ten, and the parser recurses."""
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|(?P<open>[\[{])|(?P<close>[\]}])', re.DOTALL)


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object that a request brings.

    Raises:
        RequestRefused: it is longer than `limit` bytes (413), no UTF-8, no JSON, no object, or nested too deep.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(f"{int(declared):,} bytes", limit)
    parts, size = [], 0
    # Counted while it comes: a client may declare no length, or another one.
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(f"more than {limit:,} bytes", limit)
        parts.append(part)
    return parse_object(b"".join(parts))


def parse_object(body: bytes) -> dict[str, Any]:
    """parse_object(b'{"n": 2}') -> {"n": 2}; raises as `read_object` does."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _no_json(f"the byte 0x{body[error.start]:02x} at position {error.start}", "UTF-8") from None
    if (depth := _depth(text)) > DEEPEST:
        raise _no_json(f"{depth} objects and lists within each other", f"at most {DEEPEST}")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_doubles)
    except RequestRefused:
        raise
    except ValueError as error:  # also of a whole number with more digits than Python reads
        raise _no_json(str(error)[:200], 'an object such as {"prompt": "2 + 2 ="}') from None
    if not isinstance(value, dict):
        raise _no_json(shown(value), 'an object such as {"prompt": "2 + 2 ="}')
    _refuse_halves(value)
    return value


def _depth(text: str) -> int:
    """How deep brackets nest outside of strings, before any parser has recursed into them."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        if match["open"]:
            depth += 1
            deepest = max(deepest, depth)
        elif match["close"]:
            depth -= 1
    return deepest


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise _no_json(f"the key {shown(double)} twice", "each key once")
    return result


def _refuse_constant(word: str) -> Any:
    raise _no_json(word, "JSON numbers, which have no NaN and no infinity")


def _refuse_halves(value: Any) -> None:
    """No tokenizer takes half of a surrogate pair, which JSON's escapes can write; found here, it has a name."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _no_json(
            "half of a surrogate pair in a text", "whole characters; an emoji is two \\u escapes in a row"
        ) from None


def _no_json(found: str, expected: str) -> RequestRefused:
    return RequestRefused(
        "the body of the request is no JSON object that can be read",
        found=found,
        expected=expected,
        remedy="send one JSON object, as UTF-8",
    )


def _too_large(found: str, limit: int) -> RequestRefused:
    return RequestRefused(
        "the body of the request is too large",
        status=413,
        code="body_too_large",
        found=found,
        expected=f"at most {limit:,} bytes",
        remedy="send less at once, or several requests",
        # What is left of the body is never read, so the connection cannot be used again.
        headers={"Connection": "close"},
    )
