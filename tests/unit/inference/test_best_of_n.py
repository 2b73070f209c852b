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


def weights(scorer, *scores):
    return best_of_n.weights(scores, BestOfN(n=1, scorer=scorer).scorer)


def test_logits_count_as_probabilities():
    outcome = {"model": "reward"}
    assert weights(outcome, 0.0, math.log(3), -1e6, ABSTAINED) == pytest.approx([0.5, 0.75, 0, 0])
    assert weights(outcome, 1e6) == [1.0]


def test_logs_of_probabilities_count_in_their_ratio_however_small_they_are():
    for scorer in ("logprob", {"model": "reward", "aggregate": "product"}):
        assert weights(scorer, -2000.0, -2000.0 + math.log(3), ABSTAINED) == pytest.approx([1 / 3, 1, 0])
        assert weights(scorer, ABSTAINED) == [0]


def test_rewards_and_marks_are_summed_as_they_are():
    # a verifier's 0 has no vote: as a logit it would have half of one, and two wrong answers would beat a right one
    assert weights({"kind": "rewards", "rewards": [{"kind": "math"}]}, 0.0, 1.0, -1.0, ABSTAINED) == [0, 1, 0, 0]
    assert weights("self", 7.5) == [7.5]


def test_two_wrong_answers_do_not_outvote_a_right_one():
    solving = scripted({"2 + 2?": ["5", "5", "4"]}, answer="4")
    found = run(best_of_n.solve(solving, best(choose="weighted", scorer=MATHS)))
    assert found.answer == "4" and found.facts == {"answers": 3, "abstained": 0, "votes": 1, "share": 1.0}


def test_where_nothing_has_weight_the_highest_score_counts():
    # no answer is right: all have the reward 0, and the earliest counts
    found = run(
        best_of_n.solve(scripted({"2 + 2?": ["5", "6", "6"]}, answer="4"), best(choose="weighted", scorer=MATHS))
    )
    assert found.chosen == 0 and found.facts["share"] == 0


MATHS = {"kind": "rewards", "rewards": [{"kind": "math"}]}


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


def test_an_answer_that_the_spending_cut_is_not_chosen_over_a_whole_one():
    # "fi" of "fives" is longer than "4", and was not finished
    solving = scripted({"2 + 2?": ["4", "fives"]}, sampling={"max_new_tokens": 6}, spend={"tokens": 4})
    found = run(best_of_n.solve(solving, best(n=2)))
    assert [node.text for node in found.nodes] == ["4", "fi"] and found.answer == "4"


def test_marks_that_were_paid_for_still_choose():
    said = {"4": "3", "five": "9", "six": "10"}
    script = lambda before, draw: [*said][draw] if before == "2 + 2?" else said[before.split("\n\n")[3]]  # noqa: E731
    found = run(best_of_n.solve(scripted(script), best(scorer="self")))
    assert found.answer == "six" and found.stopped is Stopped.DONE
    # 2 + 5 + 4 tokens of answers, 2 of each mark: the third is not paid any more
    limited = scripted(script, sampling={"max_new_tokens": 5}, spend={"tokens": 11 + 2 + 2})
    found = run(best_of_n.solve(limited, best(scorer="self")))
    assert found.answer == "five" and found.stopped is Stopped.TOKENS
    assert found.spent.sampled == recounted(found.nodes) == limited.asked.engine.sampled == 15


def test_where_nobody_could_judge_the_earliest_is_given():
    found = run(
        best_of_n.solve(scripted(lambda before, draw: "no mark" if "mark" in before else "4"), best(scorer="self"))
    )
    assert found.chosen == 0 and found.facts["abstained"] == 3


def test_the_number_may_stand_alone_and_a_reward_model_is_a_scorer():
    short = BestOfN(16, reward="runs/mine/reward/model")
    assert short == BestOfN(n=16, scorer="runs/mine/reward/model") and short.scorer.model == "runs/mine/reward/model"
    assert BestOfN(4, scorer="logprob").changed(n=2).n == 2
    with pytest.raises(ConfigError, match="`scorer` of BestOfN is given twice"):
        BestOfN(4, scorer="logprob", reward="runs/mine/reward/model")
    with pytest.raises(ConfigError, match="`n` has a wrong value"):
        BestOfN(0, scorer="logprob")
