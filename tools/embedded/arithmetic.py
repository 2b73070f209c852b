"""Simple arithmetic: problems, their worked and direct solutions, and the held-out split.

A problem is a chain of two or three numbers: Problem((17, 25), ("+",)) is 17 + 25. Results are never negative.
Whether a problem is held out follows from a hash of its operands alone, so every module agrees on it
without a list: no text of any kind renders a held-out problem except the held-out files.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem((17, 25, 4), ("+", "-")) is 17 + 25 - 4."""

    numbers: tuple[int, ...]
    signs: tuple[str, ...]

    @property
    def result(self) -> int:
        return self.partial_results()[-1]

    def partial_results(self) -> tuple[int, ...]:
        """Left to right: (17, 25, 4) with +, - gives (17, 42, 38)."""
        totals = [self.numbers[0]]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            totals.append(totals[-1] + number if sign == "+" else totals[-1] - number)
        return tuple(totals)

    def text(self, plus: str = "+", minus: str = "-") -> str:
        """ "17 + 25 - 4", or with words: text("plus", "minus")."""
        parts = [str(self.numbers[0])]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            parts += [plus if sign == "+" else minus, str(number)]
        return " ".join(parts)


def is_round(number: int) -> bool:
    return number < 10 or number % 10 == 0


def is_held_out(problem: Problem) -> bool:
    """True for one problem in eight, by hash, among those that are not steps of other problems' workings.

    A pair with a one-digit number or a multiple of ten is a step of a worked solution, so it always trains.
    Sums are hashed without order: 17 + 25 and 25 + 17 are on the same side.
    """
    if len(problem.numbers) == 2 and any(is_round(number) for number in problem.numbers):
        return False
    symmetric = all(sign == "+" for sign in problem.signs)
    numbers = sorted(problem.numbers) if symmetric else problem.numbers
    digest = hashlib.sha256(f"{list(numbers)}{list(problem.signs)}".encode()).digest()
    return digest[0] < 32  # 32 of 256: one in eight


def hides_held_out(problem: Problem) -> bool:
    """True if the problem, or two neighbours within it, is held out: 17 + 25 - 4 contains 17 + 25."""
    pairs = zip(problem.numbers, problem.numbers[1:], problem.signs, strict=False)
    return is_held_out(problem) or any(is_held_out(Problem((a, b), (sign,))) for a, b, sign in pairs)


def steps(problem: Problem) -> list[tuple[int, str, int, int]]:
    """The lines of a worked solution: 47 + 38 is [(47, "+", 30, 77), (77, "+", 8, 85)]."""
    lines = []
    total = problem.numbers[0]
    for sign, number in zip(problem.signs, problem.numbers[1:], strict=True):
        tens = number - number % 10
        for part in (tens, number - tens) if tens and number % 10 and total >= 10 else (number,):
            after = total + part if sign == "+" else total - part
            lines.append((total, sign, part, after))
            total = after
    return lines


def wrong_result(result: int, rng: random.Random) -> int:
    """A slip that people make: one off, ten off, two off."""
    return max(0, result + rng.choice((-10, -2, -1, -1, 1, 1, 2, 10)))


def worked(problem: Problem, rng: random.Random | None = None) -> tuple[str, int]:
    """The worked solution and its result; with `rng`, one step goes wrong and the error is carried on.

    worked(47 + 38) == ("47 + 30 = 77, 77 + 8 = 85.", 85)
    """
    lines = steps(problem)
    slip = rng.randrange(len(lines)) if rng else -1
    total, parts = problem.numbers[0], []
    for index, (_, sign, part, _) in enumerate(lines):
        after = total + part if sign == "+" else max(0, total - part)
        if rng and index == slip:
            after = wrong_result(after, rng)
        parts.append(f"{total} {sign} {part} = {after}")
        total = after
    return ", ".join(parts) + ".", total


def in_words(number: int) -> str:
    """in_words(42) == "forty-two"; up to 199."""
    if number >= 100:
        remainder = number - 100
        return "one hundred" + (f" and {in_words(remainder)}" if remainder else "")
    if number < 20:
        return WORDS[number]
    return TENS[number // 10] + (f"-{WORDS[number % 10]}" if number % 10 else "")


def draw(rng: random.Random, *, held_out: bool, kind: str) -> Problem:
    """A problem of one kind, from one side of the split.

    kind: "small" one digit, "step" two digits and a round number, "pair" two digits twice,
    "triple" three small numbers, "chain" three numbers of up to two digits.
    """
    while True:
        problem = _candidate(rng, kind)
        if min(problem.partial_results()) < 0:
            continue
        if is_held_out(problem) if held_out else not hides_held_out(problem):
            return problem


def _candidate(rng: random.Random, kind: str) -> Problem:
    sign = rng.choice("+-")
    if kind == "small":
        return Problem((rng.randint(0, 9), rng.randint(0, 9)), (sign,))
    if kind == "step":
        part = rng.choice((rng.randint(1, 9), 10 * rng.randint(1, 9)))
        return Problem((rng.randint(10, 99), part), (sign,))
    if kind == "pair":
        return Problem((rng.randint(11, 99), rng.randint(11, 99)), (sign,))
    if kind == "triple":
        return Problem(tuple(rng.randint(1, 9) for _ in range(3)), (sign, rng.choice("+-")))
    if kind == "chain":
        return Problem((rng.randint(11, 60), rng.randint(2, 40), rng.randint(2, 40)), (sign, rng.choice("+-")))
    raise ValueError(f"no kind of problem is called {kind!r}")
