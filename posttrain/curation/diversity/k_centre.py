"""Greedy k-centre: each time the row that is farthest from all that are chosen.

    next = argmax over i of  w_i min over j chosen of |x_i - x_j|

Gonzalez 1985, "Clustering to minimize the maximum intercluster distance": the largest distance of a row to its nearest
chosen one is at most twice that of the best choice of the same size (with w_i = 1).

Deviations:
1. The first row is not drawn: it is the one nearest to the mean, or with a quality the best, so that nothing depends on
   the order of rows.
2. w_i = rank^quality; the bound holds without it.
"""

from __future__ import annotations

import numpy as np

from posttrain.config.diversity import KCentre
from posttrain.curation.diversity.chosen import Choice
from posttrain.curation.diversity.vectors import blocks, by_score, ranks, to_mean
from posttrain.runs.progress import Progress

ACTIVE = 8192
"""Candidates whose distances are kept exact between two rounds over all rows."""


def k_centre(
    features: np.ndarray,
    settings: KCentre,
    *,
    scores: np.ndarray | None,
    budget: int | None,
    seed: int,
    progress: Progress | None = None,
) -> Choice:
    """The `budget` rows that leave no row far from a chosen one.

    Distances of all rows would be brought up to date after each choice, which is bound by memory: 100 MB for 200,000
    rows. Here the farthest `ACTIVE` rows are, and the others only when the farthest of these falls to what the others
    had at most when they were last looked at. A distance never grows, so no row can be passed over, and the choice is
    that of the plain loop.
    """
    del seed  # nothing is drawn
    count = len(features)
    budget = count if budget is None else min(budget, count)
    weight_R = ranks(scores if settings.quality else None, count) ** settings.quality
    squared = np.einsum("rd,rd->r", features, features)
    kept = [_first(features, scores if settings.quality else None)]
    distance_R = np.full(count, np.inf, dtype=np.float64)
    with (progress or Progress()).phase("diversify: k_centre", total=budget, unit="rows") as phase:
        phase.advance(1)
        while len(kept) < budget:
            _update(distance_R, features, squared, kept)
            found = _choose_among_farthest(features, squared, weight_R, distance_R, kept, budget - len(kept))
            kept += found
            phase.advance(len(found))
    return Choice(np.array(kept[:budget], dtype=np.int64))


def _first(features: np.ndarray, scores: np.ndarray | None) -> int:
    if scores is not None:
        return int(by_score(scores, len(features))[0])
    return int(to_mean(features).argmax())


def _update(distance_R: np.ndarray, features: np.ndarray, squared: np.ndarray, kept: list[int]) -> None:
    """Distances to the nearest of all chosen rows, in place. Chosen rows have -1: they are never chosen again."""
    fresh = [row for row in kept if distance_R[row] >= 0]
    chosen = features[fresh]
    for block in blocks(len(features), len(fresh)):
        nearest = _distances(features[block], squared[block], chosen, squared[fresh]).min(axis=1)
        np.minimum(distance_R[block], nearest, out=distance_R[block])
    distance_R[fresh] = -1


def _distances(
    rows: np.ndarray, rows_squared: np.ndarray, others: np.ndarray, others_squared: np.ndarray
) -> np.ndarray:
    """Euclidean, [rows, others]. Not 2 - 2 cosine: a row of zeros has length 0."""
    squares = rows_squared[:, None] + others_squared[None] - 2 * (rows @ others.T)
    return np.sqrt(np.maximum(squares, 0))


def _choose_among_farthest(
    features: np.ndarray,
    squared: np.ndarray,
    weight_R: np.ndarray,
    distance_R: np.ndarray,
    kept: list[int],
    wanted: int,
) -> list[int]:
    """Rows that the plain loop would choose next, at least one, until a row outside of the farthest may be due."""
    key_R = np.where(distance_R < 0, -1.0, weight_R * distance_R)
    active = _largest(key_R, ACTIVE)
    outside = np.ones(len(key_R), dtype=bool)
    outside[active] = False
    limit = key_R[outside].max(initial=-1.0)
    vectors, key_A, weight_A, squared_A = features[active], key_R[active], weight_R[active], squared[active]
    chosen: list[int] = []
    while len(chosen) < min(wanted, len(active)):
        place = int(key_A.argmax())
        # At the first choice a tie with a row outside is safe: among equal keys `active` has the earliest rows.
        if chosen and key_A[place] <= limit:
            break
        chosen.append(int(active[place]))
        to_chosen = _distances(vectors, squared_A, vectors[place : place + 1], squared_A[place : place + 1])[:, 0]
        key_A = np.minimum(key_A, weight_A * to_chosen)
        key_A[place] = -1
    return chosen


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the largest values, rising; of equal ones at the edge the earliest."""
    if len(values) <= count:
        return np.arange(len(values))
    edge = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > edge)
    equal = np.flatnonzero(values == edge)[: count - len(above)]
    return np.sort(np.concatenate([above, equal]))
