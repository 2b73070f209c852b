"""The arithmetic under the audit: intervals, agreement, log-odds, the small regression, hashes and signatures."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from posttrain.auditing.shortcuts import presence
from posttrain.auditing.statistics import (
    Differences,
    cross_validate,
    fit_weights,
    krippendorff_alpha,
    log_odds,
    sign_test,
)
from posttrain.auditing.texts import TextStore
from posttrain.auditing.words import estimated_overlap, groups, similar_pairs, words_of
from posttrain.intervals import wilson


def test_wilson_by_hand() -> None:
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_sign_test_by_hand() -> None:
    assert sign_test(9, 0) == 3.0
    assert sign_test(3, 12) == pytest.approx(-9 / math.sqrt(15))
    assert sign_test(0, 0) == 0.0


def test_alpha_of_krippendorffs_own_example() -> None:
    """Krippendorff 2011, section C: four observers, twelve units, nominal data with gaps; alpha = 0.743."""
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    counts = np.zeros((12, 5), dtype=int)
    for answers in observers:
        for unit, answer in enumerate(answers):
            if answer is not None:
                counts[unit, answer - 1] += 1
    assert krippendorff_alpha(counts) == pytest.approx(0.743, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha(np.array([[3, 0], [0, 3], [2, 0]])) == 1.0
    assert krippendorff_alpha(np.array([[1, 1], [1, 1]])) < 0
    assert math.isnan(krippendorff_alpha(np.array([[1, 0], [0, 1]])))


def test_log_odds_by_hand() -> None:
    """One word of equation 16: (2 + 1) of 12 against (0 + 1) of 10, with a prior of 4 spread like all 18 words."""
    found = dict(log_odds({"a": 9, "b": 0}, {"a": 6, "b": 3}, prior_strength=4.0))
    prior_b = 4.0 * 3 / 18
    mine, theirs = prior_b, 3 + prior_b
    delta = math.log(mine / (9 + 4 - mine)) - math.log(theirs / (9 + 4 - theirs))
    assert found["b"] == pytest.approx(delta / math.sqrt(1 / mine + 1 / theirs))
    assert found["a"] > 0 > found["b"]


def test_rare_words_need_evidence() -> None:
    """A word said once by one side alone weighs less than one said 100 to 50 times."""
    first = {"once": 1, "often": 100, "rest": 1000}
    second = {"often": 50, "rest": 1000}
    order = [word for word, _ in log_odds(first, second)]
    assert order.index("often") < order.index("once")


# ---------------------------------------------------------------- the regression


def planted(pairs: int, share: float, seed: int = 0) -> tuple[Differences, np.ndarray]:
    """Feature 0 points to the chosen side in `share` of the pairs; feature 1 is noise."""
    generator = np.random.default_rng(seed)
    signal = np.where(generator.random(pairs) < share, 1.0, -1.0)
    noise = generator.choice([-1.0, 0.0, 1.0], pairs)
    return Differences.dense(np.stack([signal, noise], axis=1), ["signal", "noise"]), np.arange(pairs)


def test_accuracy_is_that_of_the_planted_feature() -> None:
    differences, groups_ = planted(2000, 0.8)
    predicted = cross_validate(differences, groups_)
    assert predicted.accuracy == pytest.approx(0.8, abs=0.03)
    assert predicted.low < predicted.accuracy < predicted.high
    assert predicted.weights_F[0] > 5 * abs(predicted.weights_F[1])


def test_weights_solve_the_regression() -> None:
    """With one feature of length 1, the fit tends to the logit of its share: ln(0.8 / 0.2)."""
    values = np.ones((1000, 1))
    values[:200] = -1
    assert fit_weights(Differences.dense(values, ["x"]))[0] == pytest.approx(math.log(4), abs=0.01)


def test_noise_is_a_coin_and_repeats_under_one_prompt_do_not_help() -> None:
    generator = np.random.default_rng(1)
    repeats = np.repeat(generator.choice([-1.0, 1.0], (40, 30)), 25, axis=0)
    names = [str(n) for n in range(30)]
    grouped = cross_validate(Differences.dense(repeats, names), np.repeat(np.arange(40), 25))
    leaking = cross_validate(Differences.dense(repeats, names), np.arange(1000))
    assert leaking.accuracy > 0.9  # each answer stands in the training folds, too
    assert grouped.accuracy < 0.75


def test_a_mirrored_data_set_has_mirrored_weights() -> None:
    differences, _ = planted(500, 0.7)
    mirrored = Differences(differences.starts, differences.columns, -differences.values, differences.names)
    assert fit_weights(mirrored) == pytest.approx(-fit_weights(differences))


def test_sparse_rows_are_taken_and_scored_as_dense_ones() -> None:
    generator = np.random.default_rng(2)
    dense = generator.integers(-1, 2, (50, 7)).astype(float)
    rows = [np.flatnonzero(row) for row in dense]
    sparse = Differences(
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]),
        np.concatenate(rows).astype(np.int32),
        np.concatenate([dense[i, row] for i, row in enumerate(rows)]).astype(np.float32),
        tuple("abcdefg"),
    )
    weights, picked = generator.normal(size=7), np.array([3, 17, 17, 40])
    assert sparse.take(picked).scores(weights) == pytest.approx(dense[picked] @ weights, abs=1e-5)
    slope = generator.normal(size=50)
    assert sparse.gradient(slope) == pytest.approx(dense.T @ slope, abs=1e-5)


# ---------------------------------------------------------------- words and signatures


def test_words_part_at_blanks_punctuation_and_texts() -> None:
    words = words_of(
        ["Hello, World!", "hello world", "", "it\u2019s \u201cso\u201d \u2014 yes", "\u4f60\u597d\u3002ok"]
    )
    assert words.counts.tolist() == [2, 2, 0, 4, 3]
    hashes = words.sequence_hash()
    assert hashes[0] == hashes[1] and hashes[2] == 0
    assert words_of(["world hello"]).sequence_hash()[0] != hashes[0]


def test_ngrams_do_not_cross_texts() -> None:
    words = words_of(["a b", "c d", "a b c"])
    grams = words.ngrams(2, whole=True)
    assert grams[0] == grams[4] and grams[0] != 0
    assert grams[1] == 0 and grams[3] == 0 and grams[6] == 0
    assert words.ngrams(8, whole=True).tolist() == [0] * 7


def test_signatures_estimate_the_overlap() -> None:
    generator = random.Random(4)
    vocabulary = [f"word{n}" for n in range(3000)]
    base = [generator.choice(vocabulary) for _ in range(400)]
    changed = list(base)
    changed[::20] = [generator.choice(vocabulary) for _ in changed[::20]]  # 20 words: about 60 of 398 sequences

    def sequences(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + 3]) for i in range(len(words))}

    first, second = sequences(base), sequences(changed)
    overlap = len(first & second) / len(first | second)
    signatures = words_of([" ".join(base), " ".join(changed)]).signatures()
    assert estimated_overlap(signatures[:1], signatures[1:])[0] == pytest.approx(overlap, abs=0.15)


def test_similar_finds_the_near_and_only_the_near() -> None:
    generator = random.Random(5)
    vocabulary = [f"word{n}" for n in range(2000)]
    texts = [" ".join(generator.choice(vocabulary) for _ in range(80)) for _ in range(300)]
    texts += [texts[7] + " more", texts[9].replace("word1", "word2", 1), ""]
    links = similar_pairs(words_of(texts).signatures(), 0.8)
    assert [tuple(sorted(link)) for link in links.tolist()] == [(7, 300), (9, 301)]
    across = similar_pairs(words_of(texts[300:302]).signatures(), 0.8, words_of(texts[:300]).signatures())
    assert across.tolist() == [[0, 7], [1, 9]]


def test_groups_join_chains() -> None:
    assert groups(np.array([[4, 2], [2, 0], [5, 3]]), 6).tolist() == [0, 1, 0, 3, 0, 3]


def test_a_text_store_gives_back_what_it_was_given() -> None:
    store = TextStore()
    texts = ["plain", "", "\u00fcml\u00e4ut \U0001f600", "x" * 400_000, "\ud800 half"]
    for index, text in enumerate(texts):
        assert store.add(text) == index
        assert store[0] == "plain"  # reading between writes moves no text
    assert list(store) == texts and len(store) == 5
    assert store.word_counts.tolist() == [1, 0, 2, 1, 2]
    assert store.signatures.shape == (5, 64)


def test_features_of_equal_counts_come_in_the_order_of_their_names() -> None:
    """Sets are walked in another order in each process: findings that hung on it named other phrases each time."""
    names = [f"{letter}{letter}" for letter in "qwertzuiopasdfghjklyxcvbnm"]
    differences = presence([names] * 4, [["other"]] * 4, fewest=1)
    assert differences.names == tuple(sorted([*names, "other"]))
