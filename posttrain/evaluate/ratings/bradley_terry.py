"""Bradley-Terry ratings of several policies on Elo's scale, alone or with the style of answers held equal.

    logit P(a beats b) = θ_a - θ_b + Σ_s γ_s z_s        rating_a = 1000 + (400 / ln 10) (θ_a - θ_anchor)

400 points more are odds of ten to one (Bradley & Terry 1952; Elo 1978). A tie counts half a win, as at LMArena. z is
how the two answers differ in style, see `style`; with it a rating is what is left at equal style.

The prior of `logistic` gives each policy one tied game against the middle of all: a policy that never lost has a finite
rating, which then stands on that game and is marked so. Policies that no chain of games joins have no common scale,
whatever a prior says, and are refused.

Deviation from LMArena and Arena-Hard: intervals draw prompts, and with each all of its games. There a row is drawn by
itself, and both orders of one comparison (in Arena-Hard three copies of a clear one) count as so many observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from posttrain.errors import DataError
from posttrain.evaluate.ratings.games import GameTable
from posttrain.evaluate.ratings.logistic import fit
from posttrain.intervals import Score, refitted

ELO = 400 / math.log(10)
"""Rating points of one unit of log-odds."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Fitted(ratings=(Score(1000.0, 1000.0, 1000.0, 800), Score(1084.2, ...)), style=(Score(0.31, ...),))"""

    ratings: tuple[Score, ...]
    """Of the table's policies, in their order."""
    style: tuple[Score, ...]
    """γ of each feature: log-odds for one root mean square of its difference."""


def ratings(
    table: GameTable,
    anchor: int,
    *,
    anchor_rating: float = 1000.0,
    style_GS: np.ndarray | None = None,
    resamples: int | None = None,
) -> Fitted:
    """Ratings of all policies, with intervals over prompts.

    Args:
        anchor: the policy that has `anchor_rating` by definition, in every resample.
        style_GS: what is held equal, see `style_differences`; each column differs somewhere.

    Raises:
        DataError: some policies never met, directly or through others.
    """
    require_connected(table)
    policies, features = len(table.policies), 0 if style_GS is None else style_GS.shape[1]
    x, gather = _design(table, style_GS)
    all_wins, all_counts = gather(np.ones((1, len(table.prompts))))
    start_F = fit(x, all_wins, all_counts)[0]

    def estimated(times_RC: np.ndarray) -> np.ndarray:
        beta_RF = fit(x, *gather(times_RC), start_F=start_F)
        theta_RP = beta_RF[:, :policies]
        elo_RP = anchor_rating + ELO * (theta_RP - theta_RP[:, [anchor]])
        return np.concatenate([elo_RP, beta_RF[:, policies:]], axis=1)

    scores = refitted(len(table.prompts), estimated, cells=4 * max(len(x), len(table.games)), resamples=resamples)
    assert len(scores) == policies + features
    return Fitted(tuple(scores[:policies]), tuple(scores[policies:]))


class _Gather:
    """Wins and counts of each row of the design, for resamples of prompts."""

    def __init__(self, table: GameTable, points_G: np.ndarray, order_G: np.ndarray, starts_Q: np.ndarray | None):
        self.prompt_G, self.weight_G = table.prompt_G[order_G], table.weight_G[order_G]
        self.points_G, self.starts_Q = points_G[order_G], starts_Q

    def __call__(self, times_RC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts_RG = times_RC[:, self.prompt_G] * self.weight_G
        wins_RG = counts_RG * self.points_G
        if self.starts_Q is None:
            return wins_RG, counts_RG
        return tuple(np.add.reduceat(values, self.starts_Q, axis=1) for values in (wins_RG, counts_RG))  # type: ignore[return-value]


def _design(table: GameTable, style_GS: np.ndarray | None) -> tuple[np.ndarray, _Gather]:
    """The features of each row, and what gathers its wins: without style, the games of two policies are one row."""
    policies, games = len(table.policies), len(table.games)
    if style_GS is not None:
        sides_GP = np.zeros((games, policies))
        sides_GP[range(games), table.a_G], sides_GP[range(games), table.b_G] = 1, -1
        spread_S = np.sqrt((style_GS**2).mean(axis=0))
        assert (spread_S > 0).all(), "a feature that never differs has no weight"
        x = np.concatenate([sides_GP, style_GS / spread_S], axis=1)
        return x, _Gather(table, table.points_G, np.arange(games), None)
    low_G, high_G = np.minimum(table.a_G, table.b_G), np.maximum(table.a_G, table.b_G)
    points_G = np.where(table.a_G == low_G, table.points_G, 1 - table.points_G)
    pair_G = low_G * policies + high_G
    order_G = np.argsort(pair_G, kind="stable")
    pairs, starts_Q = np.unique(pair_G[order_G], return_index=True)
    x = np.zeros((len(pairs), policies))
    x[range(len(pairs)), pairs // policies], x[range(len(pairs)), pairs % policies] = 1, -1
    return x, _Gather(table, points_G, order_G, starts_Q)


def require_connected(table: GameTable) -> None:
    """Refuses policies that no chain of games joins: between the parts a rating would be the prior's alone."""
    parts = parts_of(table)
    if len(parts) > 1:
        shown = "; ".join(", ".join(f"`{table.policies[index]}`" for index in part) for part in parts[:4])
        raise DataError(
            f"the policies are in {len(parts)} parts that never met",
            found=shown + (f"; and {len(parts) - 4} more" if len(parts) > 4 else ""),
            expected="games that join them: a policy of each part against one of another",
            remedy="rate the parts by themselves (`models` or `--model` names the policies), or add games between them",
        )


def parts_of(table: GameTable) -> list[list[int]]:
    """The policies that games join, directly or through others; the first policy's part first."""
    beside: list[set[int]] = [set() for _ in table.policies]
    for a, b in set(zip(table.a_G.tolist(), table.b_G.tolist(), strict=True)):
        beside[a].add(b)
        beside[b].add(a)
    parts: list[list[int]] = []
    left = set(range(len(table.policies)))
    while left:
        reached: set[int] = set()
        waiting = [min(left)]
        while waiting:
            here = waiting.pop()
            if here not in reached:
                reached.add(here)
                waiting += beside[here]
        parts.append(sorted(reached))
        left -= reached
    return parts


def one_sided(table: GameTable) -> dict[int, float]:
    """Policies that won all points of all their games (1.0) or none (0.0): their rating stands on the prior."""
    found = {}
    for policy in range(len(table.policies)):
        own = np.concatenate([table.points_G[table.a_G == policy], 1 - table.points_G[table.b_G == policy]])
        if own.min() == own.max() and own[0] in (0.0, 1.0):
            found[policy] = float(own[0])
    return found
