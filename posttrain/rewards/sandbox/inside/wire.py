"""What passes between the tests and the program under test: frames of plain data, and nothing else.

A value is None, a bool, a number, text, bytes, a range, or a list, tuple, dict or set of these; it arrives as a fresh
object of exactly that type. The sender's classes, with their `__eq__`, `__del__` and `__class__`, stay where they
are; anything that is not plain data arrives as a numbered handle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_FRAME = 8 << 20
"""Bytes of one message. A program that answers with more has failed."""
MAX_DEPTH = 64

Keep = Callable[[object], int]
"""Takes a value that is not plain data and gives its number."""
Find = Callable[[int, str], object]
"""A handle's number and type name to what stands for it on this side."""


class WireError(Exception):
    """A message that is too long, torn, or not of this format."""


def send(fd: int, message: object) -> None:
    data = json.dumps(message).encode()
    if len(data) > MAX_FRAME:
        raise WireError(f"the message has {len(data):,} bytes, and {MAX_FRAME:,} are allowed")
    rest = memoryview(len(data).to_bytes(4, "big") + data)
    # A pipe takes what fits, and the other side may be slower than this one.
    while rest:
        rest = rest[os.write(fd, rest) :]


def receive(fd: int) -> Any:
    """The next message; EOFError at the end."""
    length = int.from_bytes(_exactly(fd, 4), "big")
    # Before it is read: the length is the program's word, and memory is ours.
    if length > MAX_FRAME:
        raise WireError(f"a message of {length:,} bytes is announced, and {MAX_FRAME:,} are allowed")
    try:
        return json.loads(_exactly(fd, length))
    except (ValueError, RecursionError) as error:
        raise WireError(f"the message is not of this format: {error}") from None


def _exactly(fd: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def encode(value: Any, keep: Keep, depth: int = 0) -> Any:
    """A value as JSON; subclasses as what they derive from, so that a Counter compares as a dict does."""
    if value is None or value is True or value is False:
        return value
    if depth > MAX_DEPTH:
        raise WireError(f"the value is nested more than {MAX_DEPTH} deep")

    def inner(items: Any) -> list[Any]:
        return [encode(item, keep, depth + 1) for item in items]

    if isinstance(value, str):
        # The base class's own method: a subclass may say something else than it is.
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__index__(value)
        return number if abs(number) < 1 << 53 else ["int", hex(number)]  # decimal digits take quadratic time
    if isinstance(value, float):
        return ["float", float.__repr__(value)]
    if isinstance(value, list):
        return ["list", inner(value)]
    if isinstance(value, tuple):
        return ["tuple", inner(value)]
    if isinstance(value, dict):
        return ["dict", [inner(pair) for pair in dict.items(value)]]
    if isinstance(value, (set, frozenset)):
        return ["set" if isinstance(value, set) else "frozenset", inner(value)]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes" if isinstance(value, bytes) else "bytearray", value.hex()]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, complex):
        return ["complex", repr(complex(value))]
    if isinstance(value, Decimal):
        return ["decimal", str(Decimal(value))]
    if isinstance(value, Fraction):
        return ["fraction", [hex(value.numerator), hex(value.denominator)]]
    return ["remote", [keep(value), type(value).__name__[:80]]]


def decode(data: Any, find: Find) -> Any:
    """The value of a message, built afresh; WireError for anything that is not of the format."""
    try:
        return _decode(data, find, 0)
    except (ValueError, TypeError, ArithmeticError, RecursionError, KeyError) as error:
        raise WireError(f"the value is not of this format: {error}") from None


def _decode(data: Any, find: Find, depth: int) -> Any:
    if data is None or isinstance(data, (bool, int, str)):
        return data
    if depth > MAX_DEPTH or not isinstance(data, list) or len(data) != 2:
        raise WireError("the value is not of this format")
    kind, content = data
    # Built afresh from the literal type: nothing that the sender defined comes along.
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind](_decode(item, find, depth + 1) for item in content)
    if kind == "dict":
        return {_decode(key, find, depth + 1): _decode(item, find, depth + 1) for key, item in content}
    if kind == "remote":
        return find(int(content[0]), str(content[1]))
    if kind in _SCALARS:
        return _SCALARS[kind](content)
    raise WireError("the value is not of this format")


_COLLECTIONS: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "float": float,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "range": lambda three: range(*three),
    "complex": complex,
    "decimal": Decimal,
    "fraction": lambda two: Fraction(int(two[0], 16), int(two[1], 16)),
}
