r"""What a choice among n answers is worth, from one pool of N answers to a prompt: the mean over all subsets of n.

    best_of([3.0, 1.0, 2.0], [1, 0, 0], [1, 2, 3])        # [1/3, 2/3, 1]

Best-of-n is exact. With the scores in descending order, the i-th answer is the highest of a random n-subset with
probability C(N-i, n-1) / C(N, n); of equal scores the earliest draw counts, and since draws are exchangeable each of
them is as likely to be it. So a group of g equal scores that m answers beat wins with

    [C(N-m, n) - C(N-m-g, n)] / C(N, n)

and is then right as often as its members are. A pool costs N answers, where a separate run of every n would cost their
sum and be noisier at each (the estimator of pass@k, Chen et al. 2021, arXiv:2107.03374, Eq. 1, is that for the oracle).

Majority and weighted best-of-n (`posttrain.inference.strategies`) depend on the whole subset: over all C(N, n) subsets
where these are at most MOST_SUBSETS, else over so many random ones, the same for all methods and prompts. At 1,000
subsets the standard error from that is at most 0.016 for one prompt, and 0.016 / sqrt(prompts) for a figure.

Ties between classes of equal answers are averaged too: the class counts that was said first, which each is with a
probability as large as its number of members.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np

MOST_SUBSETS = 1_000
"""Up to so many subsets all are taken, beyond it so many random ones."""
_TIE = 1e-9
"""Sums of weights that differ by less than this share are equal: a sum's last digits depend on its order."""


def best_of(scores_N: Sequence[float], right_N: Sequence[float], ns: Sequence[int]) -> np.ndarray:
    """How often the answer of the highest score among n is right, exactly; [K] for `ns`.

    Args:
        scores_N: -inf where the scorer abstained: such an answer is chosen last.
        right_N: 0 or 1, or how right it is.
    """
    scores, right = np.asarray(scores_N, dtype=float), np.asarray(right_N, dtype=float)
    total = len(scores)
    values = np.zeros(len(ns))
    ahead = 0
    for score in np.unique(scores)[::-1]:
        group = scores == score
        size = int(group.sum())
        left = total - ahead
        # Whole numbers until the division: binomials of 256 answers have 76 digits, and their differences cancel.
        chances = [(comb(left, n) - comb(left - size, n)) / comb(total, n) for n in ns]
        values += np.array(chances) * right[group].mean()
        ahead += size
    return values


def subsets(total: int, n: int) -> np.ndarray:
    """[S, N] bool: all subsets of n, or MOST_SUBSETS random ones, always the same."""
    if comb(total, n) <= MOST_SUBSETS:
        rows = np.array(list(combinations(range(total), n)))
    else:
        # A stream of its own from fixed seeds: a figure must not move when it is computed again.
        rng = np.random.default_rng([total, n])
        rows = np.argsort(rng.random((MOST_SUBSETS, total)), axis=1)[:, :n]
    chosen = np.zeros((len(rows), total), dtype=bool)
    np.put_along_axis(chosen, rows, True, axis=1)
    return chosen


def majority(classes_N: Sequence[int | None], right_N: Sequence[float], subsets_SN: np.ndarray) -> float:
    """How often the answer that most of n say is right, over these subsets; without any vote, how often one of them is.

    Args:
        classes_N: the number of each answer's class, None of what says nothing (`inference.answers.Equality.classes`).
    """
    members_NC = _members(classes_N)
    right = np.asarray(right_N, dtype=float)
    counts_SC = subsets_SN.astype(float) @ members_NC
    # Which member speaks for its class is the earliest draw, so each of them equally often.
    rights_SC = subsets_SN @ (members_NC * right[:, None]) / np.maximum(counts_SC, 1)
    return _of_best_class(counts_SC, rights_SC, counts_SC, subsets_SN @ right / subsets_SN.sum(axis=1))


def weighted(
    classes_N: Sequence[int | None],
    scores_N: Sequence[float],
    weights_N: Sequence[float],
    right_N: Sequence[float],
    subsets_SN: np.ndarray,
) -> float:
    """How often the best-scored member of the class with the largest sum of weights is right, over these subsets.

    Args:
        weights_N: the scores as numbers of 0 or more (`inference.strategies.best_of_n.weight`).
    """
    members_NC = _members(classes_N)
    sums_SC = subsets_SN @ (members_NC * np.asarray(weights_N, dtype=float)[:, None])
    counts_SC = subsets_SN.astype(float) @ members_NC
    scores, right = np.asarray(scores_N, dtype=float), np.asarray(right_N, dtype=float)
    columns = [_best_right(scores, right, subsets_SN & (column > 0)) for column in members_NC.T]
    rights_SC = np.stack(columns, axis=1) if columns else np.zeros((len(subsets_SN), 0))
    return _of_best_class(sums_SC, rights_SC, counts_SC, _best_right(scores, right, subsets_SN))


def _members(classes_N: Sequence[int | None]) -> np.ndarray:
    """[N, C]: 1 where the answer belongs to the class."""
    number = max((one for one in classes_N if one is not None), default=-1) + 1
    members = np.zeros((len(classes_N), number))
    for index, one in enumerate(classes_N):
        if one is not None:
            members[index, one] = 1.0
    return members


def _best_right(scores_N: np.ndarray, right_N: np.ndarray, chosen_SN: np.ndarray) -> np.ndarray:
    """[S]: how right the best-scored of the chosen answers is, a mean over ties; 0 where none is chosen."""
    # Ranks, for -inf is a score too: what its scorer abstained from is chosen last, and not never.
    ranks_N = np.unique(scores_N, return_inverse=True)[1].reshape(-1) + 1
    ranked_SN = np.where(chosen_SN, ranks_N[None, :], 0)
    best_SN = (ranked_SN == ranked_SN.max(axis=1, keepdims=True)) & chosen_SN
    return np.asarray(best_SN @ right_N / np.maximum(best_SN.sum(axis=1), 1))


def _of_best_class(sums_SC: np.ndarray, rights_SC: np.ndarray, counts_SC: np.ndarray, without_S: np.ndarray) -> float:
    """The mean over subsets of how right the class with the largest sum is, ties averaged.

    Args:
        counts_SC: members of each class that the subset holds.
        without_S: what counts where no answer of the subset has a vote of any weight.
    """
    if sums_SC.shape[1] == 0:
        return float(without_S.mean())
    # A class that the subset does not hold has a sum of 0, as one has whose weights are all 0.
    best_S = sums_SC.max(axis=1)
    # Of equal sums the class counts that was said first: which that is depends on how often each was said.
    tied_SC = counts_SC * (sums_SC >= (best_S - _TIE * np.abs(best_S))[:, None])
    values_S = (tied_SC * rights_SC).sum(axis=1) / np.maximum(tied_SC.sum(axis=1), 1)
    return float(np.where(best_S > 0, values_S, without_S).mean())
