"""Scores as values from 0 to 1, and resampling by weights.

value_of(0.0, process_reward_model)           # 0.5: its scores are logits
copies([0.5, 0.25, 0.25], 4, stream)          # [2, 1, 1]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from posttrain.config.strategies.base import LogProbScorer, RewardModelScorer, ScorerSettings, SelfScorer


def value_of(score: float, scorer: ScorerSettings) -> float:
    """A score as a value that UCT can weigh against its bonus: from 0 to 1 but for rewards, which count as they are.

    Reward models: the sigmoid of their logit (of a product of steps: the probability). The model itself: log-probs as
    probabilities, marks from 1 to 10 as shares. An abstention is worth 0.
    """
    if score == -math.inf:
        return 0.0
    if isinstance(scorer, LogProbScorer) or (isinstance(scorer, RewardModelScorer) and scorer.aggregate == "product"):
        return math.exp(min(score, 0.0))
    if isinstance(scorer, RewardModelScorer):
        # In two forms, or exp would overflow for one sign of large scores.
        return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
    return (score - 1) / 9 if isinstance(scorer, SelfScorer) else score


def softmax(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    """exp(score / temperature), normalised; scores of -inf weigh nothing, and all alike if there are no others."""
    highest = max(scores)
    if highest == -math.inf:
        return [1 / len(scores)] * len(scores)
    weights = [math.exp((score - highest) / temperature) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def copies(
    weights: Sequence[float],
    count: int,
    stream: np.random.Generator,
    how: Literal["systematic", "multinomial"] = "systematic",
) -> list[int]:
    """How often each is drawn when `count` are drawn with replacement by weights that add up to 1.

    `systematic` (Kitagawa 1996): the points (i + u) / count, one uniform u for all, fall into intervals as wide as the
    weights; each count is count * weight rounded up or down. `multinomial`: `count` uniform points.
    """
    edges = np.cumsum(np.asarray(weights, dtype=np.float64))
    points = (np.arange(count) + stream.random()) / count if how == "systematic" else stream.random(count)
    # The sum of weights may be 1 - 1e-16: a point above it belongs to the last weight that is not 0.
    last = int(np.flatnonzero(np.asarray(weights))[-1])
    drawn = np.minimum(np.searchsorted(edges, points, side="right"), last)
    return [int(number) for number in np.bincount(drawn, minlength=len(weights))]
