"""Figures and intervals against numbers worked by hand, and against all resamples where they can be listed."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from posttrain import intervals
from posttrain.evaluate import figures
from posttrain.evaluate.pass_at_k import PassCounts, curve
from posttrain.runs.sampled import Examined


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # By hand with z = 1.959964; 8 of 10: (0.8 + z^2/20 -+ z sqrt(0.016 + z^2/400)) / (1 + z^2/10)
        (8, 10, 0.490162, 0.943318),
        (0, 20, 0.0, 0.161125),
        (20, 20, 0.838875, 1.0),
        (1, 1, 0.206549, 1.0),
    ],
)
def test_a_share_has_wilsons_interval(successes: int, n: int, low: float, high: float) -> None:
    score = intervals.share(successes, n)
    assert (score.value, score.n) == (successes / n, n)
    assert (score.low, score.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_yes_or_no_answers_get_wilsons_interval_and_others_the_bootstraps() -> None:
    assert intervals.mean([[1.0]] * 8 + [[0.0]] * 2) == intervals.share(8, 10)
    assert intervals.mean([[0.5]] * 40) == intervals.Score(0.5, 0.5, 0.5, 40)
    # All but few near one end: 20 prompts that all got 4 of 4 right say no more than 20 that got 1 of 1 right.
    assert intervals.mean([[1.0] * 4] * 20) == intervals.share(20, 20) == intervals.average([1.0] * 20)
    assert intervals.mean([[0.5]] * 4) == intervals.share(2, 4)


def test_the_bootstrap_is_that_of_all_resamples() -> None:
    values = [1.0, 2.0, 6.0]
    means = [np.mean(sample) for sample in itertools.product(values, repeat=3)]  # all 27 resamples
    score = intervals.mean([[value] for value in values])
    assert score.value == 3.0
    assert score.low == pytest.approx(np.quantile(means, 0.025, method="inverted_cdf"))  # 1: all three are 1
    assert score.high == pytest.approx(np.quantile(means, 0.975, method="inverted_cdf"))  # 6: all three are 6
    assert (score.low, score.high) == (1.0, 6.0)


def test_the_bootstrap_repeats_and_covers() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        sample = rng.exponential(size=40)
        score = intervals.mean([[value] for value in sample])
        hits += score.low <= 1.0 <= score.high
    assert 0.88 <= hits / 200 <= 0.98  # 95 % wanted; the percentile bootstrap is a little narrow for skewed data
    assert intervals.mean([[value] for value in sample]) == score


def test_several_answers_to_one_prompt_are_one_observation() -> None:
    repeated = intervals.mean([[1.0] * 50, [0.0] * 50, [1.0] * 50])
    assert repeated == intervals.share(2, 3)
    far = intervals.mean([[5.0] * 50, [9.0] * 50, [7.0] * 50])
    assert far.n == 3 and (far.low, far.high) == (5.0, 9.0)


def test_perplexity_weighs_tokens_and_not_answers() -> None:
    # 1 token of 3 nats and 9 tokens of 1 nat each: exp(12 / 10), not the mean of exp(3) and exp(1).
    score = figures.perplexity([3.0, 9.0], [1, 9])
    assert score.value == pytest.approx(math.exp(1.2))
    assert score.low == pytest.approx(math.exp(1.0))
    assert score.high == pytest.approx(math.exp(3.0))


def test_the_change_of_perplexity_is_paired() -> None:
    """Answers of very different difficulty, each 1 % harder per token: the change is known exactly."""
    tokens = [10, 10, 10]
    before = [1.0, 20.0, 60.0]
    after = [nats + 10 * math.log(1.01) for nats in before]
    score = figures.perplexity_change(after, before, tokens)
    assert score.value == pytest.approx(0.01)
    assert (score.low, score.high) == (pytest.approx(0.01), pytest.approx(0.01))
    assert figures.perplexity(after, tokens).high > 2 * figures.perplexity(after, tokens).low


def test_distinct_counts_ngrams_over_all_answers() -> None:
    answers = [["the cat sat"], ["The cat ran"], ["a dog"]]
    assert figures.distinct(answers, 1).value == pytest.approx(6 / 8)  # the, cat, sat, ran, a, dog
    assert figures.distinct(answers, 2).value == pytest.approx(4 / 5)  # the cat twice
    assert figures.distinct([["one"], ["two"]], 2).value == 1.0


def test_distincts_interval_holds_its_value_and_shrinks() -> None:
    words = np.random.default_rng(0).zipf(1.6, size=(1000, 6))
    answers = [[" ".join(map(str, row))] for row in words]
    few, many = figures.distinct(answers[:30], 1), figures.distinct(answers, 1)
    assert few.low < few.value < few.high
    assert 0 < many.high - many.low < few.high - few.low
    assert figures.distinct([["alone"]], 1) == intervals.Score(1.0, 1.0, 1.0, 1)


# ---------------------------------------------------------------- one method for each kind of figure

SECOND = re.compile(r"\b1\.9599?\d*|\b1\.96\b|NormalDist|def wilson|def bootstrap|def paired_difference")


def test_a_length_is_no_share_though_its_values_are_0_and_1() -> None:
    assert intervals.unbounded([1.0] * 20) == intervals.Score(1.0, 1.0, 1.0, 20)
    assert intervals.average([1.0] * 20).low == pytest.approx(0.838875, abs=1e-6)


def test_the_audit_the_suites_and_the_report_have_one_interval() -> None:
    """A share of 18 in 20, a mean of fractions, and a change, as each part of the package makes them."""
    right = [1.0] * 18 + [0.0] * 2
    fractions = [0.25, 0.5, 0.75, 1.0] * 10
    of_suite = intervals.mean([[value] for value in right])
    assert intervals.wilson(18, 20) == (of_suite.low, of_suite.high)
    for values in (right, fractions):
        held_out = Examined(0, {(str(n), ""): [value] for n, value in enumerate(values)}).score
        suite = intervals.mean([[value] for value in values])
        assert held_out == suite
        counts = PassCounts("s", 4, ("r",) * len(values), ("p",) * len(values), tuple(int(4 * v) for v in values))
        assert curve(counts, [1])[0][1] == suite
    moved = intervals.paired_difference(right, [1.0] * 20)
    by_hand = intervals.bootstrap(20, lambda index: (1 - np.array(right))[index].mean(axis=-1))
    assert (moved.low, moved.high) == (by_hand.low, by_hand.high)


def test_a_standard_error_reaches_as_far_as_the_confidence_asks() -> None:
    assert intervals.from_error(0.25, 0.1) == pytest.approx((0.25 - 0.1959964, 0.25 + 0.1959964))


def test_no_other_module_makes_intervals() -> None:
    """A second z of 1.96, or a second Wilson, is how two intervals of one figure came to stand in one report."""
    package = Path(intervals.__file__).parent
    again = [
        f"{path.relative_to(package)}: {found.group()}"
        for path in sorted(package.rglob("*.py"))
        if path.name != "intervals.py"
        for found in SECOND.finditer(path.read_text(encoding="utf-8"))
    ]
    assert again == []
