"""DEITA's walk: down the scores, passing over what is like a kept row.

Liu et al. 2023, "What makes good data for alignment?" (arXiv:2312.15685), section 3.4, "Repr Filter": a row is kept if
it is not within a threshold of its nearest kept row. The paper's threshold is 0.9 on the cosine.
"""

from __future__ import annotations

import numpy as np

from posttrain.config.diversity import DEITA
from posttrain.curation.diversity.chosen import Choice
from posttrain.curation.diversity.vectors import blocks, by_score
from posttrain.errors import ConfigError

PASSED_OVER = "like_a_better_row"
_AT_ONCE = 1024
"""Rows of the walk that are compared with the kept ones in one product."""


def deita(features: np.ndarray, settings: DEITA, *, scores: np.ndarray | None, budget: int | None, seed: int) -> Choice:
    """The best rows by score that are unlike each other, in the order of the walk.

    Raises:
        ConfigError: there are no scores to walk down.
    """
    del seed  # nothing is drawn
    if scores is None:
        raise ConfigError(
            "`deita` walks down a score, and there is none",
            expected="a score of an earlier step",
            remedy="write `score: NAME`, after a step `{kind: score, ...}`",
        )
    count = len(features)
    budget = count if budget is None else min(budget, count)
    order = by_score(scores, count)
    kept = np.empty(0, dtype=np.int64)
    passed: list[int] = []
    for start in range(0, count, _AT_ONCE):
        walked = order[start : start + _AT_ONCE]
        nearest = _nearest_cosine(features, walked, kept)
        own = features[walked] @ features[walked].T
        fresh: list[int] = []
        for place in range(len(walked)):
            if len(kept) + len(fresh) == budget:
                break
            # Kept rows of this very block were not there when it was compared with the others.
            closest = max(float(nearest[place]), float(own[place, fresh].max(initial=-np.inf)))
            if closest < settings.threshold:
                fresh.append(place)
            else:
                passed.append(int(walked[place]))
        kept = np.concatenate([kept, walked[fresh]])
        if len(kept) == budget:
            break
    return Choice(kept, dict.fromkeys(passed, PASSED_OVER), notes=_notes(len(kept), budget, scores))


def _nearest_cosine(features: np.ndarray, rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
    nearest = np.full(len(rows), -np.inf, dtype=np.float32)
    vectors = features[rows]
    for block in blocks(len(kept), len(rows)):
        np.maximum(nearest, (features[kept[block]] @ vectors.T).max(axis=0), out=nearest)
    return nearest


def _notes(kept: int, budget: int, scores: np.ndarray) -> tuple[str, ...]:
    notes = []
    if unscored := int(np.isnan(scores).sum()):
        notes.append(f"{unscored:,} rows have no score: the walk comes to them last, in row order")
    if kept < budget < len(scores):
        notes.append(f"{kept:,} rows are unlike each other: {budget - kept:,} fewer than the budget of {budget:,}")
    return tuple(notes)
