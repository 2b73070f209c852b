"""Semantic duplicates: rows whose cosine is above 1 - epsilon, within clusters of k-means.

Abbas et al. 2023, "SemDeDup" (arXiv:2303.09540), section 3 and its code: the rows of a cluster are put in an order, and
a row goes if its cosine to any row before it is above the threshold, also to one that goes itself.

Deviations:
1. k-means is spherical with 12 rounds, and the number of clusters follows the number of rows.
2. `keep: score` orders by a score; the paper keeps what is far from the centre.
3. Rows without a vector are never duplicates: nothing is known of them.
"""

from __future__ import annotations

import math

import numpy as np

from posttrain.config.diversity import SemDeDup
from posttrain.curation.diversity.chosen import Choice
from posttrain.curation.diversity.vectors import blocks, by_score, content_order, kmeans

DUPLICATE = "semantic_duplicate"


def semdedup(
    features: np.ndarray, settings: SemDeDup, *, scores: np.ndarray | None, budget: int | None, seed: int
) -> Choice:
    """Rows without their semantic duplicates; beyond `budget` the best by score, or a draw by seed."""
    count = len(features)
    clusters = min(count, settings.clusters or max(1, round(math.sqrt(count))))
    found = kmeans(features, clusters, seed)
    if settings.keep == "score":
        order = by_score(scores, count)
    else:
        nearness = found.to_centre_R if settings.keep == "hard" else -found.to_centre_R
        order = np.lexsort((np.arange(count), nearness))
    place_R = np.empty(count, np.int64)
    place_R[order] = np.arange(count)

    is_duplicate = np.zeros(count, dtype=bool)
    for members in found.members():
        ordered = members[np.argsort(place_R[members])]
        is_duplicate[ordered] = _like_an_earlier(features[ordered], settings.threshold)
    reasons = dict.fromkeys(np.flatnonzero(is_duplicate).tolist(), DUPLICATE)
    first = by_score(scores, count) if scores is not None else content_order(features, seed)
    kept = first[~is_duplicate[first]]
    if budget is None or len(kept) <= budget:
        return Choice(kept if scores is not None else np.sort(kept), reasons)
    how = "the best by score" if scores is not None else "drawn by seed"
    note = f"{len(kept):,} rows are no semantic duplicates of others; the budget takes {budget:,} of them, {how}"
    return Choice(kept[:budget], reasons, notes=(note,))


def _like_an_earlier(vectors: np.ndarray, threshold: float) -> np.ndarray:
    """Whether a row's cosine to any row before it is above the threshold, [M]."""
    count = len(vectors)
    found = np.zeros(count, dtype=bool)
    for block in blocks(count, count):
        similar = vectors[block] @ vectors[: block.stop].T
        earlier = np.arange(block.stop)[None] < np.arange(block.start, block.stop)[:, None]
        found[block] = ((similar > threshold) & earlier).any(axis=1)
    return found
