"""Intervals over several trainings: of a mean over seeds, and of the setting that was chosen for being the best.

over_runs([0.71, 0.74, 0.69])      # Student's t: what another seed would give
of_the_best(scores_CSP)            # what the winner gives on prompts and seeds that did not choose it
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from posttrain.intervals import CONFIDENCE, RESAMPLES, Score

if TYPE_CHECKING:
    import numpy as np


def over_runs(values: Sequence[float]) -> Score | None:
    """The mean of one figure per training, with Student's interval: over_runs([1, 2, 3]) -> Score(2, -0.484, 4.484, 3).

    It is about what another seed would give on the same prompts. Of one training None: nothing says how far seeds lie
    apart.
    """
    n = len(values)
    if n < 2:
        return None
    middle = fmean(values)
    spread = math.sqrt(sum((value - middle) ** 2 for value in values) / (n - 1))
    half = student_quantile(0.5 + CONFIDENCE / 2, n - 1) * spread / math.sqrt(n)
    return Score(middle, middle - half, middle + half, n)


def student_quantile(place: float, freedom: int) -> float:
    """Of Student's t: student_quantile(0.975, 2) -> 4.3027. By halving, of the distribution for whole degrees of
    freedom as a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    if place < 0.5:
        return -student_quantile(1 - place, freedom)
    low, high = 0.0, 1.0
    while _student(high, freedom) < place:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, freedom) < place else (low, middle)
    return (low + high) / 2


def _student(t: float, freedom: int) -> float:
    """P(T < t), for t from 0 up."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0 if freedom == 1 else term
    for k in range(2 if odd else 1, freedom - 2, 2):
        term *= cosine**2 * k / (k + 1)
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return 0.5 + inside / 2


def of_the_best(scores_CSP: np.ndarray, *, lower: bool = False) -> Score | None:
    """What the best of several settings gives on prompts and seeds that did not choose it.

    The highest of many means is too high: what is chosen was partly lucky. So choosing is done again and again on a
    bootstrap sample of the seeds and prompts, and the chosen setting's score is taken on those that were not drawn
    (BBC, Tsamardinos, Greasidou and Borboudakis 2018, doi:10.1007/s10994-018-5714-4, algorithm 5, with seeds beside
    the prompts). The mean over resamples errs on the low side, since a sample has fewer different prompts than all; the
    interval is of the percentiles.

    Args:
        scores_CSP: [settings, seeds, prompts]. One seed, or one prompt, is not drawn: then chance is over the other
            alone, and what the one did stays in the figure.
        lower: whether less is better.

    Returns:
        n: prompts times seeds. None where there is one score a setting, or fewer than two settings.
    """
    import numpy as np

    settings, seeds, prompts = scores_CSP.shape
    if settings < 2 or seeds * prompts < 2:
        return None
    rng = np.random.default_rng(0)
    seeds_RS, seeds_out_RS = _bags(rng, seeds)
    prompts_RP, prompts_out_RP = _bags(rng, prompts)
    # With two seeds every other sample has both, and none is left to score on.
    usable_R = seeds_out_RS.any(axis=1) & prompts_out_RP.any(axis=1)
    if not usable_R.any():
        return None
    in_bag_RC = np.stack([((seeds_RS @ own_SP) * prompts_RP).sum(axis=1) for own_SP in scores_CSP], axis=1)
    chosen_R = np.argmax(-in_bag_RC if lower else in_bag_RC, axis=1)
    out_RC = np.stack([((seeds_out_RS @ own_SP) * prompts_out_RP).sum(axis=1) for own_SP in scores_CSP], axis=1)
    left_R = seeds_out_RS.sum(axis=1) * prompts_out_RP.sum(axis=1)
    found_R = out_RC[np.arange(len(chosen_R)), chosen_R][usable_R] / left_R[usable_R]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found_R, [tail, 1 - tail])
    return Score(float(found_R.mean()), float(low), float(high), seeds * prompts)


def _bags(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each of n is drawn in each resample, and 1 where it is not drawn: both [resamples, n]. One alone is in
    and out, for it cannot be drawn."""
    import numpy as np

    if n == 1:
        return np.ones((RESAMPLES, 1)), np.ones((RESAMPLES, 1))
    drawn_RN = rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)
    return drawn_RN, (drawn_RN == 0).astype(float)
