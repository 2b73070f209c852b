"""Which merges a search tries: worked by hand, with a function in the place of models."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from posttrain.config.merge_measures import WeightSearch
from posttrain.errors import ConfigError
from posttrain.evaluate.merging.candidates import Tried, Values, search
from posttrain.runs.records.merging import Candidate

NAMES = ("a", "b", "c")


def counting(score: Callable[[Values], float]) -> tuple[list[Values], Callable[[Values], float]]:
    asked: list[Values] = []

    def measure(values: Values) -> float:
        asked.append(values)
        return score(values)

    return asked, measure


def test_a_greedy_soup_adds_models_in_the_order_of_their_own_scores() -> None:
    scores = {
        (1, 1, 1): 0.30,
        (1, 0, 0): 0.20, (0, 1, 0): 0.50, (0, 0, 1): 0.40,
        (0, 1, 1): 0.45,  # c is tried first, and hurts
        (1, 1, 0): 0.50,  # a does not hurt, so it stays
    }  # fmt: skip
    asked, measure = counting(lambda values: scores[values])  # type: ignore[index]
    found = search((1.0, 1.0, 1.0), WeightSearch(suite="s"), NAMES, Tried(measure, 20))
    assert asked == [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 1, 0)]
    assert found == Candidate("b alone", (0.0, 1.0, 0.0), 0.5)  # of equal ones the first


def test_the_recipes_own_merge_wins_where_the_soup_is_worse() -> None:
    _, measure = counting(lambda values: 0.9 if all(values) else 0.1)
    assert search((1.0, 0.5, 2.0), WeightSearch(suite="s"), NAMES, Tried(measure, 3)).what == "as written"


def test_a_coordinate_search_ends_at_the_best_of_the_grid() -> None:
    asked, measure = counting(lambda values: -((values[0] - 0.75) ** 2) - (values[1] - 0.25) ** 2)
    settings = WeightSearch(suite="s", method="coordinate")
    found = search((0.0, 1.0), settings, NAMES[:2], Tried(measure, 50))
    assert found.values == (0.75, 0.25)
    assert len(asked) == len(set(asked))  # nothing is measured twice
    assert (0.0, 0.0) not in asked  # no model at all


def test_the_budget_is_kept_and_earlier_scores_cost_nothing() -> None:
    asked, measure = counting(sum)
    told: list[int] = []
    tried = Tried(measure, 3, {(1.0, 1.0, 1.0): 7.0}, lambda candidates: told.append(len(candidates)))
    found = search((1.0, 1.0, 1.0), WeightSearch(suite="s"), NAMES, tried)
    assert len(tried.candidates) == 3 and len(asked) == 2 and told == [1, 2, 3]
    assert found.score == 7.0


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ConfigError, match="a greedy soup adds models"):
        WeightSearch(suite="s", over="density", method="greedy")
    assert WeightSearch(suite="s", over="t").method == "coordinate"
    assert WeightSearch(suite=["s", "t"]).suite == ("s", "t")  # type: ignore[arg-type]
