"""Agreement, tests by signs, log-odds and a small logistic regression, for the checks of this package.

In numpy alone, since the cheap checks run before every preference stage and must not need scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from posttrain.intervals import wilson


def sign_test(first_only: int, second_only: int) -> float:
    """z of McNemar's test: how far from even the discordant pairs are; 0.0 where there are none."""
    discordant = first_only + second_only
    return (first_only - second_only) / math.sqrt(discordant) if discordant else 0.0


def krippendorff_alpha(counts_UC: np.ndarray) -> float:
    """Krippendorff's alpha for nominal categories: 1 full agreement, 0 chance; NaN where it is not defined.

    Args:
        counts_UC: how many judges put unit u into category c, [U, C]; units with fewer than two judgements say nothing.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section E.
    """
    judged_U = counts_UC.sum(axis=1)
    counts = counts_UC[judged_U >= 2].astype(float)
    judged = judged_U[judged_U >= 2].astype(float)
    total = judged.sum()
    # "Expected" is the chance that two values drawn without replacement differ, hence total - 1 and not total.
    if total < 2:
        return float("nan")
    observed = ((judged**2 - (counts**2).sum(axis=1)) / (judged - 1)).sum() / total
    per_category = counts.sum(axis=0)
    expected = (total**2 - (per_category**2).sum()) / (total * (total - 1))
    return float(1 - observed / expected) if expected else float("nan")


def log_odds(
    first: Mapping[str, int], second: Mapping[str, int], prior_strength: float = 1000.0
) -> list[tuple[str, float]]:
    """Words by how much more the first side says them: (word, z), positive z for the first side's, sorted by |z|.

    Log-odds ratio with an informative Dirichlet prior, whose pseudo-counts are `prior_strength` in all, spread like the
    words of both sides together: rare words need evidence. Source: Monroe, Colaresi and Quinn 2008, equations 16, 22.
    """
    total_first, total_second = sum(first.values()), sum(second.values())
    total = total_first + total_second
    z_of_word = []
    for word in first.keys() | second.keys():
        first_count, second_count = first.get(word, 0), second.get(word, 0)
        prior = prior_strength * (first_count + second_count) / total
        first_smoothed, second_smoothed = first_count + prior, second_count + prior
        # Equation 16: the difference of the two log-odds, each with its share of the prior's pseudo-counts.
        delta = math.log(first_smoothed / (total_first + prior_strength - first_smoothed))
        delta -= math.log(second_smoothed / (total_second + prior_strength - second_smoothed))
        z_of_word.append((word, delta / math.sqrt(1 / first_smoothed + 1 / second_smoothed)))
    return sorted(z_of_word, key=lambda entry: (-abs(entry[1]), entry[0]))


# ---------------------------------------------------------------- which side wins, from features


@dataclass(frozen=True)
class Differences:
    """Features of the chosen side minus those of the rejected side, one sparse row a pair.

    Differences(starts=[0, 2, 3], columns=[0, 4, 1], values=[1.0, -1.0, 1.0], names=("sure", ...))
    """

    starts: np.ndarray
    """int64, [P + 1]: row p is starts[p]:starts[p + 1] of the other two."""
    columns: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]

    @property
    def num_pairs(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def dense(cls, values_PF: np.ndarray, names: Sequence[str]) -> Differences:
        pairs, features = values_PF.shape
        return cls(
            np.arange(pairs + 1, dtype=np.int64) * features,
            np.tile(np.arange(features, dtype=np.int32), pairs),
            values_PF.reshape(-1).astype(np.float32),
            tuple(names),
        )

    def take(self, rows: np.ndarray) -> Differences:
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        entries = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths) + np.repeat(self.starts[rows], lengths)
        return Differences(starts, self.columns[entries], self.values[entries], self.names)

    def unit_length(self) -> Differences:
        """Rows scaled to length 1, so that one step size is right for every data set and a long answer counts once."""
        squares = self.row_sums(self.values.astype(float) ** 2)
        scale = (1 / np.sqrt(np.where(squares > 0, squares, 1.0)))[self.pair_of_value]
        return Differences(self.starts, self.columns, (self.values * scale).astype(np.float32), self.names)

    def row_sums(self, values: np.ndarray) -> np.ndarray:
        sums = np.zeros(self.num_pairs)
        filled = np.flatnonzero(np.diff(self.starts))
        if len(filled):
            sums[filled] = np.add.reduceat(values, self.starts[filled])
        return sums

    def scores(self, weights_F: np.ndarray) -> np.ndarray:
        return self.row_sums(self.values * weights_F.astype(np.float32)[self.columns])

    def gradient(self, slope_P: np.ndarray) -> np.ndarray:
        per_value = self.values * slope_P.astype(np.float32)[self.pair_of_value]
        return np.bincount(self.columns, weights=per_value, minlength=len(self.names))

    @cached_property
    def pair_of_value(self) -> np.ndarray:
        return np.repeat(np.arange(self.num_pairs, dtype=np.int32), np.diff(self.starts))


STEPS = 40
PENALTY = 0.1
"""Strength of the L2 penalty, shared out over the rows; rows have length 1."""


def fit_weights(differences: Differences) -> np.ndarray:
    """Weights of the logistic regression of "the chosen side won" on the differences, without intercept, [F].

    A pair and its mirror image must be judged alike, hence no intercept and no labels. Nesterov's accelerated gradient
    with the step of the loss' smoothness, which is at most 1/4 for rows of length 1; stopping early is part of the
    regularisation.
    """
    pairs = max(1, differences.num_pairs)
    # The step 4 is the reciprocal of that 1/4; a fixed count of steps makes the result the same on every machine.
    weights = ahead = np.zeros(len(differences.names))
    for step in range(STEPS):
        margin = differences.scores(ahead)
        # Clipped, since exp overflows beyond 709 and nothing changes beyond 30.
        slope = -1 / (1 + np.exp(np.clip(margin, -30, 30)))
        gradient = differences.gradient(slope) / pairs + PENALTY / pairs * ahead
        moved = ahead - 4.0 * gradient
        ahead = moved + step / (step + 3) * (moved - weights)
        weights = moved
    return weights


@dataclass(frozen=True, slots=True)
class Predicted:
    """How well features tell the chosen side, out of sample: Predicted(0.83, 0.81, 0.85, 2000, weights)."""

    accuracy: float
    """Share of held-out pairs whose chosen side scores higher; a tie counts half."""
    low: float
    high: float
    pairs: int
    weights_F: np.ndarray
    """Of the fit on all pairs."""


def cross_validate(differences: Differences, groups_P: np.ndarray, folds: int = 5) -> Predicted:
    """Accuracy on pairs whose group (their prompt) was not trained on.

    Args:
        groups_P: unsigned hashes; a group falls into one fold as a whole, so that an answer that is repeated under its
            prompt is not recognised from training.
    """
    scaled = differences.unit_length()
    fold_P = (groups_P.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(40)) % np.uint64(folds)
    right = 0.0
    for fold in range(folds):
        held_out = fold_P == fold
        if not held_out.any() or held_out.all():  # few prompts: a fold may be empty, or hold all of them
            continue
        weights = fit_weights(scaled.take(np.flatnonzero(~held_out)))
        scores = scaled.take(np.flatnonzero(held_out)).scores(weights)
        # Scores of zero are ties (no known feature), and floats seldom are exactly zero.
        right += float((scores > 1e-12).sum() + 0.5 * (np.abs(scores) <= 1e-12).sum())
    total = scaled.num_pairs
    low, high = wilson(right, total)
    return Predicted(right / max(1, total), low, high, total, fit_weights(scaled))
