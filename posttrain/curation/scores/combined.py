"""Several scores as one number: `combine`, and `disagreement`, their standard deviation on a row.

    ranks   r_i = (rows below i + (rows equal to i, i among them) / 2 - 1/2) / (n - 1)    0 the lowest, 1 the highest
    z       z_i = (x_i - mean x) / std x                                                  std of the n rows (ddof 0)

Ranks and z-scores are among the rows that have all of the scores: a row that lacks one must not move the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from posttrain.config.scores import CombineScore, DisagreementScore
from posttrain.curation.rows import Pool, Tools
from posttrain.curation.scores.scored import Scored
from posttrain.errors import unknown

_HOW: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda scores_SN: scores_SN.mean(axis=0),
    "product": lambda scores_SN: scores_SN.prod(axis=0),
    "min": lambda scores_SN: scores_SN.min(axis=0),
    "max": lambda scores_SN: scores_SN.max(axis=0),
}


def combine_score(settings: CombineScore, pool: Pool, tools: Tools) -> Scored:
    """Raises UnknownKeyError for a score that no step before has given."""
    return _of_scores(settings.of, settings.scale, pool, _HOW[settings.how])


def disagreement_score(settings: DisagreementScore, pool: Pool, tools: Tools) -> Scored:
    """Raises UnknownKeyError for a score that no step before has given."""
    return _of_scores(settings.of, settings.scale, pool, lambda scores_SN: scores_SN.std(axis=0))


def _of_scores(names: Sequence[str], scale: str, pool: Pool, combine: Callable[[np.ndarray], np.ndarray]) -> Scored:
    for name in names:
        if name not in pool.scores:
            raise unknown("score", name, pool.scores, otherwise="put a step `{kind: score, ...}` before this one")
    scores_SK = np.stack([pool.scores[name][pool.kept] for name in names])
    whole = ~np.isnan(scores_SK).any(axis=0)
    score_R = np.full(len(pool.rows), np.nan)
    if whole.any():
        scaled = [scaled_scores(score_N, scale) for score_N in scores_SK[:, whole]]
        score_R[pool.kept[whole]] = combine(np.stack(scaled))
    lacking = ", ".join(f"`{name}`" for name in names)
    why = f"it lacks one of {lacking}"
    return Scored(score_R, dict.fromkeys(pool.kept[~whole].tolist(), why))


def scaled_scores(score_N: np.ndarray, scale: str) -> np.ndarray:
    """Scores on a common scale: scaled_scores(array([5., 1., 5.]), "ranks") == [0.75, 0., 0.75]."""
    if scale == "raw":
        return score_N
    if scale == "z":
        spread = score_N.std()
        # Of scores that are all the same nobody is better: as a division by 0 they would take every row's score away.
        return (score_N - score_N.mean()) / spread if spread > 0 else np.zeros_like(score_N)
    if len(score_N) == 1:
        return np.full(1, 0.5)
    _, place_N, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    before = np.cumsum(counts) - counts
    ranks: np.ndarray = (before + (counts - 1) / 2)[place_N] / (len(score_N) - 1)
    return ranks
