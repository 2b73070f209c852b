"""Do 95 % intervals of win rates and ratings hold the truth in 95 of 100 samples? Ours, and those of other tools.

    python -m benchmarks.rating_coverage                     # the table of docs/ratings.md, some minutes on one core
    python -m benchmarks.rating_coverage --replicates 200 --prompts 100 --only ours

Every replicate draws prompts, policies' answers and a judge's verdicts in both orders from a known model; the truth is
what the same estimator gives on 400,000 prompts. Prompts differ in how good each policy is at them, so that games of
one prompt resemble each other, and answers that are longer win more often.

| column | how the interval is made |
|---|---|
| ours | prompts are drawn, with all of their games, and everything is fitted anew |
| rows | every game is drawn by itself, as LMArena's code draws battles |
| rows copied | the same where a clear win is three rows, as Arena-Hard's code has it |
| fitted averaged | the standard error of fitted probabilities, as AlpacaEval's length-controlled win rate has it; its model knows the difficulty of each prompt |
"""  # noqa: E501 - a table

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from posttrain.evaluate.ratings.bradley_terry import ratings
from posttrain.evaluate.ratings.games import GameTable
from posttrain.evaluate.ratings.length import length_controlled
from posttrain.evaluate.ratings.logistic import fit, sigmoid
from posttrain.intervals import Score, average, from_error, refitted

SKILL = np.array([0.0, 0.3, 0.6, 1.2])
"""Of the policies, in log-odds."""
PROMPT_SPREAD = 1.0
"""Standard deviation of how good a policy is at a prompt, in log-odds."""
LENGTH = 0.8
"""Log-odds of tanh of a typical difference in length."""
CLEAR = 0.5
"""Share of wins that a judge calls clear."""
TRUTH_PROMPTS = 400_000
RESAMPLES = 1000


@dataclass(frozen=True)
class Sample:
    """G games, both orders of every two policies at every prompt."""

    prompt_G: np.ndarray
    a_G: np.ndarray
    b_G: np.ndarray
    points_G: np.ndarray
    longer_G: np.ndarray
    """Characters of A over those of B."""
    copies_G: np.ndarray
    """3 for a clear win, else 1."""
    hard_G: np.ndarray
    """How good A is at the prompt beyond its skill, less the same of B: what AlpacaEval's difficulty stands for."""

    def table(self, *, by_row: bool = False, copied: bool = False) -> GameTable:
        """As the package has games; `by_row` makes every game a prompt of its own."""
        copies_G = self.copies_G if copied else np.ones(len(self.a_G), dtype=int)
        index = np.repeat(np.arange(len(self.a_G)), copies_G)
        prompts = np.arange(len(index)) if by_row else self.prompt_G[index]
        return GameTable(
            policies=tuple(f"p{number}" for number in range(len(SKILL))),
            prompts=tuple(map(str, range(int(prompts.max()) + 1))),
            prompt_G=prompts,
            a_G=self.a_G[index],
            b_G=self.b_G[index],
            points_G=self.points_G[index],
            weight_G=np.ones(len(index)),
            games=(None,) * len(index),  # type: ignore[arg-type]
        )


def drawn(rng: np.random.Generator, prompts: int, policies: int) -> Sample:
    """Games of the first so many policies."""
    quality_CP = SKILL[:policies] + PROMPT_SPREAD * rng.normal(size=(prompts, policies))
    length_CP = rng.gamma(4.0, 75.0, size=(prompts, policies)) * (1 + 0.2 * SKILL[:policies])
    own, other = np.triu_indices(policies, 1)
    a_Q, b_Q = np.concatenate([own, other]), np.concatenate([other, own])
    longer_CQ = length_CP[:, a_Q] - length_CP[:, b_Q]
    hard_CQ = (quality_CP - SKILL[:policies])[:, a_Q] - (quality_CP - SKILL[:policies])[:, b_Q]
    odds_CQ = quality_CP[:, a_Q] - quality_CP[:, b_Q] + LENGTH * np.tanh(longer_CQ / 210.0)
    won_CQ = rng.random(odds_CQ.shape) < sigmoid(odds_CQ)
    clear_CQ = rng.random(odds_CQ.shape) < CLEAR
    tied_CQ = ~clear_CQ & (rng.random(odds_CQ.shape) < 0.2)
    return Sample(
        prompt_G=np.repeat(np.arange(prompts), len(a_Q)),
        a_G=np.tile(a_Q, prompts),
        b_G=np.tile(b_Q, prompts),
        points_G=np.where(tied_CQ, 0.5, won_CQ).ravel(),
        longer_G=longer_CQ.ravel(),
        copies_G=np.where(clear_CQ, 3, 1).ravel(),
        hard_G=hard_CQ.ravel(),
    )


