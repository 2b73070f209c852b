"""What varies in a sweep, and the settings that a design makes of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from posttrain.errors import ConfigError
from posttrain.sweeps.axes import Choices, Range, axes_of, read_axes
from posttrain.sweeps.designs import at_random, grid, seeds_of, without_seed


def test_lists_vary_ranges_are_drawn_from_and_all_else_is_set() -> None:
    axes, fixed = read_axes(
        ["dpo.beta=[0.05,0.1]", "seed=0..2", "dpo.learning_rate=1e-5..1e-3 log", "dpo.steps=20", "sft.data=rows.jsonl"]
    )
    assert axes == (
        Choices("dpo.beta", (0.05, 0.1)),
        Choices("seed", (0, 1, 2)),
        Range("dpo.learning_rate", 1e-5, 1e-3, log=True),
    )
    assert fixed == ["dpo.steps=20", "sft.data=rows.jsonl"]
    # A list that is one value is a choice of its own.
    assert read_axes(["sft.adapter.targets=[[q_proj, v_proj]]"])[0] == (
        Choices("sft.adapter.targets", (["q_proj", "v_proj"],)),
    )
    assert read_axes(["dpo.steps=2..4"])[0] == (Range("dpo.steps", 2, 4, whole=True),)


def test_python_and_the_command_line_say_the_same() -> None:
    given = {
        "dpo.beta": np.array([0.05, 0.1]),
        "seed": range(3),
        "dpo.learning_rate": "1e-5..1e-3 log",
        "dpo.steps": 20,
    }
    typed = ["dpo.beta=[0.05,0.1]", "seed=0..2", "dpo.learning_rate=1e-5..1e-3 log", "dpo.steps=20"]
    assert axes_of(given) == read_axes(typed)
    assert axes_of({"sft.data": "rows.jsonl"}) == ((), ["sft.data=rows.jsonl"])
    assert axes_of({"sft.adapter": None})[1] == ["sft.adapter=null"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dpo.beta", "neither varies nor sets"),
        ("dpo.beta=[]", "no value to try"),
        ("dpo.beta=[0.1,0.2,0.1]", "a value stands twice"),
        ("dpo.beta=0.2..0.1", "the range holds no numbers"),
        ("dpo.beta=0..1 log", "the range holds no numbers"),
        ("dpo.beta=0.1...0.2", "looks like a range"),
        ("dpo.beta=0.1...2", "looks like a range"),
        ("dpo.beta=0.1..0.2 lin", "looks like a range"),
        ("dpo.beta=0.1..", "looks like a range"),
        ("dpo.beta=0.1,0.2", "looks like a list"),
        ("dpo.beta=(0.1, 2e-1)", "looks like a list"),
        ("name=[a,b]", "its runs would be the same"),
        ("out=[a,b]", "its runs would be the same"),
        ("seed=0.5..2", "seeds are whole numbers"),
        ("seed=[1,-1]", "from 0 up"),
        ("seed=[1,true]", "from 0 up"),
        ("seed=0..20000", "too many numbers"),
    ],
)
def test_what_is_no_axis_is_refused_by_its_own_text(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        read_axes([text])
    assert text in str(refused.value)


def test_a_key_stands_once_and_a_value_is_one_of_a_recipe() -> None:
    with pytest.raises(ConfigError, match=r"`dpo.beta` is given twice"):
        read_axes(["dpo.beta=[0.1,0.2]", "dpo.beta=0.3"])
    wrong: list[tuple[dict[Any, Any], str]] = [
        ({"dpo.beta": [object()]}, "none that a recipe can hold"),
        ({"dpo.beta": [math.nan]}, "none that a recipe can hold"),
        ({3: [1]}, "a key of a sweep"),
    ]
    for settings, said in wrong:
        with pytest.raises(ConfigError, match=said):
            axes_of(settings)


def test_a_grid_is_every_combination_and_needs_numbers_that_can_be_listed() -> None:
    axes, _ = read_axes(["a=[1,2]", "seed=[7,8]", "b=0..1"])
    assert seeds_of(axes, 0) == (7, 8) and seeds_of((), 5) == (5,)
    assert grid(without_seed(axes)) == [{"a": 1, "b": 0}, {"a": 1, "b": 1}, {"a": 2, "b": 0}, {"a": 2, "b": 1}]
    assert grid(()) == [{}]
    with pytest.raises(ConfigError, match="cannot try every number"):
        grid((Range("a", 0.1, 0.2),))


def test_draws_stay_within_are_spread_by_their_logarithm_and_grow() -> None:
    axes = (Range("rate", 1e-5, 1e-1, log=True), Range("k", 1, 4, whole=True), Choices("c", ("x", "y")))
    drawn = at_random(axes, 400, seed=3)
    assert drawn[:50] == at_random(axes, 50, seed=3) and drawn[:50] != at_random(axes, 50, seed=4)
    rates = [one["rate"] for one in drawn]
    assert all(1e-5 <= rate <= 1e-1 for rate in rates)
    # A quarter of the logarithm each; uniform draws would have 90 % in the last tenth.
    for low in (-5, -4, -3, -2):
        share = sum(low <= math.log10(rate) < low + 1 for rate in rates) / len(rates)
        assert 0.18 < share < 0.32
    assert {one["k"] for one in drawn} == {1, 2, 3, 4} and {one["c"] for one in drawn} == {"x", "y"}
    assert all(isinstance(one["k"], int) for one in drawn)
    with pytest.raises(ConfigError, match="fewer different settings than trials"):
        at_random((Choices("c", (1, 2)),), 3, seed=0)
