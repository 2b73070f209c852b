"""Which rows of which source a step takes: permutations of each, the same however the sources are listed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from posttrain.data.mixture import Part
from posttrain.errors import ConfigError
from posttrain.training.mixed_order import MixedOrder, PooledOrder, planned_draws
from posttrain.training.order import RowOrder

MATHS, CHAT = Part("maths", rows=20, share=2.0), Part("chat", rows=9, share=1.0)


def order_of(*parts: Part, draws: int = 60, rows_per_step: int = 6, seed: int = 0, **options: Any) -> MixedOrder:
    offsets = [sum(part.rows for part in parts[:place]) for place in range(len(parts))]
    options = {"epoch": "total", **options}
    return MixedOrder.plan(parts, offsets, rows_per_step=rows_per_step, draws=draws, seed=seed, **options)


def rows_of(order: MixedOrder, name: str, steps: range | None = None) -> list[int]:
    """The rows of one source in the order in which they come, counted in the source."""
    place = next(i for i, part in enumerate(order.parts) if part.name == name)
    first, size = order.offsets[place], order.parts[place].rows
    taken = [index for step in steps or range(order.steps) for index in order.at(step)]
    return [index - first for index in taken if first <= index < first + size]


def test_every_step_holds_what_the_weights_say() -> None:
    order = order_of(MATHS, CHAT)
    assert order.steps == 10 and [len(order.at(step)) for step in range(10)] == [6] * 10
    assert all(sum(index < 20 for index in order.at(step)) == 4 for step in range(10))
    assert order.taken == {"maths": 40, "chat": 20}


def test_every_pass_of_a_source_is_a_permutation_of_its_own() -> None:
    order = order_of(MATHS, CHAT)
    maths, chat = rows_of(order, "maths"), rows_of(order, "chat")
    assert sorted(maths[:20]) == sorted(maths[20:]) == list(range(20)) and maths[:20] != maths[20:]
    assert sorted(chat[:9]) == sorted(chat[9:18]) == list(range(9)) and chat[:9] != chat[9:18]


def test_listing_the_sources_in_another_order_renames_the_rows_and_changes_none() -> None:
    one, other = order_of(MATHS, CHAT), order_of(CHAT, MATHS)
    for step in range(one.steps):
        moved = [index + 9 if index < 20 else index - 20 for index in one.at(step)]
        assert moved == other.at(step)
    assert one.arithmetic("rows") == other.arithmetic("rows")


def test_a_source_keeps_its_order_whatever_the_shares_of_the_others() -> None:
    lone, beside = order_of(MATHS), order_of(replace(MATHS, share=0.3), CHAT)
    assert rows_of(lone, "maths")[:14] == rows_of(beside, "maths")[:14]
    assert rows_of(order_of(MATHS, seed=1), "maths") != rows_of(lone, "maths")
    assert rows_of(order_of(replace(MATHS, name="sums")), "sums") != rows_of(lone, "maths")


def test_a_step_is_a_function_of_its_number() -> None:
    long = order_of(MATHS, CHAT, draws=6 * 10**9)
    assert long.at(3) == order_of(MATHS, CHAT).at(3)
    assert len(set(long.at(10**9 - 1))) == 6


def test_rows_that_stand_twice_come_twice_in_an_epoch() -> None:
    order = order_of(replace(CHAT, repeat=2), draws=18)
    assert Counter(rows_of(order, "chat")) == dict.fromkeys(range(9), 2)
    assert order.epochs_of == {"chat": 1.0}


def test_the_last_step_takes_what_is_left() -> None:
    order = order_of(MATHS, draws=20)
    assert [len(order.at(step)) for step in range(order.steps)] == [6, 6, 6, 2] and order.smallest_step == 2
    assert sorted(rows_of(order, "maths")) == list(range(20))
    assert order.epoch_after(2) == 12 / 20 and order.epoch_after(4) == 1.0


def test_the_line_of_a_mixture() -> None:
    order = order_of(MATHS, replace(CHAT, begin=5), rows_per_step=6)
    assert order.arithmetic("pairs") == (
        "29 pairs of 2 sources, 6 a step: maths 6; from step 6 chat 2, maths 4; 10 steps in all; "
        "epochs of each: chat 1.11, maths 2.5"
    )


# ---------------------------------------------------------------- how long it is


def draws(*parts: Part, **options: Any) -> int:
    return planned_draws(parts, 6, **{"epochs": 1.0, "steps": None, "epoch": "total", **options})


def test_an_epoch_is_all_rows_or_ends_with_a_source() -> None:
    assert draws(MATHS, CHAT) == 29 and draws(MATHS, CHAT, epochs=2.5) == 72
    assert draws(MATHS, CHAT, epochs=None, steps=7) == 42
    # Two of three draws are maths: the 9 rows of chat are through with draw 26, the 20 of maths with draw 30.
    assert draws(MATHS, CHAT, epoch="first_exhausted") == 26
    assert draws(MATHS, CHAT, epoch="all_exhausted") == 30


def test_a_source_that_is_used_up_makes_the_run_shorter() -> None:
    assert draws(MATHS, replace(CHAT, epochs=1.0), epochs=3.0) == 60 + 9
    assert draws(replace(MATHS, epochs=0.5), CHAT) == 10 + 9
    with pytest.raises(ConfigError, match="no step"):
        draws(MATHS, epochs=0.01)


# ---------------------------------------------------------------- one pool


def test_a_pool_is_the_order_of_one_list_of_files() -> None:
    pool = PooledOrder((MATHS, CHAT), (0, 20), RowOrder.plan(29, 6, epochs=2, steps=None, seed=4))
    plain = RowOrder.plan(29, 6, epochs=2, steps=None, seed=4)
    assert [pool.at(step) for step in range(pool.steps)] == [plain.at(step) for step in range(plain.steps)]
    assert pool.smallest_step == plain.smallest_step == 5
    assert pool.arithmetic("rows").endswith("on average a step holds maths 4.14, chat 1.86")


def test_rows_of_a_pool_that_stand_twice() -> None:
    twice = replace(CHAT, repeat=2)
    pool = PooledOrder((MATHS, twice), (0, 20), RowOrder.plan(38, 6, epochs=1, steps=None, seed=4))
    counts = Counter(index for step in range(pool.steps) for index in pool.at(step))
    assert counts == {index: 1 if index < 20 else 2 for index in range(29)}
