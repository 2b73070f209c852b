"""Calibration of a reward model: is the answer that it prefers as often the better one as sigmoid(margin) says?

A Bradley-Terry model gives the chosen answer the probability sigmoid(margin). Its confidence in its own verdict,
whichever that is, is sigmoid(|margin|), from 0.5 to 1, and the verdict is right where the margin is above zero. This
is the top-label calibration of Guo et al. 2017 (arXiv:1706.04599); judging sigmoid(margin) itself would compare it
with an outcome that is always 1, for the chosen answer stands first in every row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posttrain.intervals import Score, average, unbounded

BINS = 10
"""Guo et al. take 15 for thousands of images; half of these for fewer than `FEW` pairs, else most hold one or two."""
FEW = 200
CHANCE_DRAWS = 500


@dataclass(frozen=True, slots=True)
class Bin:
    """Verdicts of like confidence: Bin(0.7, 0.75, n=20, confidence=0.72, accuracy=Score(0.6, 0.39, 0.78, 20))."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: Score


def confidence(margins_P: np.ndarray) -> np.ndarray:
    """sigmoid(|margin|), without overflow however large a margin is."""
    return 1 / (1 + np.exp(-np.abs(margins_P)))


def correct(margins_P: np.ndarray) -> np.ndarray:
    """1 where the chosen answer has the higher reward, 1/2 where both have the same, else 0."""
    return (np.sign(margins_P) + 1) / 2


def bins_for(pairs: int) -> int:
    return BINS if pairs >= FEW else BINS // 2


def reliability(margins_P: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The reliability curve: bins of equal width over [0.5, 1], those without a verdict left out."""
    sure, right, place = confidence(margins_P), correct(margins_P), _bins(margins_P, bins)
    width = 0.5 / bins
    return [
        Bin(
            round(0.5 + index * width, 9),
            round(0.5 + (index + 1) * width, 9),
            int(inside.sum()),
            float(sure[inside].mean()),
            average(right[inside]),
        )
        for index in range(bins)
        if (inside := place == index).any()
    ]


def expected_calibration_error(margins_P: np.ndarray, bins: int = BINS) -> float:
    """Sum over bins of n_b / n |accuracy_b - confidence_b| (Guo et al. 2017, equation 3)."""
    return float(_error((correct(margins_P) - confidence(margins_P))[None], _bins(margins_P, bins), bins)[0])


def error_by_chance(margins_P: np.ndarray, bins: int = BINS, seed: int = 0) -> tuple[float, float]:
    """What the error would be if every confidence were true: its mean and its 95th percentile.

    With few pairs in a bin its accuracy is off by chance alone, so a perfectly calibrated model, too, has an error
    above zero; a bootstrap interval has the same bias on top and may not even hold its own value. Outcomes are drawn
    from the confidences, the bins stay.
    """
    rng = np.random.default_rng(seed)
    sure, place = confidence(margins_P), _bins(margins_P, bins)
    rows = max(1, min(CHANCE_DRAWS, 2_000_000 // len(sure)))
    errors = np.concatenate(
        [
            _error((rng.random((min(rows, CHANCE_DRAWS - start), len(sure))) < sure) - sure, place, bins)
            for start in range(0, CHANCE_DRAWS, rows)
        ]
    )
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def confidence_gap(margins_P: np.ndarray) -> Score:
    """Mean confidence minus accuracy: above zero the model is surer than it may be."""
    return unbounded(confidence(margins_P) - correct(margins_P))


def accuracy(margins_P: np.ndarray) -> Score:
    """Share of pairs whose chosen answer has the higher reward, ties counted half."""
    return average(correct(margins_P))


def _bins(margins_P: np.ndarray, bins: int) -> np.ndarray:
    return np.minimum(((confidence(margins_P) - 0.5) * 2 * bins).astype(int), bins - 1)


def _error(gaps: np.ndarray, place_P: np.ndarray, bins: int) -> np.ndarray:
    """|sum of accuracy - confidence| of each bin over n: gaps [..., P] to errors [...]."""
    inside = (place_P[:, None] == np.arange(bins)).astype(float)
    return np.abs(gaps @ inside).sum(axis=-1) / len(place_P)
