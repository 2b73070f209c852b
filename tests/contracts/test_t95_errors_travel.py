"""T95: every exception of the package survives pickle and copy with its fields, as a pool of processes needs.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import posttrain
from posttrain import errors
from posttrain.errors import ConfigError, NonFiniteError, PosttrainError, RowError
from posttrain.types import RowRef


def every_error() -> list[type[PosttrainError]]:
    """All classes of the tree, those that other modules add to it included."""
    for module in pkgutil.walk_packages(posttrain.__path__, "posttrain."):
        if not module.name.startswith(
            ("posttrain.embedded.make", "posttrain.__main__", "posttrain.rewards.sandbox.in")
        ):
            importlib.import_module(module.name)
    found: list[type[PosttrainError]] = []
    waiting = [PosttrainError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return found


FIELDS = {"where": RowRef("pairs.jsonl", 417), "found": "'human'", "expected": ("a", "b"), "remedy": "map it"}


def made(kind: type[PosttrainError]) -> PosttrainError:
    """An error of this class without its __init__, whose arguments differ, with fields of every sort."""
    error = kind.__new__(kind)
    error.args = ("the role 'human' is not known",)
    vars(error).update(problem="the role 'human' is not known", example=None, **FIELDS)
    vars(error).update(reason="role", tensors=("loss",), rows=("a, row 1",))
    return error


def test_t95_every_class_survives_pickle_and_copy() -> None:
    kinds = every_error()
    assert {kind.__name__ for kind in kinds} >= {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, PosttrainError)
    }
    for kind in kinds:
        error = made(kind)
        error.add_note("seen in a worker")
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(other) is kind and str(other) == str(error), kind
            assert vars(other) == vars(error) and other.args == error.args, kind


@pytest.mark.parametrize(
    "error",
    [
        RowError("no text", reason="empty", where=RowRef("a.jsonl", 3), remedy="write one", found="''"),
        NonFiniteError("the loss is NaN", remedy="lower it", tensors=["loss"], rows=[f"a, row {i}" for i in range(9)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_t95_through_its_own_constructor(error: PosttrainError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error) and str(other) == str(error) and vars(other) == vars(error)


def _raises(row: int) -> None:
    raise RowError("no text", reason="empty", where=RowRef("a.jsonl", row), remedy="write one")


def test_t95_a_pool_of_processes_shows_the_message() -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(RowError) as caught:
        pool.submit(_raises, 7).result()
    assert caught.value.reason == "empty" and str(caught.value).startswith("a.jsonl, row 7: no text")


def test_t95_what_cannot_travel_arrives_as_its_text(tmp_path: Path) -> None:
    """An error must not hide behind a second one because somebody put a generator or a lambda into `found`."""
    odd: Any = (number for number in range(3))
    error = ConfigError("odd", where=tmp_path, found=odd, remedy="none")
    other = pickle.loads(pickle.dumps(error))
    assert other.where == tmp_path and other.found == str(odd) and str(other) == str(error)


class Keyworded(Exception):
    """As httpx and openai have them: written by pickle, and refused by their own constructor when they are read."""

    def __init__(self, message: str, *, status: int):
        super().__init__(message)
        self.status = status


class Unwilling:
    def __reduce__(self) -> str:
        raise RuntimeError("it holds a handle")

    def __str__(self) -> str:
        return "a connection"


def _raises_with(make: Callable[[], object]) -> None:
    raise ConfigError("no answer", where="judge", found=make(), remedy="wait")


def _keyworded() -> object:
    return Keyworded("too many requests", status=429)


@pytest.mark.parametrize(("make", "text"), [(_keyworded, "too many requests"), (Unwilling, "a connection")])
def test_t95_what_fails_only_on_the_other_side_arrives_as_its_text(make: Callable[[], object], text: str) -> None:
    with ProcessPoolExecutor(1) as pool, pytest.raises(ConfigError, match="no answer") as caught:
        pool.submit(_raises_with, make).result()
    assert caught.value.found == text and caught.value.where == "judge"
