"""Win rates of one policy over another: raw, and with the length of the answers held equal.

    raw = mean over prompts of the points of the policy
    LC  = σ(θ) with  logit P(the policy wins) = θ + φ tanh(Δ / std(Δ)),   Δ = its characters - the other's

LC is the length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475, Eq. 2 without the term of
the instruction's difficulty): what the rate would be at Δ = 0.

Deviations from `alpaca_eval`:
1. The minimal form: no difficulty of instructions and no gamed baselines, which come with that benchmark's own prompts.
2. The prior of `logistic` in place of an L1 penalty chosen by cross-validation, whose folds move the figure. Without
   any difference in length, LC is the raw rate of n + 1 prompts with one tie among them.
3. The interval: all games of a prompt are drawn together and std, θ and φ are fitted anew in each resample. There the
   standard error is that of the fitted probabilities, which in the minimal form are all alike.
4. Where one side is nearly always the longer one there is no figure, see `meets_in_length`.
"""

from __future__ import annotations

import numpy as np

from posttrain.errors import EmptyDatasetError
from posttrain.evaluate.ratings.games import GameTable
from posttrain.evaluate.ratings.logistic import fit, sigmoid
from posttrain.evaluate.ratings.style import lengths_of
from posttrain.intervals import Score, average, outside_chance, refitted

LEAST_ON_EACH_SIDE = 0.05
"""Share of the games."""


def meets_in_length(characters_G: np.ndarray) -> bool:
    """Whether equal length lies among the differences in length: games on both sides of it, or there.

    Else what the fitted curve says of it is nobody's game: a policy that is always shorter, and wins 72 % of the games,
    would be told to win 8 % at equal length, because of the few games in which it was shorter by less.
    """
    return bool(min((characters_G >= 0).mean(), (characters_G <= 0).mean()) >= LEAST_ON_EACH_SIDE)


def one_sided_length(characters_G: np.ndarray) -> str:
    """ "100% are shorter": what to say where the two do not meet."""
    shorter, longer = float((characters_G < 0).mean()), float((characters_G > 0).mean())
    return f"{shorter:.0%} are shorter" if shorter > longer else f"{longer:.0%} are longer"


def win_rate(table: GameTable, policy: int, other: int) -> Score | None:
    """The raw rate, a prompt's games as one observation; None where the two never met."""
    met, points_G = table.between(policy, other)
    if not len(met):
        return None
    place_G = np.unique(table.prompt_G[met], return_inverse=True)[1]
    weight_G = table.weight_G[met]
    points_P = np.bincount(place_G, weights=points_G * weight_G) / np.bincount(place_G, weights=weight_G)
    return outside_chance(average(points_P), len(points_P))


def length_controlled_win_rate(table: GameTable, policy: int, other: int, resamples: int | None = None) -> Score | None:
    """LC of `policy` over `other`; None where the two never met, also not in length, or a game lacks its responses."""
    met, points_G = table.between(policy, other)
    if not len(met) or not table.has_responses:
        return None
    longer_G = longer_by(table, policy, met)
    if not meets_in_length(longer_G):
        return None
    return length_controlled(points_G, longer_G, table.prompt_G[met], table.weight_G[met], resamples=resamples)


def longer_by(table: GameTable, policy: int, met: np.ndarray) -> np.ndarray:
    """By how many characters the policy's answer is longer, in each of the games `met` that it plays."""
    lengths_G2 = lengths_of(table)[met]
    return np.where(table.a_G[met] == policy, 1, -1) * (lengths_G2[:, 0] - lengths_G2[:, 1])


def length_controlled(
    points_G: np.ndarray,
    characters_G: np.ndarray,
    prompt_G: np.ndarray,
    weight_G: np.ndarray | None = None,
    *,
    resamples: int | None = None,
) -> Score:
    """LC of the side whose points these are.

    Args:
        characters_G: Δ, how much longer that side's answer is.
        prompt_G: which games belong to one prompt: any labels.
        weight_G: of games; those of a prompt count as one game together.

    Raises:
        EmptyDatasetError: there is no game.
    """
    if not len(points_G):
        raise EmptyDatasetError("there is no game to rate by", remedy="give rows in which somebody was preferred")
    weight_G = np.ones(len(points_G)) if weight_G is None else weight_G
    place_G = np.unique(prompt_G, return_inverse=True)[1]
    prompts = int(place_G.max()) + 1
    weight_G = weight_G / np.bincount(place_G, weights=weight_G)[place_G]

    def rates(times_RC: np.ndarray) -> np.ndarray:
        counts_RG = times_RC[:, place_G] * weight_G
        x_RGF = np.ones((*counts_RG.shape, 2))
        x_RGF[..., 1] = np.tanh(_scaled(characters_G, counts_RG))
        return sigmoid(fit(x_RGF, counts_RG * points_G, counts_RG)[:, :1])

    (score,) = refitted(prompts, rates, cells=5 * len(points_G), resamples=resamples)
    return outside_chance(score, prompts)


def _scaled(characters_G: np.ndarray, counts_RG: np.ndarray) -> np.ndarray:
    """Δ / std(Δ) of each resample [R, G]; 0 where all differences are alike, which then explain nothing."""
    total_R = counts_RG.sum(axis=1, keepdims=True)
    centre_R = counts_RG @ characters_G[:, None] / total_R
    squares_R = (counts_RG * (characters_G - centre_R) ** 2).sum(axis=1, keepdims=True) / total_R
    spread_R = np.sqrt(squares_R)
    # One character's difference is the smallest there is: what is far below it is rounding.
    return np.divide(characters_G, spread_R, out=np.zeros_like(counts_RG), where=spread_R > 1e-9)
