"""A choice among whole answers: which may be chosen, and how they vote.

    answers = candidates(solving, stopped)
    vote = vote_of(answers, equality)
    vote.winner, vote.count, vote.share                          # 0, 11, 0.6875

An answer votes for what it ends on (`posttrain.inference.answers`); one that ends on nothing has no vote. Of equal sums
the answer that was given first counts: draws are exchangeable, so any rule would do that does not depend on chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.inference.answers import Equality
from posttrain.inference.solution import Node, Stopped
from posttrain.inference.solving import Solving


def candidates(solving: Solving, stopped: Stopped) -> list[Node]:
    """The answers that may be chosen, in the order of their draws.

    One that the spending's end has cut is among them only where there is no other: it would be judged, and vote, by the
    beginning of an answer. One that has all the tokens that it may have is as the strategy wanted it.
    """
    answers = [node for node in solving.nodes if node.kind == "answer"]
    if stopped not in (Stopped.TOKENS, Stopped.SECONDS):
        return answers
    return [node for node in answers if not node.open] or answers


@dataclass(frozen=True, slots=True)
class Vote:
    """How answers voted: Vote(numbers=(0, None, 1, 1), sums={0: 1.0, 1: 2.0}) has the winner 1, by 2 of 3 votes."""

    numbers: tuple[int | None, ...]
    """For each answer what it voted for, numbered as first given; None: it has no vote."""
    sums: dict[int, float]
    """For each of these the sum of its votes' weights."""

    @property
    def winner(self) -> int | None:
        """The number with the largest sum, of equal ones the first; None without votes."""
        return max(self.sums, key=lambda number: (self.sums[number], -number), default=None)

    @property
    def members(self) -> list[int]:
        """The places of the answers that voted for the winner."""
        winner = self.winner
        return [] if winner is None else [place for place, number in enumerate(self.numbers) if number == winner]

    @property
    def count(self) -> int:
        """Votes for the winner."""
        return len(self.members)

    @property
    def share(self) -> float:
        """The winner's part of all weights; 0 where there is none."""
        total, winner = sum(self.sums.values()), self.winner
        return self.sums[winner] / total if winner is not None and total > 0 else 0.0

    @property
    def two_largest(self) -> tuple[float, float]:
        """The winner's sum and the runner-up's."""
        first, second, *_ = [*sorted(self.sums.values(), reverse=True), 0.0, 0.0]
        return first, second


def vote_of(answers: Sequence[Node], equality: Equality, weights: Sequence[float] | None = None) -> Vote:
    """The vote of answers, each with the weight 1 or its own, which is 0 or more."""
    numbers = equality.classes([node.answer for node in answers])
    sums: dict[int, float] = {}
    for place, number in enumerate(numbers):
        if number is not None:
            sums[number] = sums.get(number, 0.0) + (1.0 if weights is None else weights[place])
    return Vote(tuple(numbers), sums)
