"""The untrusted side: the program under test.

It may do to its own process what it likes. All that leaves it is answers to calls, and an answer says what the
program returned, never whether that is right. No expected answer, no test and no nonce is in this process's memory:
it was forked before any of them was read.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

from posttrain.rewards.sandbox.inside import wire


def read_all(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    os.close(fd)
    return b"".join(parts)


def serve(program_fd: int, requests: int, answers: int) -> None:
    """Runs the program as a module, then answers calls until the other side hangs up."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    kept: list[object] = []

    def keep(value: object) -> int:
        kept.append(value)
        return len(kept) - 1

    try:
        source = read_all(program_fd).decode()
        exec(compile(source, "solution.py", "exec"), module.__dict__)
        answer: list[Any] = ["ok", None]
    except BaseException as error:  # the boundary: whatever the program raises is its answer
        answer = _failure(error)
    wire.send(answers, answer)
    while True:
        try:
            request = wire.receive(requests)
        except EOFError:
            return
        try:
            answer = ["ok", wire.encode(_handle(request, module, kept), keep)]
        except BaseException as error:  # the same boundary
            answer = _failure(error)
        try:
            wire.send(answers, answer)
        except wire.WireError as error:
            wire.send(answers, _failure(error))


def _handle(request: list[Any], module: types.ModuleType, kept: list[object]) -> object:
    operation, target, *rest = request
    if operation == "name":
        return vars(module)[target]
    value: Any = kept[target]
    arguments = [wire.decode(item, lambda number, _: kept[number]) for item in rest]
    if operation == "call":
        return value(*arguments[0], **arguments[1])
    if operation == "attribute":
        return getattr(value, arguments[0])
    if operation == "assign":
        setattr(value, arguments[0], arguments[1])
        return None
    if operation == "item":
        return value[arguments[0]]
    if operation == "contains":
        return bool(arguments[0] in value)
    if operation == "length":
        return len(value)
    if operation == "list":
        return list(value)
    if operation == "text":
        return str(value)
    if operation == "shown":
        return repr(value)
    raise ValueError(operation)


def _failure(error: BaseException) -> list[Any]:
    """The names of the exception's classes, the nearest first, and its message."""
    try:
        message = str(error)[:500]
    except BaseException:  # a message of the program's own making
        message = ""
    return ["error", [one.__name__ for one in type(error).__mro__][:20], message]


def script(program_fd: int) -> None:
    """Runs the program as a script; its input and output are the process's own."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(read_all(program_fd).decode(), "solution.py", "exec"), module.__dict__)
