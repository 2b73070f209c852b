"""The one fit behind ratings and length control: logistic regression without an intercept, for R resamples at once.

    maximise over β:  Σ_g [wins_g η_g - counts_g log(1 + e^η_g)] + PRIOR_GAMES Σ_f [β_f / 2 - log(1 + e^β_f)],   η = Xβ

A resample changes how often a game counts and nothing else, so that R fits are matrix products over the same X.

The second sum is the log-F(1, 1) prior of Greenland & Mansournia 2015 (doi:10.1002/sim.6537): one tied game that shows
each coefficient alone. Of one coefficient that is an intercept it is Jeffreys's prior, and Firth's correction. Without
it a policy that never lost, or answers of which the longer always won, have no finite estimate; with it every fit has
exactly one. It does not depend on the sides: with all games turned round, β becomes -β.
"""

from __future__ import annotations

import numpy as np

PRIOR_GAMES = 1.0
"""Tied games of the prior for each coefficient; of n real games they move a share by less than 1 / (2n + 2)."""
MOST_STEPS = 100
MOST_HALVINGS = 60
CLOSE = 1e-8
"""Largest last step of a coefficient, in log-odds."""


def fit(x: np.ndarray, wins_RG: np.ndarray, counts_RG: np.ndarray, start_F: np.ndarray | None = None) -> np.ndarray:
    """Coefficients [R, F] by Newton's method, halving steps that go too far.

    Args:
        x: [G, F], or [R, G, F] where the features themselves depend on the resample.
        wins_RG: points of the first side of each game, times how often the game counts.
        counts_RG: how often it counts, at least the points.
        start_F: coefficients to begin at.
    """
    resamples, features = len(wins_RG), x.shape[-1]
    beta_RF = np.zeros((resamples, features)) if start_F is None else np.tile(start_F, (resamples, 1))
    value_R, p_RG = _likelihood(x, wins_RG, counts_RG, beta_RF)
    for _ in range(MOST_STEPS):
        prior_RF = sigmoid(beta_RF)
        slope_RF = _onto(wins_RG - counts_RG * p_RG, x) + PRIOR_GAMES * (0.5 - prior_RF)
        curvature_RFF = _curvature(x, counts_RG * p_RG * (1 - p_RG))
        curvature_RFF[:, range(features), range(features)] += PRIOR_GAMES * prior_RF * (1 - prior_RF)
        step_RF = np.linalg.solve(curvature_RFF, slope_RF[..., None])[..., 0]
        if float(np.abs(step_RF).max(initial=0.0)) < CLOSE:
            return beta_RF + step_RF
        share_R = np.ones(resamples)
        for _ in range(MOST_HALVINGS):  # far from the top a whole step overshoots
            there_RF = beta_RF + share_R[:, None] * step_RF
            new_R, p_RG = _likelihood(x, wins_RG, counts_RG, there_RF)
            # Rounding of a sum of many terms must not stop the last steps.
            fell_R = new_R < value_R - 1e-12 * (1 + np.abs(value_R))
            if not fell_R.any():
                break
            share_R = np.where(fell_R, share_R / 2, share_R)
        beta_RF, value_R = there_RF, new_R
    raise AssertionError("the likelihood is concave and its prior proper: Newton's method arrives")


def _curvature(x: np.ndarray, weight_RG: np.ndarray) -> np.ndarray:
    """Σ_g weight_g x_g x_gᵀ: [R, F, F]."""
    features = x.shape[-1]
    curvature_RFF = np.empty((len(weight_RG), features, features))
    for index in range(features):  # a row at a time: all products of two features would not fit for many policies
        curvature_RFF[:, index, index:] = _onto(weight_RG, x[..., index:] * x[..., index, None])
        curvature_RFF[:, index:, index] = curvature_RFF[:, index, index:]
    return curvature_RFF


def _likelihood(
    x: np.ndarray, wins_RG: np.ndarray, counts_RG: np.ndarray, beta_RF: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The value of each resample [R], its prior included, and the chance of each game [R, G]."""
    eta_RG = _of(x, beta_RF)
    small_RG = np.exp(-np.abs(eta_RG))
    softplus_RG = np.maximum(eta_RG, 0) + np.log1p(small_RG)
    prior_R = PRIOR_GAMES * (beta_RF / 2 - np.logaddexp(0, beta_RF)).sum(axis=1)
    value_R: np.ndarray = (wins_RG * eta_RG - counts_RG * softplus_RG).sum(axis=1) + prior_R
    return value_R, np.where(eta_RG >= 0, 1.0, small_RG) / (1 + small_RG)


def _of(x: np.ndarray, beta_RF: np.ndarray) -> np.ndarray:
    """Log-odds [R, G]."""
    if x.ndim == 2:
        return beta_RF @ x.T
    odds_RG: np.ndarray = (x @ beta_RF[..., None])[..., 0]
    return odds_RG


def _onto(values_RG: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Σ_g values_g x_g: [R, F]."""
    if x.ndim == 2:
        return values_RG @ x
    summed_RF: np.ndarray = (values_RG[:, None, :] @ x)[:, 0]
    return summed_RF


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x) without overflow."""
    return np.exp(-np.logaddexp(0, -values))