# ---------------------------------------------------------------- what is estimated, and its intervals

Interval = Callable[[Sample], Score]


def raw(by_row: bool = False, copied: bool = False) -> Interval:
    """The win rate of the second policy over the first."""

    def interval(sample: Sample) -> Score:
        points_G, prompt_G = _second(sample)
        if by_row:
            rows = np.repeat(points_G, sample.copies_G if copied else 1)
            (score,) = refitted(
                len(rows), lambda times: times @ rows[:, None] / len(rows), cells=len(rows), resamples=RESAMPLES
            )
            return score
        return average(np.bincount(prompt_G, weights=points_G) / np.bincount(prompt_G))

    return interval


def controlled(sample: Sample) -> Score:
    """The length-controlled win rate."""
    points_G, prompt_G = _second(sample)
    return length_controlled(points_G, _longer(sample), prompt_G, resamples=RESAMPLES)


def fitted_averaged(sample: Sample) -> Score:
    """AlpacaEval's: the mean of σ(θ + ψ difficulty) over prompts, its standard error that of these probabilities."""
    points_G, _ = _second(sample)
    longer_G = _longer(sample)
    hard_G = np.where(sample.a_G == 1, sample.hard_G, -sample.hard_G)
    x = np.stack([np.ones(len(points_G)), np.tanh(longer_G / longer_G.std()), hard_G], axis=1)
    beta = fit(x, points_G[None], np.ones((1, len(points_G))))[0]
    fitted_G = sigmoid(beta[0] + beta[2] * hard_G)
    error = float(fitted_G.std(ddof=1)) / np.sqrt(len(fitted_G))
    value = float(fitted_G.mean())
    return Score(value, *from_error(value, error), len(fitted_G))


def rated(policy: int, by_row: bool = False, copied: bool = False, style: bool = False) -> Interval:
    """The rating of one policy over the first; `style` holds the length equal."""

    def interval(sample: Sample) -> Score:
        table = sample.table(by_row=by_row, copied=copied)
        lengths = np.tanh(sample.longer_G / 210.0)[:, None] if style else None
        return ratings(table, 0, style_GS=lengths, resamples=RESAMPLES).ratings[policy]

    return interval


def _second(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    return np.where(sample.a_G == 1, sample.points_G, 1 - sample.points_G), sample.prompt_G


def _longer(sample: Sample) -> np.ndarray:
    return np.where(sample.a_G == 1, sample.longer_G, -sample.longer_G)


# ---------------------------------------------------------------- how often the truth is held

FIGURES: dict[str, tuple[int, dict[str, Interval]]] = {
    "raw win rate": (2, {"ours": raw(), "rows": raw(True), "rows copied": raw(True, True)}),
    "LC win rate": (2, {"ours": controlled, "fitted averaged": fitted_averaged}),
    "rating, 4 policies": (
        4,
        {"ours": rated(3), "rows": rated(3, True), "rows copied": rated(3, True, True)},
    ),
    "rating at equal length": (4, {"ours": rated(3, style=True), "rows": rated(3, True, style=True)}),
}
"""{figure: (policies, {who: interval})}; each is held against what its own estimator tends to."""


def truth(interval: Interval, policies: int) -> float:
    """What the estimator tends to, without its bootstrap."""
    global RESAMPLES  # one resample: the value alone is wanted
    before, RESAMPLES = RESAMPLES, 1
    try:
        return interval(drawn(np.random.default_rng(1), TRUTH_PROMPTS // policies, policies)).value
    finally:
        RESAMPLES = before


def coverage(figure: str, prompts: int, replicates: int, only: str | None = None) -> Iterator[tuple[str, float, float]]:
    """(who, share of replicates whose interval holds the truth, mean width)."""
    policies, intervals = FIGURES[figure]
    for who, interval in intervals.items():
        if only not in (None, who):
            continue
        wanted = truth(interval, policies)
        # The same samples for everybody.
        found = [interval(drawn(np.random.default_rng((7, index)), prompts, policies)) for index in range(replicates)]
        held = np.mean([score.low <= wanted <= score.high for score in found])
        yield who, float(held), float(np.mean([score.high - score.low for score in found]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--only", metavar="WHO", help="Only these intervals: ours.")
    asked = parser.parse_args()
    error = np.sqrt(0.95 * 0.05 / asked.replicates)
    print(f"{asked.replicates:,} samples of {asked.prompts} prompts; Monte Carlo error of 95 %: {error:.1%} (one s.e.)")
    for figure in FIGURES:
        for who, held, width in coverage(figure, asked.prompts, asked.replicates, asked.only):
            print(f"{figure:<24} {who:<16} {held:7.1%}   mean width {width:.3g}", flush=True)


if __name__ == "__main__":
    main()
