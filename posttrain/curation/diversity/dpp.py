"""A determinantal point process: rows of good quality whose vectors span a large volume.

    L = diag(q) S diag(q),   q_i = exp(quality * rank_i),   next = argmax over i of  log det L[S + i] - log det L[S]

Chen, Zhang and Zhou 2018, "Fast greedy MAP inference for determinantal point process" (arXiv:1709.05135), algorithm 1:
the Cholesky factor of L[S] grows by a row with each choice, and with it for every candidate the row c_i that it would
have; d_i^2, what is left of L_ii, is the factor by which the determinant would grow. O(rows x budget) memory.

Deviations:
1. The choice ends where d_i^2 falls below 1e-6 L_ii and not at an absolute number: beyond it is rounding.
2. Of rows with equal quality the first choice is the one nearest to the mean.
3. There is no end at d_i^2 < 1 (the unconstrained MAP): a budget is always given.
"""

from __future__ import annotations

import numpy as np

from posttrain.config.diversity import DPP
from posttrain.curation.diversity.chosen import Choice
from posttrain.curation.diversity.vectors import ranks, to_mean
from posttrain.errors import ConfigError

NO_VOLUME = "no_volume_left"
SMALLEST_SHARE = 1e-6
"""Of a row's own kernel: what is left of it in float32 sums below this is rounding."""
MOST_BYTES = 1 << 31
"""Of the candidates' rows of the Cholesky factor."""


def dpp(features: np.ndarray, settings: DPP, *, scores: np.ndarray | None, budget: int | None, seed: int) -> Choice:
    """The `budget` rows of the greedy MAP; fewer where no row adds volume any more.

    Raises:
        ConfigError: rows x budget does not fit memory.
    """
    del seed  # nothing is drawn
    count = len(features)
    budget = count if budget is None else min(budget, count)
    _require_memory(count, budget)
    quality_R = np.exp(settings.quality * ranks(scores if settings.quality else None, count))
    left_R = quality_R**2  # S_ii is 1
    smallest_R = SMALLEST_SHARE * left_R
    factor_KR = np.zeros((budget, count), dtype=np.float32)
    is_open = np.ones(count, dtype=bool)
    kept: list[int] = []
    mean_R = to_mean(features)
    while len(kept) < budget:
        if not is_open.any():
            fewer = f"{budget - len(kept):,} fewer than the budget of {budget:,}"
            note = f"no row adds volume to the {len(kept):,} that are chosen: {fewer}"
            return Choice(np.array(kept, np.int64), otherwise=NO_VOLUME, notes=(note,))
        volume_R = np.where(is_open, left_R, -np.inf)
        # Of one quality all rows are a tie at first, and row order would decide what all later ones are compared with.
        row = int(volume_R.argmax() if kept else np.where(volume_R == volume_R.max(), mean_R, -np.inf).argmax())
        step = len(kept)
        kernel_R = quality_R[row] * quality_R * _similarity(features, row, settings)
        # Equation 7 of the paper: e_i = (L_ji - <c_j, c_i>) / d_j.
        earlier = factor_KR[:step, row] @ factor_KR[:step] if step else 0.0
        added_R = (kernel_R - earlier) / np.sqrt(left_R[row])
        factor_KR[step] = added_R
        left_R = left_R - added_R**2
        kept.append(row)
        is_open[row] = False
        is_open &= left_R > smallest_R
    return Choice(np.array(kept, dtype=np.int64))


def _similarity(features: np.ndarray, row: int, settings: DPP) -> np.ndarray:
    cosine = (features @ features[row]).astype(np.float64)
    if settings.kernel == "gaussian":
        cosine = np.exp(-(1 - cosine) / settings.width)
    cosine[row] = 1  # also of a row of zeros
    return cosine


def _require_memory(count: int, budget: int) -> None:
    needed = 4 * count * budget
    if needed > MOST_BYTES:
        raise ConfigError(
            f"`dpp` would choose {budget:,} of {count:,} rows, and holds a number for every two of them",
            found=f"{needed / 1e9:.1f} GB",
            expected=f"at most {MOST_BYTES / 1e9:.1f} GB",
            remedy=f"write a budget of {MOST_BYTES // (4 * count):,} or less, put a step with `semdedup` or `k_centre` "
            "before this one, or choose by `facility_location`, whose memory does not grow with the budget",
        )
