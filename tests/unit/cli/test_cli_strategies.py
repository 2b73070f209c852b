"""`posttrain generate --strategy`: from words of the command line to a strategy."""

from __future__ import annotations

import pytest

from posttrain.cli.strategies import strategy_given
from posttrain.config.strategies import BestOfN
from posttrain.errors import ConfigError, UnknownKeyError


def test_keys_are_set_as_in_a_recipe():
    made = strategy_given("best_of_n", ["n=4", "sampling.top_p=0.9"], "runs/mine/reward/model", {"temperature": 0.5})
    assert made == BestOfN(n=4, scorer="runs/mine/reward/model", sampling={"temperature": 0.5, "top_p": 0.9})


def test_an_assignment_wins_over_an_option():
    made = strategy_given("best_of_n", ["scorer=logprob", "sampling.temperature=0.3"], None, {"temperature": 0.5})
    assert made.sampling.temperature == 0.3


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("n", "this does not set anything"),
        ("=4", "this does not set anything"),
        ("n.=4", "this does not set anything"),
        ("scorer.kind=self", "`scorer` is a value, not a group of keys"),
    ],
)
def test_what_sets_nothing_is_refused(assignment, problem):
    with pytest.raises(ConfigError, match=problem):
        strategy_given("best_of_n", ["scorer=logprob", assignment], None, {})


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(UnknownKeyError, match="did you mean `best_of_n`"):
        strategy_given("best_of_m", [], None, {})
