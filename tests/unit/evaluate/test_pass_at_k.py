"""pass@k against fractions worked by hand, against every subset of answers, and against the truth it estimates."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain import intervals
from posttrain.errors import ConfigError, EmptyDatasetError
from posttrain.evaluate.pass_at_k import PassCounts, curve, estimates, powers_to, read_counts, write_counts


def counts(samples: int, *correct: int) -> PassCounts:
    rows = tuple(f"sums.jsonl, row {i}" for i in range(len(correct)))
    return PassCounts("sums", samples, rows, tuple(f"{i} + 1?" for i in range(len(correct))), correct)


# ---------------------------------------------------------------- the estimate


@pytest.mark.parametrize(
    ("samples", "correct", "k", "wanted"),
    [
        (4, 1, 1, Fraction(1, 4)),
        (4, 1, 2, Fraction(1, 2)),  # 3 of the 6 pairs hold the one right answer
        (4, 2, 2, Fraction(5, 6)),  # one pair has neither of two
        (4, 3, 2, Fraction(1)),  # there are no two wrong ones
        (10, 3, 5, Fraction(11, 12)),  # 1 - C(7,5)/C(10,5) = 1 - 21/252
        (200, 1, 100, Fraction(1, 2)),
        (5, 0, 5, Fraction(0)),
        (5, 1, 5, Fraction(1)),
    ],
)
def test_hand_worked(samples: int, correct: int, k: int, wanted: Fraction) -> None:
    assert estimates(samples, [correct], [k])[0, 0] == pytest.approx(float(wanted), abs=1e-15, rel=1e-13)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_it_is_the_share_of_subsets_with_a_right_answer(drawn: tuple[int, int, int]) -> None:
    samples, correct, k = drawn
    subsets = list(combinations([True] * correct + [False] * (samples - correct), k))
    exact = Fraction(sum(any(subset) for subset in subsets), len(subsets))
    assert exact == 1 - Fraction(comb(samples - correct, k), comb(samples, k))
    assert estimates(samples, [correct], [k])[0, 0] == pytest.approx(float(exact), abs=1e-15, rel=1e-12)


@given(st.integers(1, 99).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n), min_size=1, max_size=5))))
def test_it_rises_with_k_from_the_share_that_is_right(drawn: tuple[int, list[int]]) -> None:
    samples, correct = drawn
    values_PK = estimates(samples, correct, range(1, samples + 1))
    assert values_PK[:, 0] == pytest.approx(np.array(correct) / samples, rel=1e-12)
    assert (np.diff(values_PK, axis=1) >= 0).all()
    assert ((values_PK >= 0) & (values_PK <= 1)).all()
    assert values_PK[:, -1].tolist() == [float(one > 0) for one in correct]
    more = estimates(samples, [min(samples, one + 1) for one in correct], range(1, samples + 1))
    assert (more >= values_PK).all()


def test_small_chances_and_large_numbers_keep_their_digits() -> None:
    tiny = estimates(1_000_000, [1], [1, 3])[0]
    assert tiny == pytest.approx([1e-6, 3e-6], rel=1e-12)  # 1 - (1 - 1e-6) would keep ten digits
    exact = 1 - Fraction(comb(5_000 - 7, 500), comb(5_000, 500))  # binomials of 700 digits
    assert estimates(5_000, [7], [500])[0, 0] == pytest.approx(float(exact), rel=1e-11)


def test_it_is_unbiased_where_the_plain_formula_is_not() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.binomial(8, 0.2, size=40_000)
    truth = 1 - 0.8**4
    assert estimates(8, drawn, [4]).mean() == pytest.approx(truth, abs=0.005)
    assert (1 - (1 - drawn / 8) ** 4).mean() < truth - 0.02


@pytest.mark.parametrize("k", [0, 9])
def test_a_k_out_of_reach_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=rf"pass@{k} cannot be estimated from 8 answers") as caught:
        estimates(8, [1], [1, k])
    assert caught.value.remedy == ("write `samples: 9`, or a smaller k" if k else "write a k of 1 or more")


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(EmptyDatasetError, match="no prompt"):
        counts(8)
    with pytest.raises(ConfigError, match="more answers are right than were sampled"):
        counts(8, 3, 9)
    with pytest.raises(ConfigError, match="no answer was sampled"):
        counts(0, 0)


# ---------------------------------------------------------------- curves and intervals


def test_curves_have_the_powers_of_two_and_the_end() -> None:
    assert powers_to(1) == [1]
    assert powers_to(64) == [1, 2, 4, 8, 16, 32, 64]
    assert powers_to(100) == [1, 2, 4, 8, 16, 32, 64, 100]


def test_a_curve_is_the_mean_over_prompts() -> None:
    points = curve(counts(4, 1, 2, 0, 4))
    assert [k for k, _ in points] == [1, 2, 4]
    assert [found.value for _, found in points] == pytest.approx([7 / 16, (1 / 2 + 5 / 6 + 0 + 1) / 4, 3 / 4])
    assert all(found.n == 4 and found.low <= found.value <= found.high for _, found in points)


def test_near_the_ends_the_interval_is_wilsons() -> None:
    assert intervals.average(np.ones(40)) == intervals.share(40, 40)
    nearly = intervals.average(np.array([1.0] * 39 + [0.9]))  # resamples would say [0.9925, 1]
    assert nearly.low == pytest.approx(0.909, abs=0.003) and nearly.high > nearly.value
    assert intervals.average(np.array([0.0] * 20 + [1.0] * 20)) == intervals.share(20, 40)
    middle = np.linspace(0, 1, 40)
    assert intervals.average(middle) == intervals.average(middle)  # the project's bootstrap


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (2.0, 2.0), (0.2, 1.5)])
def test_the_interval_covers(a: float, b: float) -> None:
    """Prompts from a population whose pass@k is known: E[1 - (1-p)^k], p ~ Beta(a, b).

    Where less than one prompt in all is expected to fail, Wilson's interval covers less, as it does for any share.
    """
    rng = np.random.default_rng(1)
    ks, n, trials = [1, 4, 16], 16, 150
    truth = [1 - np.prod([(b + i) / (a + b + i) for i in range(k)]) for k in ks]
    hits = np.zeros(len(ks))
    for _ in range(trials):
        drawn = counts(n, *rng.binomial(n, rng.beta(a, b, size=40)).tolist())
        hits += [found.low <= want <= found.high for (_, found), want in zip(curve(drawn, ks), truth, strict=True)]
    assert (hits / trials >= 0.90).all(), hits / trials


def test_the_file_comes_back(tmp_path: Path) -> None:
    written = counts(8, 0, 3, 8)
    assert read_counts(tmp_path, "sums") is None
    write_counts(tmp_path, written)
    assert read_counts(tmp_path, "sums") == written
    record = json.loads((tmp_path / "evaluations" / "sums.counts.json").read_text())
    assert [point["k"] for point in record["curve"]] == [1, 2, 4, 8]
    assert record["curve"][0]["value"] == pytest.approx(11 / 24)
