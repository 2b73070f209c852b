"""Best-of-n: draw n answers, give the one with the highest score.

    best       argmax_i s_i                                    Stiennon et al. 2020, arXiv:2009.01325
    weighted   argmax_a sum over the answers i that say a of s_i    Li et al. 2023, arXiv:2206.02336

Of equal scores the earliest answer counts.

Deviation: `weighted` needs scores of 0 and more, or an answer would lose by being said twice. Scores of reward models
are logits, so their sigmoid is summed, as search-and-learn does with the probabilities of its process reward model;
log-probs are summed as probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from posttrain.config.strategies import BestOfN
from posttrain.config.strategies.base import LogProbScorer, ScorerSettings
from posttrain.inference.answers import Equality
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded, first_best


async def solve(solving: Solving, settings: BestOfN) -> Solution:
    stopped = Stopped.DONE
    try:
        await solving.sample(settings.n)
    except SpendingEnded as ended:
        # Fewer answers than n are still answers to choose from.
        stopped = ended.reason
    answers = [node for node in solving.nodes if node.kind == "answer"]
    if not answers:
        return solving.solution(None, stopped)
    scores = await solving.score(answers, settings.scorer)
    if settings.choose == "best":
        return solving.solution(first_best(answers, scores), stopped, answers=len(answers))
    equality = solving.asked.equality(settings.answers)
    return solving.solution(weighted_best(answers, scores, settings.scorer, equality), stopped, answers=len(answers))


def weighted_best(answers: Sequence[Node], scores: Sequence[float], scorer: ScorerSettings, equality: Equality) -> Node:
    """The best-scored node of the answer with the largest sum of weights; the best of all where none says anything."""
    numbers = equality.classes([node.answer for node in answers])
    sums: dict[int, float] = {}
    for number, score in zip(numbers, scores, strict=True):
        if number is not None:
            sums[number] = sums.get(number, 0.0) + weight(score, scorer)
    if not sums:
        return first_best(answers, scores)
    # Classes are numbered as they first occur: of equal sums the earlier counts.
    best = max(sums, key=lambda number: (sums[number], -number))
    members = [index for index, number in enumerate(numbers) if number == best]
    return first_best([answers[index] for index in members], [scores[index] for index in members])


def weight(score: float, scorer: ScorerSettings) -> float:
    """A score as a weight of 0 or more."""
    if isinstance(scorer, LogProbScorer):
        return math.exp(score)
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0
