"""Mathematics: what a response answers, what is equal, and that nothing hangs, on any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from posttrain.rewards import gold_check, resolve
from posttrain.rewards.answers import Want, boxed, gold_answer, stated
from posttrain.rewards.equality import verdict
from posttrain.rewards.maths import Math, _Comparer
from posttrain.types import Message, RowRef, Task

PROMPT = (Message("user", "?"),)


def task(answer: str | None, row: int = 1) -> Task:
    return Task(PROMPT, answer, RowRef("maths.jsonl", row))


@pytest.fixture(scope="module")
def verify() -> Iterator[Math]:
    one = Math(seconds=1)
    yield one
    one.close()


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{4}", "4"),
        (r"\boxed{3}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\fbox{1} \boxed {a{b}c}", "a{b}c"),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"\boxed{}", ""),
        ("4", None),
        (r"\boxed{" * 50, None),
    ],
)
def test_the_last_box_that_is_closed(text: str, content: str | None) -> None:
    assert boxed(text) == content


@pytest.mark.parametrize(
    ("text", "want", "answer"),
    [
        ("So 3 + 4 = 7\n#### 7\n", "number", "7"),
        ("The answer is **7**.", "number", "7"),
        ("Answer: 3 apples", "number", "3 apples"),
        ("The final answer is x + 1.", "other", "x + 1"),
        ("5 and 7.", "number", "5 and 7"),
        ("The answer is 1/2.", "number", "1/2"),
        (r"So it is \frac{10}{5}", "number", r"\frac{10}{5}"),
        ("10/2 = 5", "number", "10/2 = 5"),
        ("That is 2^3.", "number", "2^3"),
        ("none", "number", ""),
        ("It is so.\nblue.", "other", "blue"),
        ("The correct option is **B**.", "choice", "B"),
        ("(B) because it is right", "choice", "B"),
        ("A triangle has three sides.", "choice", ""),
        ("", "other", ""),
    ],
)
def test_what_a_text_without_a_box_answers(text: str, want: Want, answer: str) -> None:
    assert stated(text, want=want) == answer


def test_gold_answers_of_known_data_sets() -> None:
    assert gold_answer("4 + 3 = <<4+3=7>>7\n#### 7") == "7"
    assert gold_answer(r"We see that it is $\boxed{\pi}$.") == r"\pi"
    assert gold_answer(" 7 ") == "7"


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("7", "7.0", True),
        ("$1,200", "1200", True),
        ("1200", "1,200 dollars", True),
        (r"12\text{ cm}", "12 cm", True),
        ("12 cm", "12 km", False),
        ("1 apple", "1 apples", True),
        ("12", "12.5", False),
        (r"\dfrac12", r"\frac12", True),
        (r"$\left(1, 2\right)$", "(1,2)", True),
        ("1/2", "0.5", True),
        ("3x", "3", False),
        ("50%", "0.5", True),
        ("2pi", "6.28", False),
        ("3 1/2", "31/2", False),
        ("1 2", "12", False),
        ("1 000", "1000", True),
        ("5 million", "5", False),
        ("5 million", "5,000,000", True),
        ("2 dozen eggs", "24 eggs", True),
        (r"5 \text{ M}", r"5 \text{ m}", False),
        (r"5 \text{ M}", r"5 \text{ M}", True),
        (r"5 \text{ N}", "5 newtons", True),
        ("5 KM", "5000 m", True),
        ("60 mph", r"96.56064 \text{ km/h}", True),
        ("( 1 , 2 )", "(1,2)", True),
    ],
)
def test_what_is_the_same(left: str, right: str, same: bool) -> None:
    assert verdict(left, right)[0] is same


@pytest.mark.parametrize(
    ("gold", "completion", "value"),
    [
        ("1/2", r"\boxed{0.5}", 1),
        (r"\frac{\sqrt{2}}{2}", r"\boxed{\frac{1}{\sqrt 2}}", 1),
        ("x^2+1", r"\boxed{1+x^2}", 1),
        ("x^2+1", r"\boxed{1-x^2}", 0),
        (r"50\%", r"\boxed{0.5}", 1),
        (r"\{1,2\}", r"\boxed{\{2,1\}}", 1),
        ("6", r"\boxed{3!}", 1),
        ("10", r"\boxed{x = 10}", 1),
        ("(1,2)", r"\boxed{(2,1)}", 0),
        ("2", r"\boxed{1, 2, 3}", 0),
        ("2", r"\boxed{2 \text{ or } 3}", 0),
        ("3x", r"\boxed{3}", 0),
        ("42", r"<think>\boxed{42}", 0),
        ("42", r"<think>\boxed{41}</think>It is \boxed{42}.", 1),
        ("42", r"\boxed{}", 0),
        ("42", "", 0),
        ("0.5", "The answer is 1/2.", 1),
        ("5", "The answer is 10/5.", 0),
        ("2", "It is 1/2.", 0),
        ("4", r"\boxed{x >= 4}", 0),
        ("4", r"\boxed{x != 4}", 0),
        ("31/2", r"\boxed{3 1/2}", 0),
        ("A", r"\boxed{\text{A}}", 1),
        ("A", r"\boxed{B}", 0),
    ],
)
def test_verifying(verify: Math, gold: str, completion: str, value: float) -> None:
    assert verify(PROMPT, completion, task(gold)) == value


def test_only_a_box_counts_where_that_is_asked() -> None:
    verify = Math(require_boxed=True)
    assert verify(PROMPT, "The answer is 42.", task("42")) == 0
    assert verify(PROMPT, r"\boxed{42}", task("42")) == 1


BEYOND = (r"\sum_{k=1}^{10} k", r"\boxed{55}")
"""A form that only the other process compares."""


def test_a_power_tower_takes_no_longer_than_it_may(verify: Math) -> None:
    started = time.monotonic()
    assert verify(PROMPT, r"\boxed{9^{9^{9^{9}}}}", task("3")) == 0
    assert time.monotonic() - started < 1


def test_what_the_other_process_cannot_compare_in_time_is_wrong_and_counted() -> None:
    verify = Math(seconds=1)
    try:
        assert verify(PROMPT, BEYOND[1], task(BEYOND[0])) == 1
        started = time.monotonic()
        assert verify(PROMPT, r"\boxed{\sum_{k=1}^{3} k^{9^{9^{9}}}}", task("3")) == 0
        assert time.monotonic() - started < 10
        assert verify(PROMPT, BEYOND[1], task(BEYOND[0])) == 1, "it did not come back"
        assert verify.outcomes["asked"] >= 2
    finally:
        verify.close()


def test_a_dead_process_is_replaced_and_asked_again(verify: Math) -> None:
    assert verify(PROMPT, BEYOND[1], task(BEYOND[0])) == 1
    assert verify._comparer is not None
    verify._comparer._process.kill()
    assert verify(PROMPT, BEYOND[1], task(BEYOND[0])) == 1, "a death says nothing about the answer"


def test_a_process_that_dies_twice_is_recorded(
    verify: Math, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_Comparer, "ask", lambda *given: "crash")
    before = verify.outcomes["crash"]
    assert verify(PROMPT, BEYOND[1], task(BEYOND[0])) == 0
    assert verify.outcomes["crash"] == before + 1
    assert "died twice" in caplog.text


def test_how_verdicts_come_about_is_counted() -> None:
    verify = Math()
    for completion in (r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{6 \to 7}", "", r"\boxed{2}"):
        verify(PROMPT, completion, task("1/2"))
    assert verify.outcomes == {"text": 1, "read": 2, "unread": 1, "none": 1}


def test_it_works_off_the_main_thread(verify: Math) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert threading.current_thread() is threading.main_thread()
        rows = [pool.submit(verify, PROMPT, rf"\boxed{{{n}/{2 * n}}}", task("1/2")) for n in range(1, 9)]
        assert [row.result() for row in rows] == [1] * 8


def test_it_accepts_its_own_gold_answers(verify: Math) -> None:
    answers = [
        "42",
        "-3.5",
        "1/2",
        r"\frac{3}{4}",
        "x^2 + 1",
        "4 + 3 = 7\n#### 7",
        "(1, 2)",
        r"90^\circ",
        "Friday",
        "$5",
    ]
    rows = [task(answer, row) for row, answer in enumerate(answers)]
    scorer = resolve({"kind": "math"})
    try:
        assert gold_check([*rows, task(None, 99)], [scorer]) == []
    finally:
        assert scorer.close is not None
        scorer.close()
