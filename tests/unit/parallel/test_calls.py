"""A driver and its workers: what is called everywhere, what travels, and how errors end it."""

from __future__ import annotations

import contextvars
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from posttrain.errors import ConfigError, RankError
from posttrain.parallel import calls
from posttrain.parallel.calls import OfMain, driven, everywhere
from posttrain.parallel.world import job, world
from tests.ranks import ranks

SEEN: list[Any] = []
"""What this process was called with, for the tests to look at."""


def note(*arguments: Any) -> int:
    SEEN.append(arguments)
    return sum(world().gather(world().rank))


def main_of_sum() -> tuple[bool, int, int]:
    return world().is_alone, job().size, everywhere(note, 1)


def drive(main: Any = main_of_sum, *own: Any) -> tuple[Any, list[Any]]:
    SEEN.clear()
    return driven(main, own=own), [len(arguments) for arguments in SEEN]


def test_alone_it_is_the_program_itself() -> None:
    assert driven(main_of_sum) == (True, 1, 0)


@pytest.mark.parametrize("size", [2, 4])
def test_rank_0_drives_and_all_compute(size: int) -> None:
    """While it drives it is alone, so that nothing waits for the others; within a call it is one of them."""
    total = size * (size - 1) // 2
    assert ranks(size).run(drive) == [((True, size, total), [1])] * size


def within_a_call() -> list[int]:
    # All are here: a call in it is a plain one, and a driver in it drives all of them.
    return [everywhere(note), driven(lambda: everywhere(note))]


def main_of_nested() -> list[int]:
    return everywhere(within_a_call)


def test_a_call_within_a_call_is_in_lockstep() -> None:
    assert ranks(2).run(drive, main_of_nested) == [([1, 1], [0, 0])] * 2


def made_apart() -> Any:
    # What one rank makes for all is made by it alone, however deep: a call of it must not wait.
    return world().agreed(lambda: (world().is_alone, everywhere(note), driven(lambda: everywhere(note))))


def test_what_is_agreed_is_made_alone() -> None:
    assert ranks(2).run(made_apart) == [(True, 0, 0)] * 2


# ---------------------------------------------------------------- what travels


class Unsendable:
    def __init__(self) -> None:
        self.function = lambda: world().rank


@dataclass
class Holder:
    one: Unsendable
    told: OfMain[Any]


def use(holder: Holder) -> tuple[int, bool]:
    return holder.one.function(), holder.told.value is not None


def gathered(holder: Holder) -> list[tuple[int, bool]]:
    return world().gather(use(holder))


def drive_own() -> Any:
    one = Unsendable()
    return driven(lambda: everywhere(gathered, Holder(one, OfMain(lambda: None))), own=("first", one))


def test_what_each_rank_has_made_is_sent_by_its_place() -> None:
    """A model or a lambda stays where it is; a callback is rank 0's."""
    assert ranks(2).run(drive_own) == [[(0, True), (1, False)]] * 2


def drive_unsendable() -> Any:
    return driven(lambda: everywhere(gathered, Holder(Unsendable(), OfMain())))


def test_what_cannot_travel_is_an_error_of_all_and_nobody_waits() -> None:
    first, second = ranks(2).outcomes(drive_unsendable)
    assert isinstance(first, AttributeError) or "pickle" in type(first).__name__.lower()
    assert isinstance(second, RankError) and "rank 0 failed" in second.problem


def make_class() -> type:
    made = type("made_of_a_row", (Unsendable,), {"__module__": __name__, "__qualname__": "made_of_a_row"})
    return made


def name_of(kind: type) -> list[str]:
    return world().gather(kind.__name__)


def drive_class() -> Any:
    kind = make_class()
    return driven(lambda: everywhere(name_of, kind))


def test_a_class_that_every_rank_has_generated_is_found_by_its_name() -> None:
    assert ranks(2).run(drive_class) == [["made_of_a_row"] * 2] * 2


# ---------------------------------------------------------------- errors


def refuse() -> None:
    raise ConfigError(f"rank {world().rank} refuses", remedy="none")


def caught_and_gone_on() -> list[Any]:
    try:
        everywhere(refuse)
    except ConfigError as error:
        return [error.problem, everywhere(note)]
    raise AssertionError


def test_an_error_that_all_find_leaves_them_at_hand() -> None:
    assert ranks(2).run(drive, caught_and_gone_on) == [(["rank 0 refuses", 1], [0])] * 2


def refuse_together() -> None:
    with world().together("trying"):
        if world().rank == 1:
            raise ConfigError("rank 1 refuses", remedy="none")


def caught_of_one() -> list[Any]:
    try:
        everywhere(refuse_together)
    except ConfigError as error:
        return [error.problem, error.ranks, everywhere(note)]
    raise AssertionError


def test_an_agreed_error_leaves_them_at_hand() -> None:
    assert ranks(2).run(drive, caught_of_one) == [(["rank 1 refuses", (1,), 1], [0])] * 2


def main_refuses() -> None:
    raise ConfigError("not this", remedy="that")


def main_breaks() -> None:
    raise ZeroDivisionError("by zero")


def test_an_error_of_the_program_is_raised_by_all() -> None:
    for error in ranks(2).outcomes(drive, main_refuses):
        assert isinstance(error, ConfigError) and error.problem == "not this" and error.ranks == (0,)
    first, second = ranks(2).outcomes(drive, main_breaks)
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(second, RankError) and "ZeroDivisionError: by zero" in second.problem


def interrupted() -> str:
    def stop() -> None:
        raise KeyboardInterrupt("stopped by hand")

    try:
        driven(stop)
    except KeyboardInterrupt as interrupt:
        return str(interrupt)
    raise AssertionError


def test_an_interrupt_ends_all() -> None:
    assert ranks(2).run(interrupted) == ["stopped by hand"] * 2


def left_by_one_and_by_all() -> tuple[bool, bool]:
    calls.GRACE = 0.2
    try:
        error = ConfigError("rank 1 alone", remedy="none")
        of_one = world().rank == 1 and calls._raised_by_all(error, "first", world())
        calls.GRACE = 30.0
        return of_one, calls._raised_by_all(error, "second", world())
    finally:
        calls.GRACE = 30.0


def test_a_rank_that_fails_alone_is_told_from_all_that_fail() -> None:
    """Who is alone leaves with its error, and the watch of the job ends the others."""
    assert ranks(2).run(left_by_one_and_by_all) == [(False, True)] * 2


def in_threads() -> list[Any]:
    with ThreadPoolExecutor(1) as pool:
        return [
            world().size,
            pool.submit(lambda: (world().size, everywhere(note), job().size)).result(),
            pool.submit(contextvars.copy_context().run, lambda: world().size).result(),
        ]


def drive_threads() -> Any:
    return driven(lambda: [in_threads(), everywhere(in_threads)])


def test_a_thread_that_helps_is_alone() -> None:
    """Nothing that it does is done by a thread of another rank at that moment: a collective would meet another's."""
    helped = [(1, 0, 2), 1]
    assert ranks(2).run(drive_threads) == [[[1, *helped], [2, *helped]]] * 2
    assert ranks(2).run(in_threads) == [[2, *helped]] * 2
