"""Which reward can judge the answers of these tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.errors import ConfigError
from posttrain.types import Task

SHORT_WORDS = 5
"""Longest answer that a model can be expected to write letter by letter."""
ENOUGH = 0.95
"""Share of the answers that have to be of a form; the gold check of `posttrain check` names the others."""
EXAMPLE = "rewards: [{kind: function, function: my_rewards:score}]"

_MATHS = re.compile(r"\d|\\[a-z]+|^\W*[A-Ja-j]\W*$")
"""A number, a formula, or the letter of a choice: what the reward `math` reads."""
_TESTS = ("tests", "test", "test_list", "cases")
_CONSTRAINTS = ("instruction_id_list", "instructions")


@dataclass(frozen=True, slots=True)
class Judge:
    """JudgeOf some tasks: Judge("{kind: math}", "1 if the last number is the answer, else 0")"""

    settings: str
    """As the recipe writes it."""
    says: str


def judge_of(tasks: Sequence[Task], data: str) -> Judge:
    """
    Raises:
        ConfigError: the answers are texts of which none of the rewards can say that they are right, or there are none.
    """
    for columns, judge in (
        (_TESTS, Judge("{kind: code}", "1 where the program passes the row's tests, else 0")),
        (_CONSTRAINTS, Judge("{kind: instructions}", "the share of the row's constraints that are met")),
    ):
        if _share([any(column in task.metadata for column in columns) for task in tasks]) >= ENOUGH:
            return judge
    answers = [task.answer for task in tasks if task.answer is not None]
    if not answers:
        raise _nothing_judges(data, "no answer in any row", "name its column, or write a reward")
    if _share([bool(_MATHS.search(answer)) for answer in answers]) >= ENOUGH:
        return Judge("{kind: math}", "1 if the answer is equal to the row's as mathematics, else 0")
    if _share([len(answer.split()) <= SHORT_WORDS for answer in answers]) >= ENOUGH:
        return Judge("{kind: exact, ignore_case: true}", "1 if the answer is the row's, letter by letter, else 0")
    longest = max(answers, key=len)
    raise _nothing_judges(
        data,
        f"answers such as {longest[:60]!r}",
        "write a reward in my_rewards.py, or imitate the answers (`posttrain new chat`, column `completion`)",
    )


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _nothing_judges(data: str, found: str, remedy: str) -> ConfigError:
    return ConfigError(
        "no reward can say whether an answer to these tasks is right",
        where=data,
        found=found,
        expected="numbers, formulas, letters of choices, or answers of up to five words; or rows with `tests`",
        example=f"{EXAMPLE}, with `def score(prompt, completion, task): return 1.0`",
        remedy=remedy,
    )
