"""Answers that are the same, as reward models get them: read once, scored alike, also where there is no other one."""

from __future__ import annotations

import pytest

from posttrain.config.strategies.base import RewardModelScorer
from posttrain.inference.scorers import Scorers
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.reward.scoring import load_reward
from posttrain.types import Feedback, Message, RowRef
from tests.inference import run, scripted
from tests.unit.models.reward.test_reward_models import saved


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory):
    return load_reward(saved(tmp_path_factory.mktemp("judge"), RewardRule(heads=("reward",))), device="cpu")


def scores_of(judge, *draws: str):
    solving = scripted({"2 + 2?": draws}, scorers=Scorers(models={"judge": judge}))
    answers = run(solving.sample(len(draws)))
    return run(solving.score(answers, RewardModelScorer(model="judge"))), solving.spent.scored, answers


def test_answers_that_are_all_the_same_are_scored(judge) -> None:
    # A comparison of equal responses is no row that can be encoded: it was refused as too long.
    scores, scored, _ = scores_of(judge, "4", "4", "4")
    alone, once, _ = scores_of(judge, "4")
    assert scores == pytest.approx(alone * 3) and scored == once


def test_each_answer_has_the_score_that_it_has_alone(judge) -> None:
    scores, scored, answers = scores_of(judge, "4", "five", "4", "")
    rows = [
        Feedback(answer.messages, (Message("assistant", answer.answer),), True, RowRef("prompts", 1))
        for answer in answers
    ]
    alone = [rating.rewards[0] for rating in judge.score_rows(rows)]
    assert scores == pytest.approx(alone, abs=1e-5)
    assert scores[0] == scores[2] and len({round(score, 6) for score in scores}) == 3
    assert scored == sum(sum(rating.tokens) for rating in judge.score_rows([rows[0], rows[1], rows[3]]))


def test_one_that_was_cut_is_another_answer_than_the_finished_one(judge) -> None:
    scores, _, answers = scores_of(judge, "4", "4...")
    assert answers[0].answer == answers[1].answer and scores[0] != scores[1]
