"""Best-of-n: draw n answers, give the one with the highest score.

    best       argmax_i s_i                                             Stiennon et al. 2020, arXiv:2009.01325
    weighted   argmax_a sum over the answers i that say a of w(s_i)     Li et al. 2023, arXiv:2206.02336

Of equal scores, and of equal sums, the earlier answer counts. An answer that its scorer could not judge is chosen last
and has no weight; where no answer has any weight, the highest score counts. `reranking` a pool by a reward model, a
process reward model (its steps' scores made one), rewards with a judge among them, the model's log-prob or its own
marks is the choice of the scorer.

Deviation: votes need weights of 0 or more, or an answer would lose by being said twice.
1. A reward model's score is a logit: its sigmoid is summed, as search-and-learn does with the probabilities of its
   process reward model. The product over steps is the log of a probability, which is summed itself.
2. A log-prob counts as the probability of which it is the log.
3. Rewards and marks are summed as they are, and below 0 count as 0: verifiers give 0 or 1, or -1 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from posttrain.config.strategies import BestOfN
from posttrain.config.strategies.base import LogProbScorer, RewardModelScorer, ScorerSettings
from posttrain.inference.answers import Equality
from posttrain.inference.choosing import Vote, candidates, vote_of
from posttrain.inference.scorers import ABSTAINED, label_of
from posttrain.inference.solution import Node, Solution, Stopped
from posttrain.inference.solving import Solving, SpendingEnded, first_best


async def solve(solving: Solving, settings: BestOfN) -> Solution:
    stopped = Stopped.DONE
    try:
        await solving.sample(settings.n)
    except SpendingEnded as ended:
        # Fewer answers than n are still answers to choose from.
        stopped = ended.reason
    answers = candidates(solving, stopped)
    if not answers:
        return solving.solution(None, stopped)
    try:
        scores = await solving.score(answers, settings.scorer)
    except SpendingEnded as ended:
        # Marks cost tokens too: those that were given until now still choose.
        stopped, label = ended.reason, label_of(settings.scorer)
        scores = [node.scores.get(label, ABSTAINED) for node in answers]
    facts: dict[str, Any] = {"answers": len(answers), "abstained": sum(score == ABSTAINED for score in scores)}
    if settings.choose == "best":
        return solving.solution(first_best(answers, scores), stopped, answer=None, **facts)
    best, vote = weighted_best(answers, scores, settings.scorer, solving.asked.equality(settings.answers))
    return solving.solution(best, stopped, answer=None, **facts, votes=vote.count, share=vote.share)


def weighted_best(
    answers: Sequence[Node], scores: Sequence[float], scorer: ScorerSettings, equality: Equality
) -> tuple[Node, Vote]:
    """The best-scored node of the answer with the largest sum of weights, and the vote."""
    vote = vote_of(answers, equality, weights(scores, scorer))
    chosen = vote.members if vote.share > 0 else range(len(answers))
    return first_best([answers[place] for place in chosen], [scores[place] for place in chosen]), vote


def weights(scores: Sequence[float], scorer: ScorerSettings) -> list[float]:
    """Scores as weights of 0 or more; only their ratios mean anything."""
    if isinstance(scorer, LogProbScorer) or (isinstance(scorer, RewardModelScorer) and scorer.aggregate == "product"):
        # Against the highest: the probabilities of long answers are smaller than any number that is kept.
        highest = max(scores)
        return [0.0 if score == ABSTAINED else math.exp(score - highest) for score in scores]
    if isinstance(scorer, RewardModelScorer):
        # exp overflows beyond 709; a logit of -700 is a probability of 0 for every purpose.
        return [1 / (1 + math.exp(-score)) if score > -700 else 0.0 for score in scores]
    return [max(score, 0.0) for score in scores]
