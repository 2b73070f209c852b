"""TF-IDF vectors brought to few dimensions by a truncated SVD (latent semantic analysis, Deerwester et al. 1990).

The SVD's directions are found on a sample of the rows by the randomised method of Halko, Martinsson and Tropp 2011
(arXiv:0909.4061), with fixed seeds, and all rows are projected on them: on 200,000 rows a full one takes six times as
long, and the directions that some tens of thousands of rows agree on are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from posttrain.auditing.tfidf import require_scikit_learn, tfidf
from posttrain.config.embeddings import TfidfEmbedding
from posttrain.curation.diversity.vectors import unit_length

_ROWS_AT_ONCE = 8192
POWER_ITERATIONS = 2
_MIXER = 0x9E3779B97F4A7C15
"""Odd: a product with it permutes the 64-bit numbers."""


def tfidf_vectors(
    texts: Iterable[str], settings: TfidfEmbedding, progress: Callable[[int], None] | None = None
) -> Iterator[np.ndarray]:
    """Blocks of vectors of length 1, float32 [n, D]; of zeros for a text without words.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    require_scikit_learn("`embedding: tfidf`")
    unit, shortest, longest = settings.unit, settings.shortest, settings.longest
    matrix = tfidf(texts, unit=unit, shortest=shortest, longest=longest, progress=progress)
    directions = _directions(matrix, settings)
    for start in range(0, matrix.shape[0], _ROWS_AT_ONCE):
        yield unit_length(np.asarray(matrix[start : start + _ROWS_AT_ONCE] @ directions))


def _directions(matrix: Any, settings: TfidfEmbedding) -> np.ndarray:
    """[columns, D]"""
    from sklearn.utils.extmath import randomized_svd

    sample = matrix[_drawn(matrix, settings.fit_rows)]
    dimensions = max(1, min(settings.dimensions, sample.shape[0]))
    _, _, directions = randomized_svd(sample, dimensions, n_iter=POWER_ITERATIONS, random_state=0)
    return np.ascontiguousarray(directions.T.astype(np.float32))


def _drawn(matrix: Any, count: int) -> np.ndarray:
    """Rows that stand for all: drawn by what they hold, so that the order of a file changes no vector."""
    keys = np.empty(matrix.shape[0], dtype=np.uint64)
    for start in range(0, len(keys), _ROWS_AT_ONCE):
        first_R = matrix.indptr[start : start + _ROWS_AT_ONCE + 1]
        mixed = (matrix.indices[first_R[0] : first_R[-1]].astype(np.uint64) + np.uint64(1)) * np.uint64(_MIXER)
        mixed ^= mixed >> np.uint64(29)
        # A row's sum is the difference of two running sums; uint64 wraps around, and the difference wraps back.
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed * np.uint64(_MIXER), dtype=np.uint64)])
        ends = first_R - first_R[0]
        keys[start : start + _ROWS_AT_ONCE] = running[ends[1:]] - running[ends[:-1]]
    # In the order of the keys: the sums of the SVD are then the same to the last digit.
    return np.argsort(keys, kind="stable")[:count]
