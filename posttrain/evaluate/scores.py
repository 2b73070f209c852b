"""Figures with 95 % intervals: what chance alone would make of them on as many prompts.

The prompt is the unit that was drawn, so every interval is over prompts; several answers to one prompt are one
observation, their mean.

- A share of yes-or-no answers: Wilson's interval (Wilson 1927, eq. 7). Near 0 and 1, where trained models live, the
  bootstrap's is too narrow: 20 of 20 would give [1, 1] where Wilson gives [0.84, 1].
- Means and ratios: the percentile bootstrap (Efron 1979) with 2,000 resamples and a fixed seed.
- Distinct-n: the grouped jackknife (Quenouille 1956). A bootstrap sample repeats answers, and it counts repeats.

All are over prompts in general: with a fixed set of prompts and greedy answers, nothing is random but their choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2_000
JACKKNIFE_GROUPS = 20
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


@dataclass(frozen=True, slots=True)
class Score:
    """A figure and its interval: Score(0.94, 0.87, 0.98, n=64)."""

    value: float
    low: float
    high: float
    n: int
    """Prompts, not answers."""

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def share(successes: float, n: int) -> Score:
    """Wilson's interval: share(8, 10) -> Score(0.8, 0.490, 0.943, 10)."""
    proportion = successes / n
    spread = _Z * math.sqrt(proportion * (1 - proportion) / n + _Z**2 / (4 * n**2))
    centre = proportion + _Z**2 / (2 * n)
    scale = 1 + _Z**2 / n
    # The bounds are 0 and 1 exactly where no or every answer is right; rounding must not push them past the value.
    low = min(max(0.0, (centre - spread) / scale), proportion)
    high = max(min(1.0, (centre + spread) / scale), proportion)
    return Score(proportion, low, high, n)


def mean(values_by_prompt: Sequence[Sequence[float]]) -> Score:
    """The mean of the prompts' means; Wilson's interval where each prompt has one answer and each value is 0 or 1."""
    if all(len(values) == 1 and values[0] in (0, 1) for values in values_by_prompt):
        return share(int(sum(values[0] for values in values_by_prompt)), len(values_by_prompt))
    means = np.array([np.mean(values) for values in values_by_prompt])
    return bootstrap(len(means), lambda index: means[index].mean(axis=-1))


def average(values: np.ndarray) -> Score:
    """`mean` of one value per prompt."""
    return mean([[value] for value in np.asarray(values, dtype=float).tolist()])


def perplexity(nats: Sequence[float], tokens: Sequence[int]) -> Score:
    """exp(nats / tokens) over all prompts: every token counts the same, whichever answer it is in.

    Args:
        nats: minus the log-prob of each prompt's answer.
        tokens: how many ids it has.
    """
    total, count = np.asarray(nats, dtype=float), np.asarray(tokens, dtype=float)
    return bootstrap(len(total), lambda index: np.exp(total[index].sum(axis=-1) / count[index].sum(axis=-1)))


def perplexity_change(nats: Sequence[float], nats_before: Sequence[float], tokens: Sequence[int]) -> Score:
    """Perplexity over the perplexity before, minus 1; paired, so that hard answers do not blur the difference."""
    change = np.asarray(nats, dtype=float) - np.asarray(nats_before, dtype=float)
    count = np.asarray(tokens, dtype=float)
    return bootstrap(len(count), lambda index: np.expm1(change[index].sum(axis=-1) / count[index].sum(axis=-1)))


def bootstrap(n: int, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Score:
    """Percentile bootstrap of a statistic over n prompts.

    Args:
        statistic: prompt indices [..., n] to values [...]; called with all prompts, and with resamples of them.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, min(RESAMPLES, 4_000_000 // n))
    draws = [
        statistic(rng.integers(0, n, size=(min(rows, RESAMPLES - start), n))) for start in range(0, RESAMPLES, rows)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    return Score(float(statistic(np.arange(n))), float(low), float(high), n)


def distinct(answers: Sequence[Sequence[str]], order: int) -> Score:
    """Distinct-n (Li et al. 2016, section 5.2): different n-grams of words over all n-grams, across all answers.

    It falls with the number of words, so compare it between models on the same prompts only.

    Args:
        answers: one inner sequence per prompt.
    """
    groups = np.array_split(np.arange(len(answers)), min(JACKKNIFE_GROUPS, len(answers)))
    grams = [[gram for text in texts for gram in _ngrams(text, order)] for texts in answers]
    value = _distinct_share(grams)
    left_out = np.array(
        [_distinct_share([grams[i] for i in range(len(grams)) if i not in set(group)]) for group in groups]
    )
    count = len(groups)
    error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum())) if count > 1 else 0.0
    return Score(value, max(0.0, value - _Z * error), min(1.0, value + _Z * error), len(answers))


def _distinct_share(grams: Sequence[Sequence[tuple[str, ...]]]) -> float:
    """1 where there is no n-gram at all: nothing is repeated."""
    total = sum(len(own) for own in grams)
    return len({gram for own in grams for gram in own}) / total if total else 1.0


def _ngrams(text: str, order: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
