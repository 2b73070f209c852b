"""Do two scorers mean the same? Rank correlations, and the share of pairs that both put in the same order."""

from __future__ import annotations

import numpy as np

from posttrain.intervals import Score, average, bootstrap
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.reward import Agreement

MOST_FOR_KENDALL = 5_000
"""Kendall's tau compares every value with every other; of more values, evenly many are taken."""


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean: ranks([3, 1, 3]) -> [2.5, 1, 2.5]."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place]


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation along the last axis; 0 where one of the two does not vary, for nothing is known then."""
    x = first - first.mean(axis=-1, keepdims=True)
    y = second - second.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    return np.divide((x * y).sum(axis=-1), scale, out=np.zeros_like(scale), where=scale > 0)


def spearman(first_PK: np.ndarray, second_PK: np.ndarray) -> Score:
    """Spearman's rho over all values, its interval over the rows P: answers to one prompt are drawn together.

    The ranks are those of the whole sample in every resample.
    """
    x = ranks(first_PK.ravel()).reshape(first_PK.shape)
    y = ranks(second_PK.ravel()).reshape(second_PK.shape)

    def rho(index: np.ndarray) -> np.ndarray:
        flat = (*index.shape[:-1], -1)
        return pearson(x[index].reshape(flat), y[index].reshape(flat))

    return bootstrap(len(x), rho)


def kendall(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's tau-b (1945): concordant minus discordant pairs of values, corrected for ties; 0 if one is constant."""
    every = -(-len(first) // MOST_FOR_KENDALL)
    x, y = first[::every], second[::every]
    agree = ties_x = ties_y = 0.0
    for index in range(len(x) - 1):
        before, after = np.sign(x[index + 1 :] - x[index]), np.sign(y[index + 1 :] - y[index])
        agree += float((before * after).sum())
        ties_x += float((before != 0).sum())
        ties_y += float((after != 0).sum())
    return agree / float(np.sqrt(ties_x * ties_y)) if ties_x and ties_y else 0.0


def agreement(first_PK: np.ndarray, second_PK: np.ndarray) -> Agreement:
    """Two scorers on the same answers, K to each of P prompts.

    same_order: of the pairs of answers to one prompt, the share that both put in the same order, or both call equal.
    spearman, kendall: over all answers, whichever prompt they are to.
    """
    left, right = np.triu_indices(first_PK.shape[1], k=1)
    same = np.sign(first_PK[:, left] - first_PK[:, right]) == np.sign(second_PK[:, left] - second_PK[:, right])
    return Agreement(
        same_order=Figure.of(average(same.mean(axis=1))),
        spearman=Figure.of(spearman(first_PK, second_PK)),
        kendall=Figure(kendall(first_PK.ravel(), second_PK.ravel()), n=len(first_PK)),
    )
