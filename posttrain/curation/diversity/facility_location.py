"""Facility location: rows such that every row of the input has one among them that is like it.

    f(S) = sum over i of  max over j in S of  max(0, cos(i, j))        + quality * sum over j in S of rank_j

f is monotone and submodular, so that the greedy choice has at least 1 - 1/e of the best value (Nemhauser, Wolsey and
Fisher 1978). Lazy evaluation (Minoux 1978) finds the same choice: a gain only shrinks as rows are chosen, so that the
old gain of a row bounds its new one, and most rows are never looked at again.

Beyond `exact_rows` rows only the cosines of near rows count: for each row the `neighbours` nearest that are found in
the `probes` clusters of k-means nearest to its own. That is an approximation; two rows that are near each other and in
far-off clusters are taken for unlike.

Deviation: negative cosines count as 0, without which f would not be monotone.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.config.diversity import FacilityLocation
from posttrain.curation.diversity.chosen import Choice
from posttrain.curation.diversity.vectors import blocks, kmeans, ranks
from posttrain.runs.progress import Progress

STRIDE = 256
"""Choices between two words to whoever shows how far it is."""


def _unheard(count: int) -> None:
    """Nobody is shown how far it is."""


@dataclass(frozen=True, slots=True)
class Similarities:
    """How alike rows are, of each row only those that count: row j is like row_E[first_R[j]:first_R[j + 1]].

    Symmetric, each row among its own. Similarities(first_R=[0, 2, 4], row_E=[0, 1, 0, 1], value_E=[1, .3, .3, 1])
    """

    first_R: np.ndarray
    row_E: np.ndarray
    """int32."""
    value_E: np.ndarray
    """float32, above 0."""


def facility_location(
    features: np.ndarray,
    settings: FacilityLocation,
    *,
    scores: np.ndarray | None,
    budget: int | None,
    seed: int,
    progress: Progress | None = None,
) -> Choice:
    """The `budget` rows that the others are most like."""
    count = len(features)
    notes: tuple[str, ...] = ()
    progress = progress or Progress()
    if count <= settings.exact_rows:
        similar = all_similarities(features)
    else:
        with progress.phase("diversify: near rows", total=count, unit="rows") as phase:
            similar = near_similarities(features, settings.neighbours, settings.probes, seed, phase.advance)
        notes = (
            f"of {count:,} rows only the cosines to some {settings.neighbours} near ones count for each, found in "
            f"{settings.probes} clusters of k-means (exact up to {settings.exact_rows:,} rows)",
        )
    bonus_R = settings.quality * ranks(scores if settings.quality else None, count)
    budget = count if budget is None else min(budget, count)
    with progress.phase("diversify: facility_location", total=budget, unit="rows") as phase:
        return Choice(lazy_greedy(similar, bonus_R, budget, phase.advance), notes=notes)


def lazy_greedy(
    similar: Similarities, bonus_R: np.ndarray, budget: int, on_chosen: Callable[[int], Any] = _unheard
) -> np.ndarray:
    """Rows in the order of the greedy choice, of equal gains the earliest row, int64 [budget]."""
    count = len(bonus_R)
    covered_R = np.zeros(count)  # how like each row its most like chosen one is
    # float64 and in the order of the list: sums that depend on nothing but the rows, so that ties stay ties.
    gains = np.add.reduceat(similar.value_E, similar.first_R[:-1], dtype=np.float64) + bonus_R
    heap = [(-gain, row) for row, gain in enumerate(gains.tolist())]
    heapq.heapify(heap)
    kept: list[int] = []
    while len(kept) < budget:
        _, row = heapq.heappop(heap)
        entries = slice(similar.first_R[row], similar.first_R[row + 1])
        rows, values = similar.row_E[entries], similar.value_E[entries]
        gain = float(np.maximum(values - covered_R[rows], 0).sum()) + float(bonus_R[row])
        # Not above the bound of any other row: those stand with gains from before, which are not below theirs now.
        if heap and (-gain, row) > heap[0]:
            heapq.heappush(heap, (-gain, row))
            continue
        kept.append(row)
        covered_R[rows] = np.maximum(covered_R[rows], values)
        # In strides: a call for each choice would cost more than most choices.
        if len(kept) % STRIDE == 0 or len(kept) == budget:
            on_chosen((len(kept) - 1) % STRIDE + 1)
    return np.array(kept, dtype=np.int64)


def all_similarities(features: np.ndarray) -> Similarities:
    """Every pair with a cosine above 0."""
    count = len(features)
    rows, values, sizes = [], [], []
    for block in blocks(count, count):
        similar = features[block] @ features.T
        # A row is wholly like itself, also one of zeros, which nothing else stands for.
        similar[np.arange(len(similar)), np.arange(block.start, block.stop)] = 1
        places = np.nonzero(similar > 0)
        rows.append(places[1].astype(np.int32))
        values.append(similar[places])
        sizes.append((similar > 0).sum(axis=1))
    first_R = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    return Similarities(first_R, np.concatenate(rows), np.concatenate(values))


def near_similarities(
    features: np.ndarray, neighbours: int, probes: int, seed: int, on_rows: Callable[[int], Any] = _unheard
) -> Similarities:
    """Each row with its nearest rows of the clusters around it, and with those that it is one of the nearest of."""
    count = len(features)
    found = kmeans(features, max(1, round(math.sqrt(count))), seed)
    members = found.members()
    to_centres = found.centres_CD @ found.centres_CD.T
    from_rows, to_rows, values = [], [], []
    for cluster, own in enumerate(members):
        if not len(own):
            continue
        around = np.argsort(-to_centres[cluster], kind="stable")[:probes]
        others = np.sort(np.concatenate([own, *(members[other] for other in around.tolist() if other != cluster)]))
        for block in blocks(len(own), len(others)):
            rows = own[block]
            similar = features[rows] @ others_of(features, others)
            similar[np.arange(len(rows)), np.searchsorted(others, rows)] = -1  # itself, which is added below
            width = min(neighbours, len(others))
            place = np.argpartition(-similar, width - 1, axis=1)[:, :width]
            value = np.take_along_axis(similar, place, axis=1)
            counts = value > 0
            from_rows.append(np.repeat(rows, counts.sum(axis=1)).astype(np.int32))
            to_rows.append(others[place[counts]].astype(np.int32))
            values.append(value[counts])
        on_rows(len(own))
    return _symmetric(np.concatenate(from_rows), np.concatenate(to_rows), np.concatenate(values), count)


def others_of(features: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[D, others]"""
    return np.ascontiguousarray(features[others].T)


def _symmetric(from_E: np.ndarray, to_E: np.ndarray, value_E: np.ndarray, count: int) -> Similarities:
    """Both directions of every pair once, and each row with itself."""
    low, high = np.minimum(from_E, to_E).astype(np.int64), np.maximum(from_E, to_E)
    _, first = np.unique(low * count + high, return_index=True)
    low, high, value_E = from_E[first], to_E[first], value_E[first]
    own = np.arange(count, dtype=np.int32)
    sources = np.concatenate([low, high, own])
    rows = np.concatenate([high, low, own])
    values = np.concatenate([value_E, value_E, np.ones(count, np.float32)])
    order = np.lexsort((rows, sources))
    first_R = np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=count))])
    return Similarities(first_R, rows[order], values[order])
