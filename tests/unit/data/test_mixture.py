"""Whose turn it is among several sources: by hand, in the long run, and where sources come and go."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from posttrain.data.mixture import Part, Stretch, drawn, place_of, plan, taken_before
from posttrain.data.split import split_by_content, split_sources
from posttrain.errors import ConfigError


def turns(shares: tuple[float, ...], draws: int) -> list[int]:
    """Which source each draw is of."""
    counts = [drawn(shares, draw) for draw in range(draws + 1)]
    found = []
    for before, after in pairwise(counts):
        steps = [late - early for early, late in zip(before, after, strict=True)]
        assert sorted(steps) == [0] * (len(shares) - 1) + [1], "a draw was taken back"
        found.append(steps.index(1))
    return found


def test_turns_by_hand() -> None:
    """Places of the first: 0.5 and 1.5 over 1/3, so 1.5 and 4.5; of the second 0.75, 2.25, 3.75, 5.25."""
    assert turns((1 / 3, 2 / 3), 6) == [1, 0, 1, 1, 0, 1]
    assert drawn((1 / 3, 2 / 3), 32) == (11, 21)
    assert [place_of((1 / 3, 2 / 3), 0, number) for number in (1, 2)] == [2, 5]
    # Equal places go to the one that stands first.
    assert turns((0.5, 0.5), 4) == [0, 1, 0, 1]


def test_ten_thousand_draws_are_the_weights() -> None:
    assert drawn((0.5, 0.3, 0.2), 10_000) == (5_000, 3_000, 2_000)
    assert drawn((2 / 3, 1 / 3), 10_000) == (6_667, 3_333)
    # And no stretch of them strays: each 100 have what 100 should have, within the bound of both ends.
    for first in range(0, 10_000, 100):
        before, after = drawn((0.5, 0.3, 0.2), first), drawn((0.5, 0.3, 0.2), first + 100)
        assert [late - early for early, late in zip(before, after, strict=True)] == [50, 30, 20]


def test_every_count_stays_near_its_share_and_none_is_taken_back() -> None:
    generator = random.Random(0)
    for _ in range(40):
        sources = generator.randint(1, 7)
        weights = [generator.choice([1, 2, 3, generator.random(), 0.001, 50]) for _ in range(sources)]
        shares = tuple(weight / sum(weights) for weight in weights)
        for draw, source in enumerate(turns(shares, 150), 1):
            counts = drawn(shares, draw)
            assert sum(counts) == draw
            assert place_of(shares, source, counts[source]) == draw
            assert all(
                abs(count - draw * share) <= 0.5 + share * sources / 2 + 1e-9
                for count, share in zip(counts, shares, strict=True)
            )


def test_the_millionth_draw_costs_what_the_first_does() -> None:
    counts = drawn((0.1,) * 10, 10**12 + 3)
    assert sum(counts) == 10**12 + 3 and max(counts) - min(counts) == 1


# ---------------------------------------------------------------- stretches


def test_a_curriculum_by_hand() -> None:
    """Four rows a step, ten steps: `a` until step 5, `b` from step 3; both for two steps of two rows each."""
    parts = (Part("a", rows=100, share=1.0, end=5), Part("b", rows=100, share=1.0, begin=3))
    assert plan(parts, 4, 40) == (
        Stretch(0, 12, (1.0, 0.0), (0, 0)),
        Stretch(12, 20, (0.5, 0.5), (12, 0)),
        Stretch(20, 40, (0.0, 1.0), (16, 4)),
    )
    assert taken_before(plan(parts, 4, 40), 40) == (16, 24)
    assert [taken_before(plan(parts, 4, 40), draw) for draw in (0, 12, 14, 20)] == [(0, 0), (12, 0), (13, 1), (16, 4)]


def test_a_source_that_is_used_up_leaves_its_turns_to_the_others() -> None:
    """`a` may be gone through once: 6 rows, every second draw, so it is used up after its sixth turn, draw 11."""
    parts = (Part("a", rows=6, share=1.0, epochs=1.0), Part("b", rows=50, share=1.0))
    stretches = plan(parts, 4, 30)
    assert stretches == (Stretch(0, 11, (0.5, 0.5), (0, 0)), Stretch(11, 30, (0.0, 1.0), (6, 5)))
    assert taken_before(stretches, 30) == (6, 24)


def test_a_share_of_an_epoch_and_repeated_rows() -> None:
    assert Part("a", rows=10, share=1.0, repeat=3, epochs=1.5).most == 45
    assert Part("a", rows=3, share=1.0, epochs=0.01).most == 1, "a source that is named is read"


def test_weights_are_shared_among_those_that_are_on() -> None:
    parts = (Part("a", 10, 3.0), Part("b", 10, 1.0), Part("c", 10, 1.0, begin=1))
    first, second = plan(parts, 10, 20)
    assert first.shares == (0.75, 0.25, 0.0) and second.shares == (0.6, 0.2, 0.2)


def test_nothing_on_names_the_step_and_why() -> None:
    parts = (Part("a", rows=4, share=1.0, epochs=2.0), Part("b", rows=4, share=1.0, begin=3))
    with pytest.raises(ConfigError, match="at step 3") as caught:
        plan(parts, 4, 20)
    assert caught.value.found == "used up: a; off: b"


# ---------------------------------------------------------------- held out of several sources


def test_a_row_of_two_sources_is_on_one_side() -> None:
    first, second = [f"a{i}" for i in range(50)], [f"b{i}" for i in range(20)]
    shared = [f"s{i}" for i in range(30)]
    sides = split_sources([first + shared, shared + second], 0.2, seed=0)
    for keys, (kept, out) in zip([first + shared, shared + second], sides, strict=True):
        assert sorted(kept + out) == list(range(len(keys)))
        assert len(out) <= 0.2 * len(keys), "a source loses no more than its share"
    trained = {keys[i] for keys, (kept, _) in zip([first + shared, shared + second], sides, strict=True) for i in kept}
    held_out = {keys[i] for keys, (_, out) in zip([first + shared, shared + second], sides, strict=True) for i in out}
    assert held_out and not trained & held_out
    assert held_out & set(shared), "a shared row may be held out, in both"


def test_sources_without_common_rows_are_split_as_each_alone() -> None:
    first, second = [f"a{i}" for i in range(50)], [f"b{i}" for i in range(20)]
    assert split_sources([first, second], 0.2, 3) == [split_by_content(first, 0.2, 3), split_by_content(second, 0.2, 3)]
