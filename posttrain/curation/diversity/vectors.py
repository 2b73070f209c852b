"""Sums on many vectors that several rules need: nearest rows, k-means, ranks of scores; in blocks, so that memory
stays small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK_ELEMENTS = 1 << 23
"""Cosines that are held at once: 32 MB."""
KMEANS_ROUNDS = 12
"""Lloyd's rounds. Clusters serve to find close rows, and after some ten rounds few rows move."""


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows, so that a block of rows by `width` numbers stays small."""
    step = max(1, BLOCK_ELEMENTS // max(1, width))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """float32 vectors of length 1; one of zeros stays as it is.

    Divided by their largest number first, so that squares of very large and very small numbers stay finite.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    scaled = vectors / np.where(largest > 0, largest, 1)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return (scaled / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def nearest_of(features: np.ndarray, rows: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `rows` the row of `among` with the highest cosine, the first of equal ones: (int64, float32)."""
    others = features[among]
    nearest, cosine = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    for block in blocks(len(rows), len(among)):
        similar = features[rows[block]] @ others.T
        place = similar.argmax(axis=1)
        nearest[block], cosine[block] = among[place], similar[np.arange(len(place)), place]
    return nearest, cosine


def ranks(scores: np.ndarray | None, count: int) -> np.ndarray:
    """Scores as ranks from 1/R to 1, float64 [R]; equal scores have equal ranks, one without a score the middle one.

    Rules that weigh a score against a distance take its rank: scores of a judge, of log-probs and of lengths have
    scales of their own, and one far outlier would decide everything.
    """
    if scores is None:
        return np.ones(count)
    known = ~np.isnan(scores)
    out = np.full(count, 0.5)
    values, place, sizes = np.unique(scores[known], return_inverse=True, return_counts=True)
    if len(values):
        out[known] = (np.cumsum(sizes)[place]) / known.sum()
    return out


def by_score(scores: np.ndarray | None, count: int) -> np.ndarray:
    """Rows from the best score down, equal ones in row order, those without a score last."""
    if scores is None:
        return np.arange(count)
    return np.lexsort((np.arange(count), -np.where(np.isnan(scores), -np.inf, scores)))


def to_mean(features: np.ndarray) -> np.ndarray:
    """Each row's product with the mean of all, float64 [R]: where a choice begins that has nothing else to go by."""
    return np.asarray(features @ features.mean(axis=0, dtype=np.float64))


def content_order(features: np.ndarray, seed: int) -> np.ndarray:
    """Rows in an order drawn by seed from what they hold, equal ones in row order.

    A draw of row numbers would give other rows when a file is sorted anew, and with them another selection.
    """
    generator = np.random.default_rng(seed)
    direction = generator.standard_normal(features.shape[1])
    along = np.concatenate([features[block] @ direction for block in blocks(len(features), features.shape[1])])
    # By the order along a direction, not by a hash of the numbers: a last digit that differs would change a hash.
    return np.argsort(along, kind="stable")[generator.permutation(len(features))]


@dataclass(frozen=True, slots=True)
class Clusters:
    """Clusters(centres_CD, cluster_R=[0, 2, 0, 1], to_centre_R=[0.9, 0.8, ...]): the cosine to the own centre."""

    centres_CD: np.ndarray
    cluster_R: np.ndarray
    to_centre_R: np.ndarray

    def members(self) -> list[np.ndarray]:
        """The rows of each cluster, in row order."""
        order = np.argsort(self.cluster_R, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.cluster_R, minlength=len(self.centres_CD)))[:-1])


def kmeans(features: np.ndarray, clusters: int, seed: int) -> Clusters:
    """Spherical k-means (Dhillon and Modha 2001): centres are the directions of means, nearness is the cosine.

    Starts from rows that are drawn by what they hold, so that the same rows in another order have the same clusters.
    A cluster that loses all rows keeps its centre.
    """
    centres = np.array(features[content_order(features, seed)[:clusters]], dtype=np.float32)
    cluster_R, to_centre_R = _assigned(features, centres)
    for _ in range(KMEANS_ROUNDS):
        centres = _centres(features, cluster_R, centres)
        before = cluster_R
        cluster_R, to_centre_R = _assigned(features, centres)
        if np.array_equal(before, cluster_R):
            break
    return Clusters(centres, cluster_R, to_centre_R)


def _assigned(features: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cluster_R, to_centre_R = np.empty(len(features), np.int64), np.empty(len(features), np.float32)
    for block in blocks(len(features), len(centres)):
        similar = features[block] @ centres.T
        cluster_R[block] = similar.argmax(axis=1)
        to_centre_R[block] = np.take_along_axis(similar, cluster_R[block, None], axis=1)[:, 0]
    return cluster_R, to_centre_R


def _centres(features: np.ndarray, cluster_R: np.ndarray, before: np.ndarray) -> np.ndarray:
    order = np.argsort(cluster_R, kind="stable")
    sizes = np.bincount(cluster_R, minlength=len(before))
    sums = np.zeros(before.shape, dtype=np.float64)
    filled = np.flatnonzero(sizes)
    ends = np.cumsum(sizes)
    for cluster in filled.tolist():
        sums[cluster] = features[order[ends[cluster] - sizes[cluster] : ends[cluster]]].sum(axis=0, dtype=np.float64)
    return np.where(np.any(sums != 0, axis=1, keepdims=True), unit_length(sums), before)
