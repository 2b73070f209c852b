"""What a choice among n answers is worth: by hand, and against choosing as strategies do from every ordered draw."""

from __future__ import annotations

from itertools import combinations, permutations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.evaluate.budget import selection
from posttrain.evaluate.budget.selection import best_of, majority, subsets, weighted
from posttrain.evaluate.pass_at_k import estimates

ABSTAINED = float("-inf")


def every_draw(total: int, n: int):
    """All ordered draws of n: what a strategy may see, each as likely as another."""
    return [order for chosen in combinations(range(total), n) for order in permutations(chosen)]


def chosen_best(draw, scores):
    return max(draw, key=lambda index: (scores[index], -draw.index(index)))


def chosen_majority(draw, classes):
    votes = [classes[index] for index in draw if classes[index] is not None]
    if not votes:
        return None
    # `max` keeps the first of equal counts: the class that was said first
    best = max(dict.fromkeys(votes), key=votes.count)
    return next(index for index in draw if classes[index] == best)


def chosen_weighted(draw, classes, scores, weights):
    sums = {}
    for index in draw:
        if classes[index] is not None:
            sums[classes[index]] = sums.get(classes[index], 0.0) + weights[index]
    top = max(sums.values(), default=0.0)
    if top == 0:  # no vote has any weight
        return chosen_best(draw, scores)
    best = next(number for number in sums if sums[number] >= top - 1e-12)
    return chosen_best([index for index in draw if classes[index] == best], scores)


# ---------------------------------------------------------------- by hand


def test_best_of_n_by_hand() -> None:
    # The right answer has the highest score: a third of the draws of one, two thirds of those of two hold it.
    assert best_of([3.0, 1.0, 2.0], [1, 0, 0], [1, 2, 3]) == pytest.approx([1 / 3, 2 / 3, 1])
    # It has the lowest: only alone is it chosen. More answers make it worse.
    assert best_of([0.0, 1.0, 2.0], [1, 0, 0], [1, 2, 3]) == pytest.approx([1 / 3, 0, 0])
    # All scores are equal: a choice by chance, at every n.
    assert best_of([1.0] * 4, [1, 0, 0, 0], [1, 2, 4]) == pytest.approx([1 / 4] * 3)


def test_what_a_scorer_abstains_from_is_chosen_last() -> None:
    assert best_of([ABSTAINED, 0.0, ABSTAINED], [1, 0, 1], [1, 2, 3]) == pytest.approx([2 / 3, 1 / 3, 0])


def test_majority_by_hand() -> None:
    classes, right = [0, 0, 1], [1, 1, 0]
    # of two: {0, 0} is right, {0, 1} twice a tie
    assert majority(classes, right, subsets(3, 2)) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert majority(classes, right, subsets(3, 3)) == 1
    # nobody says anything: an answer as it comes
    assert majority([None, None], [1, 0], subsets(2, 1)) == pytest.approx(0.5)
    # a single vote outweighs any number of silences
    assert majority([None, None, 0], [0, 0, 1], subsets(3, 3)) == 1


def test_weighted_by_hand() -> None:
    # two weak votes of the wrong answer against a strong one of the right answer
    classes, right, scores = [0, 0, 1], [0, 0, 1], [0.3, 0.3, 0.9]
    assert weighted(classes, scores, scores, right, subsets(3, 3)) == 1
    assert weighted(classes, scores, [0.5, 0.5, 0.9], right, subsets(3, 3)) == 0
    # where no vote has any weight, the highest score counts
    assert weighted([0, None], [-800.0, 3.0], [0.0, 1.0], [1, 0], subsets(2, 2)) == 0


# ---------------------------------------------------------------- against every draw


pools = st.integers(2, 5).flatmap(
    lambda total: st.tuples(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 2.0, ABSTAINED]), min_size=total, max_size=total),
        st.lists(st.sampled_from([None, 0, 1, 2]), min_size=total, max_size=total),
        st.lists(st.sampled_from([0.0, 1.0]), min_size=total, max_size=total),
        st.integers(1, total),
    )
)


@given(pools)
def test_it_is_the_mean_over_all_ordered_draws(pool) -> None:
    scores, classes, right, n = pool
    weights = [0.0 if score == ABSTAINED else score for score in scores]
    draws = every_draw(len(scores), n)
    assert best_of(scores, right, [n])[0] == pytest.approx(fmean(right[chosen_best(draw, scores)] for draw in draws))
    wanted = [
        fmean(right[index] for index in draw) if (chosen := chosen_majority(draw, classes)) is None else right[chosen]
        for draw in draws
    ]
    assert majority(classes, right, subsets(len(scores), n)) == pytest.approx(fmean(wanted))
    wanted = [right[chosen_weighted(draw, classes, scores, weights)] for draw in draws]
    assert weighted(classes, scores, weights, right, subsets(len(scores), n)) == pytest.approx(fmean(wanted))


def test_a_perfect_scorer_is_the_oracle() -> None:
    right = [1, 0, 0, 1, 0, 0, 0, 0]
    ns = [1, 2, 4, 8]
    assert best_of(right, right, ns) == pytest.approx(estimates(8, [2], ns)[0])


# ---------------------------------------------------------------- random subsets


def test_random_subsets_are_always_the_same_and_have_n_members() -> None:
    drawn = subsets(32, 8)
    assert drawn.shape == (selection.MOST_SUBSETS, 32) and (drawn.sum(axis=1) == 8).all()
    assert (subsets(32, 8) == drawn).all()
    assert len(subsets(32, 32)) == 1 and len(subsets(32, 2)) == 496  # few enough to take them all
    assert np.abs(drawn.mean(axis=0) - 8 / 32).max() < 0.06  # each answer about as often


def test_random_subsets_come_near_to_all_of_them(monkeypatch) -> None:
    rng = np.random.default_rng(1)
    classes, right = rng.integers(0, 4, 16).tolist(), rng.integers(0, 2, 16).tolist()
    near = majority(classes, right, subsets(16, 6))
    monkeypatch.setattr(selection, "MOST_SUBSETS", 10_000)
    exact = majority(classes, right, subsets(16, 6))
    assert len(subsets(16, 6)) == 8_008 and near == pytest.approx(exact, abs=0.04)
