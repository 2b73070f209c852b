"""BLEU, chrF and perplexities of sums: by hand, against sacrebleu, and the tests that exchange rows by enumeration."""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest

from posttrain.diagnostics.corpus_figures import (
    FORMULAS,
    bits,
    bleu,
    chrf,
    corpus_change,
    corpus_score,
    exchanged,
    exp_ratio,
    formula_of,
)

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "over", "green", "hills"]


def test_bleu_by_hand() -> None:
    """ "the cat sat" against "the cat sat down": 3/3, 2/2, 1/1 n-grams, and none of four words."""
    short = np.array([3, 4, 3, 2, 1, 0, 3, 2, 1, 0], dtype=float)
    assert bleu(short) == 0  # no answer has four words: there is no BLEU
    # Twelve words of fourteen wanted; 9/12, 6/11, 3/10 and 0/9: the order without a match counts as 1/2 of one.
    sums = np.array([12, 14, 9, 6, 3, 0, 12, 11, 10, 9], dtype=float)
    mean = (9 / 12 * 6 / 11 * 3 / 10 * 0.5 / 9) ** 0.25
    assert float(bleu(sums)) == pytest.approx(100 * math.exp(1 - 14 / 12) * mean)
    # Two orders without a match: 1/2, then 1/4.
    sums = np.array([12, 12, 9, 6, 0, 0, 12, 11, 10, 9], dtype=float)
    assert float(bleu(sums)) == pytest.approx(100 * (9 / 12 * 6 / 11 * 0.5 / 10 * 0.25 / 9) ** 0.25)
    assert float(bleu(np.zeros(10))) == 0


def test_chrf_by_hand() -> None:
    """Two orders: precision (2/4 + 1/3) / 2, recall (2/5 + 1/4) / 2, F with recall counted twice."""
    precision, recall = (2 / 4 + 1 / 3) / 2, (2 / 5 + 1 / 4) / 2
    wanted = 100 * 5 * precision * recall / (4 * precision + recall)
    assert float(chrf(np.array([4, 5, 2, 3, 4, 1], dtype=float))) == pytest.approx(wanted)
    # An order that one side is too short for is not averaged.
    assert float(chrf(np.array([4, 5, 2, 3, 4, 1, 0, 3, 0], dtype=float))) == pytest.approx(wanted)
    assert float(chrf(np.array([4, 5, 0], dtype=float))) == 0


def test_corpora_are_what_sacrebleu_says() -> None:
    metrics = pytest.importorskip("sacrebleu.metrics")
    rng = random.Random(0)
    for rows in (1, 3, 20):
        for _ in range(10):
            answers = [" ".join(rng.choices(WORDS, k=rng.randint(0, 9))) for _ in range(rows)]
            several = [
                [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 3))]
                for _ in range(rows)
            ]
            streams = [[own[i] if i < len(own) else None for own in several] for i in range(max(map(len, several)))]
            for scorer, formula in (
                (metrics.BLEU(), bleu),
                (metrics.CHRF(), chrf),
                (metrics.CHRF(word_order=2), chrf),
            ):
                sums = np.array(scorer._extract_corpus_statistics(answers, streams), dtype=float).sum(axis=0)
                assert float(formula(sums)) == pytest.approx(scorer.corpus_score(answers, streams).score, abs=1e-9)


def test_perplexities_are_ratios_of_sums() -> None:
    sums = np.array([[2.0, 4.0], [4.0, 4.0]]).sum(axis=0)
    assert float(exp_ratio(sums)) == pytest.approx(math.exp(6 / 8))
    assert float(bits(sums)) == pytest.approx(6 / 8 / math.log(2))
    assert formula_of("wikitext_word_perplexity") is exp_ratio
    assert formula_of("wikitext_bits_per_byte") is bits
    assert formula_of("arc_easy_acc") is None
    assert formula_of("my_bleu") is None  # lm-eval's own, whose parts are no sums of ours


def test_the_bootstrap_draws_rows() -> None:
    """Against a loop over the same draws: every resample is the formula of the drawn rows' sums."""
    rng = np.random.default_rng(3)
    rows = np.column_stack([rng.gamma(2.0, size=30), rng.integers(1, 9, size=30).astype(float)])
    found = corpus_score("text_perplexity", rows)
    assert found.value == pytest.approx(math.exp(rows[:, 0].sum() / rows[:, 1].sum()))
    draws = np.random.default_rng(0).integers(0, 30, size=(2000, 30))
    values = [math.exp(rows[own, 0].sum() / rows[own, 1].sum()) for own in draws]
    assert [found.low, found.high] == pytest.approx(list(np.quantile(values, [0.025, 0.975])))


def test_a_change_is_paired() -> None:
    rng = np.random.default_rng(5)
    before = np.column_stack([rng.gamma(2.0, 3.0, size=40), np.full(40, 5.0)])
    after = before.copy()
    after[:, 0] *= 1.05
    found = corpus_change("text_perplexity", before, after)
    assert found.clear and found.low > 0
    # Apart, the two intervals overlap by far.
    apart = [corpus_score("text_perplexity", rows) for rows in (before, after)]
    assert apart[0].high > apart[1].low
    assert found.value == pytest.approx(apart[1].value - apart[0].value)
    same = corpus_change("text_perplexity", before, before)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_exchanging_rows_is_the_enumeration() -> None:
    """p by 10,000 random exchanges against all 2^8 of them."""
    rng = np.random.default_rng(1)
    before = np.column_stack([rng.gamma(2.0, size=8), np.full(8, 4.0)])
    after = before + np.column_stack([rng.normal(0.4, 0.6, size=8), np.zeros(8)])
    formula = FORMULAS["text_perplexity"]
    seen = abs(float(formula(after.sum(axis=0)) - formula(before.sum(axis=0))))
    as_far = 0
    for choice in product([0, 1], repeat=8):
        swap = np.array(choice)[:, None]
        one, two = np.where(swap, after, before).sum(axis=0), np.where(swap, before, after).sum(axis=0)
        as_far += abs(float(formula(two) - formula(one))) >= seen * (1 - 1e-9)
    assert exchanged("text_perplexity", before, after) == pytest.approx(as_far / 2**8, abs=0.02)
    assert exchanged("text_perplexity", before, before) == 1.0
    large = before + np.column_stack([np.full(8, 2.0), np.zeros(8)])
    assert exchanged("text_perplexity", before, large) == pytest.approx(2 / 2**8, abs=0.003)
