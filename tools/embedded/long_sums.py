"""Sums of three to five numbers that are worked a line at a time: what the recipe `test_time_compute` is about.

    demonstrations()  {"messages": [{"role": "user", ...}, {"role": "assistant", "17 + 25 = 42\\n42 - 6 = 36\\n..."}]}
    tasks()           {"prompt": "17 + 25 - 6 = ?", "answer": "36"}
    held_out()        the same, of other sums

A line is a step, and a step is right or wrong by itself: a search over steps has something to search, and a process
reward model something to judge. The three sets share no sum.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tools.embedded.arithmetic import Problem

Row = dict[str, Any]
DEMONSTRATIONS, TASKS, HELD_OUT = 1_200, 600, 200
LARGEST = 200
"""Of all partial results: the model's base text holds few numbers beyond."""


def demonstrations() -> list[Row]:
    problems = [*_problems()][:DEMONSTRATIONS]
    return [
        {"messages": [{"role": "user", "content": _prompt(p)}, {"role": "assistant", "content": lines(p)}]}
        for p in problems
    ]


def tasks() -> list[Row]:
    return [_task(problem) for problem in [*_problems()][DEMONSTRATIONS : DEMONSTRATIONS + TASKS]]


def held_out() -> list[Row]:
    return [_task(problem) for problem in [*_problems()][DEMONSTRATIONS + TASKS :]]


def lines(problem: Problem) -> str:
    """lines(Problem((17, 25, 6), ("+", "-"))) == "17 + 25 = 42\\n42 - 6 = 36\\nThe answer is 36." """
    totals = problem.partial_results()
    worked = [
        f"{before} {sign} {number} = {after}"
        for before, sign, number, after in zip(totals, problem.signs, problem.numbers[1:], totals[1:], strict=False)
    ]
    return "\n".join([*worked, f"The answer is {problem.result}."])


def _prompt(problem: Problem) -> str:
    return f"{problem.text()} = ?"


def _task(problem: Problem) -> Row:
    return {"prompt": _prompt(problem), "answer": str(problem.result)}


def _problems(seed: int = 7) -> Iterator[Problem]:
    """All sums of the three sets, each once, in one order."""
    rng, seen = random.Random(seed), set[Problem]()
    while len(seen) < DEMONSTRATIONS + TASKS + HELD_OUT:
        count = rng.choice((3, 4, 4, 5))
        numbers = tuple(rng.randrange(2, 60) for _ in range(count))
        problem = Problem(numbers, tuple(rng.choice("+-") for _ in numbers[1:]))
        totals = problem.partial_results()
        if problem not in seen and min(totals) >= 0 and max(totals) <= LARGEST:
            seen.add(problem)
            yield problem
