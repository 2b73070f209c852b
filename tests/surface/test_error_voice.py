"""One error voice, read from the source: who words "did you mean", and how remedies quote.

Backticks stand around what the user types or reads in a file; Python's quotes are for values, which stand in `found`
and `expected`. What is decidable is decided: text that is built from other text elsewhere is not followed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.errors import (
    ConfigError,
    PosttrainError,
    RowError,
    SourceError,
    UnknownKeyError,
    did_you_mean,
    unknown,
)

PACKAGE = Path(__file__).parent.parent.parent / "posttrain"
SPOKEN = ("remedy", "otherwise", "spelling")
"""Arguments that say what to do; `problem` too where `unknown` is called."""
VALUE = "\0"
"""Stands for what is shown as Python shows a value."""


def rendered(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may give, with VALUE for what is quoted by Python, and x for any other part."""
    match node:
        case ast.Constant(value=str() as text):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(next(rendered(part), "x") for part in parts)
        case ast.FormattedValue(conversion=conversion, value=value):
            called = value.func.id if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) else ""
            yield VALUE if conversion == ord("r") or called in ("repr", "quoted") else "x"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from (first + second for first in rendered(left) for second in rendered(right))
        case ast.IfExp(body=body, orelse=orelse):
            yield from rendered(body)
            yield from rendered(orelse)
        case ast.Call(func=ast.Name(id="repr" | "quoted")):
            yield VALUE
        case _:
            yield "x"


def misquoted(text: str) -> bool:
    """A value, or a word in single quotes, outside backticks; inside them it is code that the user types."""
    outside = re.sub(r"`[^`]*`", "x", text)
    return VALUE in outside or re.search(r"(?<!\w)'[^'\s][^']*'(?!\w)", outside) is not None


def spoken(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        names = (*SPOKEN, "problem") if ast.unparse(call.func).endswith("unknown") else SPOKEN
        for argument in call.keywords:
            if argument.arg in names:
                yield from ((argument.value.lineno, text) for text in rendered(argument.value))


def faults(source: str) -> list[int]:
    return [line for line, text in spoken(ast.parse(source)) if misquoted(text)]


def test_no_remedy_of_the_package_quotes_a_name_as_python_does() -> None:
    checked = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        checked += sum(1 for _ in spoken(ast.parse(source)))
        assert faults(source) == [], path
    assert checked > 400, "the remedies are no longer found"


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ('f(remedy=f"write {key!r}")', True),
        ("f(remedy=f\"write '{key}' as text\")", True),
        ('f(remedy="choose one" if a else f"name {quoted(names)}")', True),
        ('f(remedy="write " + repr(key))', True),
        ('unknown("a", b, c, problem=f"there is no {b!r}")', True),
        ('f(remedy=f"write `{key}`")', False),
        ('f(remedy=f"`load(folder, head={name!r})`, or the user\'s own")', False),
        ('f(problem=f"the role {name!r}", remedy="see `it`")', False),
    ],
)
def test_what_is_decided(source: str, wrong: bool) -> None:
    assert bool(faults(source)) is wrong


def test_one_function_words_did_you_mean() -> None:
    """A text with these words is made by `did_you_mean`; to look for them in one, or to show one, is free."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == PACKAGE / "errors.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
                assert "did you mean" not in text, f"{path}:{node.lineno}: use errors.did_you_mean or errors.unknown"


# ---------------------------------------------------------------- the function


def test_unknown_names_the_nearest_and_lists_all() -> None:
    error = unknown("method", "gpro", ["grpo", "ppo"], where="recipe.yaml, line 3")
    assert type(error) is UnknownKeyError
    assert str(error) == (
        "recipe.yaml, line 3: the method `gpro` is not known\n"
        "  expected: one of grpo, ppo\n"
        "  remedy:   did you mean `grpo`?"
    )


def test_unknown_without_a_near_name_says_what_else_to_do() -> None:
    assert unknown("suite", "zzz", ["match"]).remedy == "choose one of those"
    assert unknown("key", "zzz", ["match"], otherwise="remove `zzz`").remedy == "remove `zzz`"
    assert unknown("key", "zzz", ()).expected is None


def test_unknown_makes_the_class_that_is_asked_for() -> None:
    error = unknown("column", "quest", ["question"], error=RowError, reason="wrong_shape", found="{'question': 1}")
    assert isinstance(error, RowError) and error.reason == "wrong_shape" and error.found == "{'question': 1}"
    assert isinstance(unknown("a", "b", ["c"], error=ConfigError, expected="x"), ConfigError)
    assert unknown("a", "b", ["c"], expected="this").expected == "this"


def test_the_nearest_name_is_written_as_the_user_writes_it() -> None:
    error = unknown("file", "pears.jsonl", ["pairs.jsonl"], error=SourceError, spelling="package://{}")
    assert error.remedy == "did you mean `package://pairs.jsonl`?" and isinstance(error, PosttrainError)


def test_did_you_mean() -> None:
    assert did_you_mean("grpo", "check it") == "did you mean `grpo`?"
    assert did_you_mean(None, "check it") == "check it"
