"""Answers that the model checks itself, with verdicts that are written out."""

from __future__ import annotations

import pytest

from posttrain.config.strategies import SelfVerification
from posttrain.errors import ConfigError
from posttrain.inference.scorers import ABSTAINED
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.strategies import self_verification
from posttrain.inference.strategies.self_verification import verdict_of
from tests.inference import run, scripted

CHECK = "check {question}|{answer}"


def verifying(**settings):
    return SelfVerification(**{"n": 3, "checks": 2, "check_prompt": CHECK, **settings})


def script(answers, **verdicts):
    return {"2 + 2?": answers} | {f"check 2 + 2?|{answer}": said for answer, said in verdicts.items()}


def test_the_answer_that_most_checks_find_right_wins():
    solving = scripted(script(["3", "4", "5"], **{"3": ["wrong", "right"], "4": ["right"], "5": ["wrong"]}))
    found = run(self_verification.solve(solving, verifying()))
    assert found.answer == "4" and [node.scores["verified"] for node in found.answers] == [0.5, 1.0, 0.0]
    assert found.facts == {"answers": 3, "checks": 6, "without_verdict": 0}
    # three answers of two tokens; "right" has six with its stop token, as "wrong" has
    assert found.spent.sampled == 3 * 2 + 6 * 6 == recounted(found.nodes) == solving.asked.engine.sampled
    assert [node.parents for node in found.nodes] == [(), (), (), (0,), (0,), (1,), (1,), (2,), (2,)]


def test_equal_shares_are_parted_by_votes_and_then_by_order():
    verdicts = {"3": ["right"], "4": ["right"], "So 4.": ["wrong"]}
    found = run(self_verification.solve(scripted(script(["3", "4", "So 4."], **verdicts)), verifying()))
    assert found.answer == "4"
    verdicts = {"3": ["right"], "4": ["right"], "5": ["wrong"]}
    assert run(self_verification.solve(scripted(script(["3", "4", "5"], **verdicts)), verifying())).answer == "3"


def test_a_vote_among_the_verified():
    verdicts = {"5": ["wrong"], "So 5.": ["wrong"], "4": ["right", "wrong"]}
    answers = ["5", "So 5.", "4"]
    voted = run(self_verification.solve(scripted(script(answers, **verdicts)), verifying(choose="vote")))
    assert voted.answer == "4"
    none = {"5": ["wrong"], "So 5.": ["wrong"], "4": ["wrong"]}
    assert run(self_verification.solve(scripted(script(answers, **none)), verifying(choose="vote"))).answer == "5"


def test_checks_without_a_verdict_say_nothing():
    verdicts = {"3": ["hm"], "4": ["hm", "wrong"], "5": ["hm", "It is right that..."]}
    found = run(self_verification.solve(scripted(script(["3", "4", "5"], **verdicts)), verifying()))
    assert found.answer == "4" and found.facts["without_verdict"] == 5
    assert [node.scores["verified"] for node in found.answers] == [ABSTAINED, 0.0, ABSTAINED]


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Right.", True),
        ("It is not wrong, I find: right", True),
        ("RIGHT at first, but wrong", False),
        ("That is not right", False),
        ("incorrect", False),
        ("correctly done", None),
        ("", None),
    ],
)
def test_the_last_verdict_counts(text, verdict):
    assert verdict_of(text) is verdict


def test_a_limit_of_tokens_chooses_from_what_was_checked():
    said = script(["3", "4"], **{"3": ["wrong"], "4": ["right"]})
    solving = scripted(said, spend={"tokens": 4 + 12 + 6}, sampling={"max_new_tokens": 8})
    found = run(self_verification.solve(solving, verifying(n=2, check_tokens=6)))
    assert found.answer == "4" and found.stopped is Stopped.TOKENS and found.spent.sampled == 22
    assert [node.facts["checks"] for node in found.answers] == [2, 1]


def test_no_answer_at_all_is_an_empty_one():
    found = run(self_verification.solve(scripted({"2 + 2?": ["4"]}, spend={"seconds": 1e-9}), verifying()))
    assert found.answer == "" and found.chosen is None and found.stopped is Stopped.SECONDS


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"n": 0}, "n"),
        ({"checks": 0}, "checks"),
        ({"n": 1, "checks": 2, "sampling": {"temperature": 0.0}}, "the same answer each time"),
        ({"check_prompt": "right? {answer}"}, "leaves out `{question}`"),
        ({"at_least": 0.9}, "has no part in `choose: best`"),
    ],
)
def test_settings_that_check_nothing_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        SelfVerification(**settings)
