"""Figures of answers that are no plain share or mean; the intervals themselves are `posttrain.intervals`.

- Perplexity and its change: ratios of sums over prompts, with the bootstrap's interval.
- Distinct-n: the grouped jackknife (Quenouille 1956). A bootstrap sample repeats answers, and it counts repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from posttrain.intervals import Score, bootstrap, from_error

JACKKNIFE_GROUPS = 20


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


def distinct(answers: Sequence[Sequence[str]], order: int) -> Score:
    """Distinct-n (Li et al. 2016, section 5.2): different n-grams of words over all n-grams, across all answers.

    It falls with the number of words, so compare it between models on the same prompts only.

    Args:
        answers: one inner sequence per prompt.
    """
    groups = np.array_split(np.arange(len(answers)), min(JACKKNIFE_GROUPS, len(answers)))
    grams = [[gram for text in texts for gram in _ngrams(text, order)] for texts in answers]
    value = _distinct_share(grams)
    jackknifed = np.array(
        [_distinct_share([grams[i] for i in range(len(grams)) if i not in set(group)]) for group in groups]
    )
    count = len(groups)
    error = math.sqrt((count - 1) / count * float(((jackknifed - jackknifed.mean()) ** 2).sum())) if count > 1 else 0.0
    low, high = from_error(value, error)
    return Score(value, max(0.0, low), min(1.0, high), len(answers))


def _distinct_share(grams: Sequence[Sequence[tuple[str, ...]]]) -> float:
    """1 where there is no n-gram at all: nothing is repeated."""
    total = sum(len(own) for own in grams)
    return len({gram for own in grams for gram in own}) / total if total else 1.0


def _ngrams(text: str, order: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[start : start + order]) for start in range(len(words) - order + 1)]
