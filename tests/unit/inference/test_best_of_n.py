"""Best-of-n on answers and scores worked by hand."""

from __future__ import annotations

import math

import pytest

from posttrain.config.strategies import BestOfN
from posttrain.errors import ConfigError
from posttrain.inference.scorers import ABSTAINED, Scorers
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.strategies import best_of_n
from tests.inference import run, scripted


def best(n=3, **settings):
    given = {
        "scorer": {"kind": "rewards", "rewards": [{"kind": "function", "function": "tests.inference:length_of"}]},
        **settings,
    }
    return BestOfN(n=n, **given)


def test_the_highest_score_wins_and_of_equal_ones_the_earliest():
    solving = scripted({"2 + 2?": ["4", "four", "five"]})
    found = run(best_of_n.solve(solving, best()))
    assert found.answer == "four" and found.chosen == 1 and found.stopped is Stopped.DONE


def test_every_token_is_counted():
    solving = scripted({"2 + 2?": ["4", "four", "five"]})
    found = run(best_of_n.solve(solving, best()))
    # one byte a token, and a stop token for each answer
    assert found.spent.sampled == (1 + 4 + 4) + 3 == recounted(found.nodes) == solving.asked.engine.sampled
    assert found.spent.requests == 3


def test_a_limit_of_tokens_draws_fewer_answers_and_cuts_at_most_the_last():
    solving = scripted({"2 + 2?": ["4", "four", "fives"]}, sampling={"max_new_tokens": 6}, spend={"tokens": 9})
    found = run(best_of_n.solve(solving, best()))
    assert found.spent.sampled == 9 and found.stopped is Stopped.TOKENS
    assert [node.text for node in found.nodes] == ["4", "four", "fi"]


def test_a_limit_that_is_never_reached_changes_nothing():
    free = run(best_of_n.solve(scripted({"2 + 2?": ["4", "four", "five"]}), best()))
    bound = run(best_of_n.solve(scripted({"2 + 2?": ["4", "four", "five"]}, spend={"tokens": 10_000}), best()))
    assert [node.ids for node in free.nodes] == [node.ids for node in bound.nodes] and free.answer == bound.answer


def test_weighted_sums_the_scores_of_equal_answers():
    # by log-probs per token, all -0.5: what is said twice outweighs what is said once
    solving = scripted({"2 + 2?": ["5", "4", "The answer is 4."]}, raw_logprobs=True)
    found = run(best_of_n.solve(solving, BestOfN(n=3, scorer="logprob", choose="weighted")))
    assert found.chosen == 1
    assert found.nodes[1].scores["logprob"] == -0.5


def test_scores_of_reward_models_count_as_probabilities():
    assert best_of_n.weight(0.0, best().scorer) == 0.5
    assert best_of_n.weight(-1e6, best().scorer) == 0.0 and best_of_n.weight(ABSTAINED, best().scorer) == 0.0
    assert math.isclose(best_of_n.weight(-0.5, BestOfN(scorer="logprob").scorer), math.exp(-0.5))


def test_several_draws_at_temperature_0_are_refused():
    with pytest.raises(ConfigError, match="temperature 0 draws the same answer each time"):
        BestOfN(n=2, scorer="logprob", sampling={"temperature": 0.0})


def test_a_scorer_of_answers_does_not_judge_steps():
    solving = scripted({"2 + 2?": ["4"]})

    async def partial():
        return await solving.score(await solving.sample(1), best().scorer, partial=True)

    with pytest.raises(ConfigError, match="judges finished answers"):
        run(partial())


def test_without_answers_there_is_an_empty_one():
    found = run(best_of_n.solve(scripted({"2 + 2?": ["4"]}, spend={"seconds": 1e-9}), best()))
    assert found.answer == "" and found.chosen is None and found.stopped is Stopped.SECONDS


def test_graders_are_made_once_and_closed():
    with Scorers() as scorers:
        assert scorers.grader(best().scorer) is scorers.grader(best().scorer)
