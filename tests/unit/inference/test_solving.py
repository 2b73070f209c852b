"""What one prompt's draws are: which numbers they have, how much room, and where their text ends."""

from __future__ import annotations

from posttrain.config.strategies.base import AnswerEquality, LogProbScorer, RewardsScorer
from posttrain.inference.answers import Equality
from posttrain.inference.scorers import _Alike
from posttrain.inference.search.values import copies
from posttrain.inference.strategies.best_of_n import weighted_best
from posttrain.sampling import SamplingDistribution
from posttrain.types import Message
from tests.inference import run, scripted


def test_a_stop_string_that_was_put_into_the_answer_ends_nothing():
    solving = scripted({"2 + 2?\na|b": ["c|d"]}, sampling={"stop": ("|",)})
    prompt = solving.prompt_ids(solving.prompt)
    (node,) = run(solving.continue_ids(solving.prompt, prompt, solving.text_ids("a|b"), 1, parents=(), kind="answer"))
    assert node.text == "c" and node.answer == "a|bc" and node.ended


def test_a_prompt_leaves_what_remains_of_the_models_positions():
    solving = scripted({"2 + 2?": ["4..."]})
    prompt = len(solving.prompt_ids(solving.prompt))
    solving.asked.engine.context_tokens = prompt + 2
    assert solving.longest_answer(prompt) == 2 and solving.longest_answer(prompt, max_new_tokens=1) == 1
    assert solving.longest_answer(2) == min(prompt, SamplingDistribution().max_new_tokens)


def test_equal_prompts_ask_for_draws_of_their_own():
    solving = scripted({"2 + 2?": ["4", "5"]})
    solving._occurrence = 3
    run(solving.sample(2))
    run(solving.sample(1))
    asked = [(request.occurrence, request.completion) for request in solving.asked.engine.requests]
    assert asked == [(3, 0), (3, 1), (3, 2)]


def test_an_answer_that_was_cut_is_scored_without_a_stop_token():
    nodes = run(scripted({"2 + 2?": ["4", "4...", "..."]}).sample(3))
    alike = _Alike.of(nodes)
    assert [answer[0].complete for answer in alike.answers[:2]] == [True, False] and alike.places[:2] == (0, 1)


def test_the_log_prob_of_an_answer_is_not_that_of_what_it_is_about():
    solving = scripted({"2 + 2?": ["four"], "Again": ["4"]}, raw_logprobs=True)

    async def scores():
        (first,) = await solving.sample(1)
        (second,) = await solving.ask([Message("user", "Again")], kind="revision", about=[first])
        return await solving.score([first, second], LogProbScorer(kind="logprob", per_token=False))

    assert run(scores()) == [-0.5 * 5, -0.5 * 2]


def test_nothing_of_no_weight_is_ever_drawn():
    class First:
        def random(self):
            return 0.0

    assert copies([0.0, 1.0], 2, First()) == [0, 2]


def test_where_no_vote_has_a_weight_the_highest_score_counts():
    nodes = run(scripted({"2 + 2?": ["4", "5"]}).sample(2))
    scorer = RewardsScorer(kind="rewards", rewards=[{"kind": "math"}])
    best, vote = weighted_best(nodes, [-2.0, -1.0], scorer, Equality(AnswerEquality()))
    assert best.answer == "5" and vote.share == 0.0
