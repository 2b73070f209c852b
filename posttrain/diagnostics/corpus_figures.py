"""Figures of a whole set of rows that are no mean of the rows' scores: functions of sums over the rows.

    sums_PK = row_sums                        # what each row adds: [rows, sums]
    bleu(sums_PK.sum(axis=0))                 # as sacrebleu has it
    corpus_score("bleu", sums_PK)             # with its interval: the bootstrap draws rows
    corpus_change("bleu", before_PK, after_PK)    # paired: the same rows are drawn of both

A file of answers keeps the sums of each row (`AnswerLine.by_metric`), so that two models are compared on the same rows
without either being asked again (Koehn 2004, "Statistical significance tests for machine translation evaluation").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from posttrain.intervals import FLIPS, Difference, Score, blocks, bootstrap

if TYPE_CHECKING:  # a page without such figures is made without numpy
    import numpy as np

Formula = Callable[["np.ndarray"], "np.ndarray"]
"""Sums over rows, [..., K], to the figure, [...]."""
BLEU_ORDERS = 4
"""Papineni et al. 2002, section 2.1.3."""


def bleu(sums_K: np.ndarray) -> np.ndarray:
    """BLEU (Papineni et al. 2002, section 2.3) of summed statistics, 0 to 100: [..., 2 + 2 * 4] to [...].

    An order without a match counts as half a match, the next such order as a quarter (`exp` smoothing, as NIST's
    mteval-v13a and sacrebleu have it).

    sums_K: tokens of the answers, tokens of their closest references, matched n-grams of order 1 to 4, all n-grams of
        order 1 to 4.
    """
    import numpy as np

    said, wanted = sums_K[..., 0], sums_K[..., 1]
    matched, total = sums_K[..., 2 : 2 + BLEU_ORDERS], sums_K[..., 2 + BLEU_ORDERS :]
    without = matched == 0
    smoothed = np.where(without, 0.5 ** np.cumsum(without, axis=-1), matched)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(smoothed / total).mean(axis=-1)
        brevity = np.where(said < wanted, np.exp(1 - wanted / said), 1.0)
        score = 100 * brevity * np.exp(logs)
    # Without a match of one word, or with answers of fewer than four words in all, there is no BLEU but 0.
    return np.where((matched.sum(axis=-1) == 0) | (total.min(axis=-1) == 0), 0.0, score)


CHRF_BETA = 2
"""Recall counts twice (Popović 2016)."""


def chrf(sums_K: np.ndarray) -> np.ndarray:
    """chrF2 (Popović 2015, eq. 1) of summed statistics, 0 to 100: [..., 3 * orders] to [...].

    The F-score of each order that occurs on both sides, averaged over these orders: sacrebleu's `eps_smoothing=False`.

    sums_K: for each order the n-grams of the answers, of their best references, and those in common.
    """
    import numpy as np

    said, wanted, matched = sums_K[..., 0::3], sums_K[..., 1::3], sums_K[..., 2::3]
    counted = (said > 0) & (wanted > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(counted, matched / said, 0.0)
        recall = np.where(counted, matched / wanted, 0.0)
        orders = counted.sum(axis=-1)
        p, r = precision.sum(axis=-1) / orders, recall.sum(axis=-1) / orders
        weight = CHRF_BETA**2
        score = 100 * (1 + weight) * p * r / (weight * p + r)
    return np.where((orders == 0) | (matched.sum(axis=-1) == 0), 0.0, score)


def exp_ratio(sums_K: np.ndarray) -> np.ndarray:
    """exp(first sum / second): a perplexity of nats and tokens."""
    import numpy as np

    return np.exp(sums_K[..., 0] / sums_K[..., 1])


def bits(sums_K: np.ndarray) -> np.ndarray:
    """First sum / second, in bits: of nats and bytes, bits per byte."""
    import numpy as np

    return sums_K[..., 0] / sums_K[..., 1] / np.log(2)


FORMULAS: Mapping[str, Formula] = {
    "bleu": bleu,
    "chrf": chrf,
    "text_perplexity": exp_ratio,
    "word_perplexity": exp_ratio,
    "byte_perplexity": exp_ratio,
    "bits_per_byte": bits,
}
"""By the metric's name, what the sums of its rows become."""


OF_ANY_TASK = ("word_perplexity", "byte_perplexity", "bits_per_byte")
"""Figures of lm-eval, which are called by their task too: `wikitext_word_perplexity`."""


def formula_of(metric: str) -> Formula | None:
    """What the sums of a metric's rows become; None of a metric that is a mean of its rows."""
    ending = next((name for name in OF_ANY_TASK if metric.endswith(f"_{name}")), metric)
    return FORMULAS.get(ending)


def _formula(metric: str) -> Formula:
    found = formula_of(metric)
    assert found is not None, metric
    return found


def corpus_score(metric: str, sums_PK: np.ndarray) -> Score:
    """The figure of all rows, and its interval: the percentile bootstrap over rows."""
    formula = _formula(metric)
    return bootstrap(len(sums_PK), lambda index: formula(_drawn(index, sums_PK)))


def corpus_change(metric: str, before_PK: np.ndarray, after_PK: np.ndarray) -> Difference:
    """After minus before on the same rows, drawn together: what is merely hard about a row drops out."""
    formula = _formula(metric)
    found = bootstrap(
        len(before_PK), lambda index: formula(_drawn(index, after_PK)) - formula(_drawn(index, before_PK))
    )
    return Difference(found.value, found.low, found.high, found.n)


def _drawn(index: np.ndarray, sums_PK: np.ndarray) -> np.ndarray:
    """The sums of resamples, [..., P] to [..., K]: each row as often as it was drawn."""
    import numpy as np

    # Taking the rows themselves would hold 18 numbers of chrF for each of 4 million draws.
    flat = index.reshape(-1, index.shape[-1])
    often = np.stack([np.bincount(row, minlength=len(sums_PK)) for row in flat])
    return (often @ sums_PK).reshape(*index.shape[:-1], -1)


def exchanged(metric: str, before_PK: np.ndarray, after_PK: np.ndarray) -> float:
    """How often chance alone moves the figure as far: two-sided p of approximate randomisation, which exchanges the two
    models' answers to random rows (Riezler and Maxwell 2005, "On some pitfalls in automatic evaluation")."""
    import numpy as np

    formula = _formula(metric)
    changed = ~np.isclose(before_PK, after_PK, rtol=0, atol=1e-12).all(axis=-1)
    if not changed.any():
        return 1.0
    rng, as_far = np.random.default_rng(0), 0
    ones, twos = before_PK.sum(axis=0), after_PK.sum(axis=0)
    seen = abs(float(formula(twos) - formula(ones))) * (1 - 1e-9)
    moved_PK = (after_PK - before_PK)[changed]
    for tries in blocks(FLIPS, len(moved_PK)):
        # What an exchange moves from one model's sums to the other's.
        moved_FK = rng.integers(0, 2, size=(tries, len(moved_PK))) @ moved_PK
        as_far += int((np.abs(formula(twos - moved_FK) - formula(ones + moved_FK)) >= seen).sum())
    return (as_far + 1) / (FLIPS + 1)
