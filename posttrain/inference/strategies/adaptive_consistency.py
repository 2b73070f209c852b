"""Adaptive-Consistency: one answer after the other, until the majority is unlikely to change.

    repeat up to n times:  draw an answer;  stop if P(p_1 > p_2 | v_1, v_2) >= threshold
    P = P(X > 1/2),  X ~ Beta(v_1 + 1, v_2 + 1)                    Aggarwal et al. 2023, arXiv:2305.11860, section 3

v_1 and v_2 are the votes of the two answers with the most, under a uniform prior. For whole numbers of votes the
integral is a sum: with m = v_1 + v_2 + 1, P = sum over j from v_2 + 1 to m of C(m, j) / 2^m, which is exact here. Four
equal answers are enough for 0.95 (P = 31/32). The draws are the first ones of self-consistency with the same seed.

Deviation: an answer that ends on nothing has no vote; the authors' code counts all of them as one more answer.
"""

from __future__ import annotations

from math import comb

from posttrain.config.strategies import AdaptiveConsistency
from posttrain.inference.choosing import candidates, vote_of
from posttrain.inference.solution import Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded
from posttrain.inference.strategies.self_consistency import elected


async def solve(solving: Solving, settings: AdaptiveConsistency) -> Solution:
    stopped, drawn = Stopped.DONE, 0
    equality = solving.asked.equality(settings.answers)

    def probability() -> float:
        votes = vote_of(candidates(solving, stopped), equality).two_largest
        return lead_probability(round(votes[0]), round(votes[1]))

    try:
        while drawn < settings.n:
            drawn += len(await solving.sample(min(settings.at_once, settings.n - drawn)))
            if drawn < settings.n and probability() >= settings.threshold:
                stopped = Stopped.AGREED
                break
    except SpendingEnded as ended:
        stopped = ended.reason
    return elected(solving, settings, equality, stopped, probability=probability())


def lead_probability(first: int, second: int) -> float:
    """P(X > 1/2) for X ~ Beta(first + 1, second + 1): lead_probability(4, 0) == 31 / 32."""
    trials = first + second + 1
    return sum(comb(trials, j) for j in range(second + 1, trials + 1)) / 2**trials
