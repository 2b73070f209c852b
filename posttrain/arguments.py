"""What a program passes to a public function, checked at the door: `checked_path("out", out)` gives a Path or refuses.

Python has no reader of recipes before it, so anything may come in. Unchecked, a wrong value fails as an AttributeError
somewhere inside, after minutes of loading, and names nothing that its author wrote.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from posttrain.errors import ConfigError, unknown

Kind = TypeVar("Kind")

LARGEST_SEED = 2**32
"""Seeds of numpy, torch and a recipe's `seed` all lie below it."""


def described(value: object) -> str:
    """A value as an error shows it: described(3) -> "int: 3"; a class is said to be one."""
    if value is None:
        return "None"
    kind = "the class" if isinstance(value, type) else f"{type(value).__name__}:"
    return f"{kind} {value!r}"[:80]


def wrong_argument(name: str, value: object, *, expected: str, remedy: str, example: str | None = None) -> ConfigError:
    """The refusal of an argument that is of no use where it stands."""
    return ConfigError(
        f"`{name}` is {_article(value)}",
        found=described(value),
        expected=expected,
        example=example,
        remedy=remedy,
    )


def _article(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class `{value.__name__}` itself"
    word = type(value).__name__
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


# ---------------------------------------------------------------- plain values


def checked_path(name: str, value: Any, example: str) -> Path:
    """The path, from text or anything that stands for one. Raises ConfigError for the rest."""
    if isinstance(value, str | os.PathLike) and not isinstance(value, type):
        path = os.fspath(value)
        # No file name holds a null byte; the system answers it with a bare ValueError.
        if isinstance(path, str) and path and "\0" not in path:
            return Path(path)
    raise wrong_argument(name, value, expected="a path, as text or pathlib.Path", remedy=f"write `{name}={example!r}`")


def checked_text(name: str, value: Any, example: str) -> str:
    if not isinstance(value, str):
        raise wrong_argument(
            name, value, expected="text", remedy=f"write it as `{name}={example!r}`, or leave `{name}` out"
        )
    return value


def checked_flag(name: str, value: Any) -> bool:
    """A text is refused, for "no" would count as yes."""
    if not isinstance(value, bool):
        raise wrong_argument(
            name, value, expected="True or False", remedy=f"write it as `{name}=True`, or leave `{name}` out"
        )
    return value


def checked_whole(name: str, value: Any, *, least: int = 0, below: int | None = None, example: int = 1) -> int:
    """A whole number, numpy's too; True is an int in Python, and no number to its reader."""
    number = value
    if not isinstance(value, bool | int | type) and hasattr(value, "__index__"):
        number = value.__index__()
    if isinstance(number, bool) or not isinstance(number, int) or number < least or (below and number >= below):
        limit = f" and below {below:,}" if below else ""
        raise wrong_argument(
            name,
            value,
            expected=f"a whole number from {least:,} up{limit}",
            remedy=f"write a number, as `{name}={example}`, or leave `{name}` out",
        )
    return number


def checked_seed(value: Any) -> int:
    return checked_whole("seed", value, below=LARGEST_SEED, example=0)


def checked_name(what: str, value: Any, known: Iterable[str]) -> str:
    """A name that a table holds. Raises UnknownKeyError with the nearest, also for what is no text at all."""
    names = list(known)
    if isinstance(value, str) and value in names:
        return value
    # A list or a dict cannot be looked up at all: Python would say that it is unhashable.
    found = None if isinstance(value, str) else described(value)
    raise unknown(what, value if isinstance(value, str) else type(value).__name__, names, found=found)


# ---------------------------------------------------------------- records and lists


def checked_instance(name: str, value: Any, kind: type[Kind], *, expected: str, remedy: str) -> Kind:
    """The value, if it is of that kind; a class where an instance is meant is told to be called."""
    if isinstance(value, kind):
        return value
    if isinstance(value, type) and issubclass(value, kind):
        remedy = f"write `{value.__name__}(...)`, with brackets"
    raise wrong_argument(name, value, expected=expected, remedy=remedy)


def checked_list(name: str, value: Any, *, of: str, example: str) -> list[Any]:
    """The items of a list, tuple or generator; one text is refused, for its letters would be taken for the items."""
    if isinstance(value, str | bytes | Mapping | type) or not isinstance(value, Iterable):
        raise wrong_argument(name, value, expected=f"a list of {of}", remedy=f"write `{name}={example}`")
    return list(value)
