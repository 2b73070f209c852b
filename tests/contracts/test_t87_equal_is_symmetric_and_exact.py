"""T87: equal answers are equal whichever is the row's, and what is not equal is not, however small the difference.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest

from posttrain.rewards import Rubric, Sampled, resolve
from posttrain.types import Message, RowRef, Task


def reward(gold: str, completion: str) -> float | None:
    task = Task((Message("user", "?"),), gold, RowRef("tasks.jsonl", 1))
    with Rubric([resolve({"kind": "math"})]) as rubric:
        return rubric.score([Sampled(task.prompt, completion, task)])[0].total


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac{1}{2^{60}}", r"\frac{1}{2^{61}}"),
        (r"\frac{1}{52!}", r"\frac{1}{30!}"),
        (r"1-\frac{1}{2^{100}}", r"1-\frac{1}{2^{99}}"),
        (r"\frac{2^{70}+1}{3 \cdot 2^{71}}", r"\frac{1}{3 \cdot 2^{71}}"),
        (r"\sqrt{10^{40}+1}", "10^{20}"),
        ("3", "x+y=3"),
        ("5 cm", "5 m"),
        ("x<3", r"x \le 3"),
    ],
)
def test_what_is_not_equal(one: str, other: str) -> None:
    assert reward(one, rf"\boxed{{{other}}}") == 0
    assert reward(other, rf"\boxed{{{one}}}") == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"(-\infty,3)", "x<3"),
        ("[2,5]", r"2\le x\le 5"),
        ("1/2", "0.5"),
        ("x+y=3", "y=3-x"),
        (r"\emptyset", r"\varnothing"),
    ],
)
def test_what_is_equal(one: str, other: str) -> None:
    assert reward(one, rf"\boxed{{{other}}}") == 1
    assert reward(other, rf"\boxed{{{one}}}") == 1


@pytest.mark.parametrize(
    ("gold", "completion", "value"),
    [
        ("1/2", "The probability is 1/2.", 1),
        ("5", "The answer is 5. This took 3 steps.", 1),
        ("6", "The answer is 5 or 6.", 0),
        ("7", r"\boxed{6 \to 7}", 0),
        ("5", r"\boxed{\neq 5}", 0),
        ("7", r"\boxed{7\text{ apples, }8\text{ pears}}", 0),
        ("B", "**B**", 1),
        ("C", r"\boxed{\textbf{(C)}\ 12}", 1),
    ],
)
def test_where_the_answer_stands(gold: str, completion: str, value: float) -> None:
    assert reward(gold, completion) == value
