"""How diverse a set of texts is: numbers for a report, and their curve as a set grows.

    diversity_of(texts)         # Diversity(texts=500, distinct_1=0.12, distinct_2=0.48, nearest=0.71, vendi=143.2)
    diversity_curve(texts)      # the same of the first 1/10, 2/10, ... of them

- distinct-n (Li et al. 2016, arXiv:1510.03055): different n-grams of words per n-gram. It falls as texts get longer and
  more, so that only sets of like size compare.
- mean distance to the nearest other text, 1 - cosine of TF-IDF vectors: 0 where every text has a double.
- Vendi score (Friedman and Dieng 2022, arXiv:2210.02410): exp of the entropy of the eigenvalues of K/n, K the cosines:
  the number of wholly different texts that would be as diverse.

The last two are taken on at most `sample` texts, drawn by seed: the eigenvalues of n texts take n^3 steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.auditing.tfidf import tfidf
from posttrain.auditing.words import words_of

SAMPLE = 1000
POINTS = 10


@dataclass(frozen=True, slots=True)
class Diversity:
    """Diversity(texts=500, distinct_1=0.12, distinct_2=0.48, nearest_distance=0.71, vendi=143.2, sampled=500)"""

    texts: int
    distinct_1: float
    """Different words per word; NaN without words, as `distinct_2` without two of them."""
    distinct_2: float
    nearest_distance: float
    """Mean of 1 - cosine to the nearest other text of the sample; NaN of a single text."""
    vendi: float
    """From 1 (all say the same) to the number of texts in the sample."""
    sampled: int


def diversity_of(
    texts: Sequence[str], vectors: np.ndarray | None = None, *, sample: int = SAMPLE, seed: int = 0
) -> Diversity:
    """The measures of one set.

    Args:
        vectors: of the texts, [R, D] of length 1; None takes TF-IDF of the sample's own words.

    Raises:
        MissingExtraError: no vectors are given, and scikit-learn is not installed.
    """
    chosen = np.arange(len(texts))
    if len(texts) > sample:
        chosen = np.sort(np.random.default_rng(seed).choice(len(texts), sample, replace=False))
    if not len(texts):
        return Diversity(0, math.nan, math.nan, math.nan, math.nan, 0)
    if vectors is None:
        matrix = tfidf([texts[index] for index in chosen.tolist()])
        cosine = np.asarray((matrix @ matrix.T).todense(), dtype=np.float64)
    else:
        cosine = np.asarray(vectors[chosen] @ vectors[chosen].T, dtype=np.float64)
    np.fill_diagonal(cosine, 1)  # also of a text without words
    return Diversity(
        len(texts), distinct(texts, 1), distinct(texts, 2), nearest_distance(cosine), vendi_score(cosine), len(chosen)
    )


def diversity_curve(texts: Sequence[str], *, points: int = POINTS, sample: int = SAMPLE) -> list[Diversity]:
    """The measures of the first texts, at `points` sizes up to all of them: whether more of them bring anything new."""
    sizes = sorted({max(1, round(len(texts) * point / points)) for point in range(1, points + 1)}) if texts else []
    return [diversity_of(texts[:size], sample=sample) for size in sizes]


def distinct(texts: Sequence[str], size: int) -> float:
    """Different n-grams of `size` words divided by all of them; no n-gram crosses from one text into the next."""
    grams = words_of(texts).ngrams(size, whole=True)
    grams = grams[grams != 0]
    return len(np.unique(grams)) / len(grams) if len(grams) else math.nan


def nearest_distance(cosine: np.ndarray) -> float:
    """Mean over texts of 1 - the highest cosine to another one."""
    if len(cosine) < 2:
        return math.nan
    others = cosine - 2 * np.eye(len(cosine)) * np.abs(cosine).max()
    return float((1 - others.max(axis=1)).mean())


def vendi_score(cosine: np.ndarray) -> float:
    """exp(-sum of e ln e) over the eigenvalues e of cosine / n."""
    values = np.linalg.eigvalsh(cosine / len(cosine))
    values = values[values > 1e-12]  # 0 ln 0 is 0; rounding leaves values just below it
    return float(np.exp(-(values * np.log(values)).sum()))
