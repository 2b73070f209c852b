"""The score `rds`: which rows are like those of a target set, by the policy's own hidden states.

    v_i          the position-weighted mean of a row's last hidden states     (`curation/embeddings/policy.py`)
    s_qi         = cos(v_q, v_i) of target q and row i
    round_robin  targets take turns; each takes the row with the largest s_qi that none has taken

RDS+ (Ivison et al. 2025, arXiv:2503.01807, section 3.2). The row taken first has 1, the last of K has 1/K: a budget by
this score is the paper's selection of that size. Taken in turn, and not by the largest cosine of all: a target that is
like everything would otherwise take every place.

Deviations: those of the embedding; rows of equal cosine are taken in an order by what they hold.
"""

from __future__ import annotations

import numpy as np

from posttrain.config.embeddings import PolicyEmbedding
from posttrain.config.model_scores import RDSScore
from posttrain.curation.embeddings.embed import embed
from posttrain.curation.rows import Pool, Rows, Tools
from posttrain.curation.scores.scored import Scored
from posttrain.data.read import read
from posttrain.errors import ConfigError

MOST_CELLS = 1 << 28
"""Targets times rows of `round_robin`, 4 bytes each: 1 GB."""
_AHEAD = 256


def rds_score(settings: RDSScore, pool: Pool, tools: Tools) -> Scored:
    """Raises:
    ConfigError: no model is known; too many targets for so many rows.
    DataError: what reading the targets raises.
    ModelError, EncodingError: see `embed`.
    """
    with tools.progress.phase("reading the targets", unit="rows") as phase:
        targets = Rows(read(list(settings.targets), scan=False), phase)
    if settings.order == "round_robin" and len(targets) * len(pool) > MOST_CELLS:
        raise ConfigError(
            "so many targets cannot take turns among so many rows",
            where=f"score {settings.label}",
            found=f"{len(targets):,} targets, {len(pool):,} rows",
            expected=f"at most {MOST_CELLS // len(pool):,} targets",
            remedy="name fewer targets, or write `order: best`",
        )
    embedding = PolicyEmbedding(
        kind="policy",
        model=settings.model,
        pooling=settings.pooling,
        max_length=settings.max_length,
        tokens_at_once=settings.tokens_at_once,
    )
    rows, wanted = embed(embedding, pool, tools), embed(embedding, Pool.of(targets), tools)
    vector_QD = np.asarray(wanted.vectors)
    score_R = np.full(len(pool.rows), np.nan)
    if settings.order == "round_robin":
        score_R[pool.kept] = round_robin(rows.vectors, vector_QD, pool.rows.content_R[pool.kept])
    else:
        cosines_KQ = (rows.vectors[start : start + 4096] @ vector_QD.T for start in range(0, len(pool), 4096))
        least = [block.max(axis=1) if settings.order == "best" else block.mean(axis=1) for block in cosines_KQ]
        score_R[pool.kept] = np.concatenate(least)
    notes = (*rows.notes, *(f"of the targets: {note}" for note in wanted.notes), f"{len(targets):,} targets")
    return Scored(score_R, {}, notes)


def round_robin(vector_KD: np.ndarray, target_QD: np.ndarray, content_K: np.ndarray) -> np.ndarray:
    """The score of each row, float64 [K]: 1 for the row that is taken first, 1/K for the last.

    Args:
        vector_KD, target_QD: of length 1.
        content_K: what rows of equal cosine are taken by.
    """
    count, targets = len(vector_KD), len(target_QD)
    order_QK = np.empty((targets, count), np.int32)
    for place, target_D in enumerate(target_QD):
        order_QK[place] = np.lexsort((content_K, -(vector_KD @ target_D)))
    taken_K = np.zeros(count, dtype=bool)
    next_Q = np.zeros(targets, dtype=np.int64)
    score_K = np.empty(count)
    for turn in range(count):
        target = turn % targets
        place = _first_free(order_QK[target], int(next_Q[target]), taken_K)
        next_Q[target] = place + 1
        row = order_QK[target, place]
        taken_K[row] = True
        score_K[row] = 1 - turn / count
    return score_K


def _first_free(order_K: np.ndarray, start: int, taken_K: np.ndarray) -> int:
    """The place of the first row from `start` on that nobody has taken; there is one while rows are left."""
    # In steps: targets that are alike have taken each other's first rows, thousands in one piece.
    while True:
        free = np.flatnonzero(~taken_K[order_K[start : start + _AHEAD]])
        if len(free):
            return start + int(free[0])
        start += _AHEAD
