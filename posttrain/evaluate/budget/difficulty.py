"""The best strategy by difficulty, against one strategy for all prompts, at equal price.

Snell et al. 2024, arXiv:2408.03314: five bins of the model's own pass rate; in each the strategy that is best there at
the given budget ("compute-optimal"). What is chosen on the prompts that it is measured on always looks better than it
is, so the prompts are halved: chosen on one half, measured on the other, both ways.

Deviation: pass rates are of the pool's second half, and what is chosen among is of its first, where the paper draws
many other samples. With the same ones a prompt that was lucky would count as easy and be called well solved at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from posttrain.evaluate.budget.curves import Curve, PoolTable, pool_curves
from posttrain.intervals import paired_difference
from posttrain.runs.records.budget import DifficultyBin, DifficultyChoice
from posttrain.runs.records.evaluation import Figure

BINS = 5
FEWEST = 20
"""Prompts below which halves of five bins hold so few that a choice among them says nothing."""
WITHIN = 1.05
"""A strategy whose tokens exceed the price by at most this share counts as that price."""


def by_difficulty(table: PoolTable, ns: Sequence[int], strategies: Sequence[Curve]) -> DifficultyChoice | None:
    """At the price of the largest n that half of the pool pays for; None with too few prompts, or without a choice.

    Args:
        strategies: those that were run; their points within that price are chosen among too.
    """
    half = table.samples // 2
    affordable = [n for n in ns if 1 < n <= half]
    if table.prompts < FEWEST or not affordable:
        return None
    n = affordable[-1]
    first = table.first(half)
    candidates = {curve.name: curve.at_n(n).values_P for curve in pool_curves(first, [n]) if curve.chooses}
    for curve in strategies:
        for point in curve.points:
            if point.tokens <= WITHIN * n * table.tokens:
                candidates[point.label] = point.values_P
    if len(candidates) < 2:
        return None
    return chosen_by_bin(n, candidates, table.right_PN[:, half:].mean(axis=1))


def chosen_by_bin(n: int, candidates: Mapping[str, np.ndarray], rates_P: np.ndarray, seed: int = 0) -> DifficultyChoice:
    """The choice and what it is worth: see the module.

    Args:
        candidates: {name: how right it is by prompt}.
        rates_P: the share of right answers by prompt, from other answers than the candidates'.
    """
    names = list(candidates)
    values_CP = np.stack([candidates[name] for name in names])
    bins_P = bins_of(rates_P)
    halves_P = np.random.default_rng(seed).permutation(len(rates_P)) % 2
    fixed_P, chosen_P = np.zeros(len(rates_P)), np.zeros(len(rates_P))
    fixed_names: list[str] = []
    choices: dict[int, list[str]] = {number: [] for number in np.unique(bins_P).tolist()}
    for half in (0, 1):
        chosen_on, measured_on = halves_P == half, halves_P != half
        fixed = _best(values_CP[:, chosen_on])
        fixed_names.append(names[fixed])
        fixed_P[measured_on] = values_CP[fixed, measured_on]
        for number in choices:
            members = bins_P == number
            own = _best(values_CP[:, chosen_on & members], fixed)
            choices[number].append(names[own])
            chosen_P[measured_on & members] = values_CP[own, measured_on & members]
    records = [
        DifficultyBin(
            float(rates_P[members].min()),
            float(rates_P[members].max()),
            int(members.sum()),
            tuple(choices[number]),
            float(chosen_P[members].mean()),
            float(fixed_P[members].mean()),
        )
        for number in choices
        for members in [bins_P == number]
    ]
    return DifficultyChoice(n, tuple(fixed_names), Figure.of(paired_difference(fixed_P, chosen_P)), tuple(records))


def bins_of(rates_P: np.ndarray) -> np.ndarray:
    """[P]: 0 to 4, the hardest fifth first; equal rates stay together, so that there may be fewer bins."""
    edges = np.quantile(rates_P, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(np.unique(edges), rates_P, side="left")


def _best(values_CM: np.ndarray, otherwise: int = 0) -> int:
    """The candidate with the highest mean; of equal ones, and without a prompt, `otherwise`."""
    if values_CM.shape[1] == 0:
        return otherwise
    means = values_CM.mean(axis=1)
    return otherwise if means[otherwise] >= means.max() - 1e-12 else int(means.argmax())
