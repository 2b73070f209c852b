"""Self-consistency and its two ways to stop early, on votes counted by hand."""

from __future__ import annotations

import random
from collections import Counter

import mpmath
import pytest

from posttrain.config.strategies import AdaptiveConsistency, EarlyStoppingConsistency, SelfConsistency
from posttrain.errors import ConfigError
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.strategies import adaptive_consistency, early_stopping_consistency, self_consistency
from posttrain.inference.strategies.adaptive_consistency import lead_probability
from tests.inference import run, scripted


def voted(draws, settings=None, strategy=self_consistency, **options):
    solving = scripted({"2 + 2?": draws}, **options)
    found = run(strategy.solve(solving, settings or SelfConsistency(n=len(draws))))
    assert found.spent.sampled == recounted(found.nodes) == solving.asked.engine.sampled
    return found


def windows(draws, n, window=2, **options):
    return voted(draws, EarlyStoppingConsistency(n=n, window=window), early_stopping_consistency, **options)


def adaptive(draws, n=40, **settings):
    return voted(draws, AdaptiveConsistency(n=n, **settings), adaptive_consistency)


# ---------------------------------------------------------------- self-consistency


def test_the_majority_wins_and_its_first_text_is_given():
    found = voted(["5", "The answer is 4.", "4", "5.0", "2 + 2 = 4"])
    assert (found.answer, found.chosen) == ("The answer is 4.", 1) and found.stopped is Stopped.DONE
    assert found.facts == {"answers": 5, "voting": 5, "votes": 3, "share": 0.6}


def test_of_equal_votes_the_earlier_answer_wins():
    assert voted(["5", "4", "4", "5"]).chosen == 0


def test_an_answer_without_an_end_has_no_vote():
    found = voted(["I do not know.", "Sorry?", "4"])
    assert found.chosen == 2 and (found.facts["voting"], found.facts["share"]) == (1, 1.0)
    assert [node.facts["votes"] for node in found.nodes] == [0, 0, 1]


def test_where_none_has_a_vote_the_first_is_given():
    found = voted(["I do not know.", "Sorry?"])
    assert found.chosen == 0 and (found.facts["votes"], found.facts["share"]) == (0, 0)


def test_the_likeliest_text_of_the_majority():
    # "4." costs 0.1 a token, all else 0.5: its mean is the highest
    solving = scripted({"2 + 2?": ["It is 4", "5", "4."]})
    (point,) = solving.asked.encoder.tokens.ids(".")
    solving.asked.engine.logprob = lambda number: -0.1 if number == point else -0.5
    found = run(self_consistency.solve(solving, SelfConsistency(n=3, text="likeliest")))
    assert found.answer == "4."


def test_equality_is_the_one_that_was_asked_for():
    draws = ["0.5", "1/2", "7", "7 "]
    assert voted(draws).chosen == 0
    assert voted(draws, SelfConsistency(n=4, answers="exact")).chosen == 2


def test_an_answer_that_the_spending_cut_does_not_vote():
    # 5 + stop, 42 + stop, then one token is left: "4" of "42"
    options = {"sampling": {"max_new_tokens": 3}, "spend": {"tokens": 6}}
    found = voted(["5", "42", "42"], **options)
    assert [node.text for node in found.nodes] == ["5", "42", "4"] and found.stopped is Stopped.TOKENS
    assert found.facts["answers"] == 2 and found.answer == "5"


def test_cut_answers_are_chosen_from_where_there_is_no_other():
    found = voted(["42", "42"], sampling={"max_new_tokens": 3}, spend={"tokens": 1})
    assert (found.answer, found.stopped) == ("4", Stopped.TOKENS)


def test_without_time_there_is_no_answer():
    found = run(self_consistency.solve(scripted({"2 + 2?": ["4"]}, spend={"seconds": 1e-9}), SelfConsistency(n=2)))
    assert (found.answer, found.chosen, found.stopped) == ("", None, Stopped.SECONDS)


# ---------------------------------------------------------------- windows


def test_sampling_stops_with_the_first_window_that_agrees():
    found = windows(["5", "4", "4", "4.0", "5", "5"], n=6)
    assert (found.answer, len(found.nodes), found.stopped) == ("4", 4, Stopped.AGREED)
    assert found.spent.sampled == 2 + 2 + 2 + 4


def test_windows_are_apart_and_do_not_slide():
    # 4, 4 stand beside each other in no window
    assert len(windows(["5", "4", "4", "5"], n=4).nodes) == 4


def test_answers_that_say_nothing_do_not_agree():
    found = windows(["Sorry?", "Sorry?", "4", "4", "5", "5"], n=6)
    assert len(found.nodes) == 4 and found.answer == "4"


def test_the_majority_is_of_all_windows():
    found = windows(["5", "4", "5", "6", "5", "7", "4", "4", "9", "9"], n=10)
    assert (len(found.nodes), found.answer) == (8, "5")  # 5 has 3 votes, 4 has 3 too and came later


def test_the_last_window_stops_nothing():
    assert windows(["5", "4", "4", "4"], n=4).stopped is Stopped.DONE


# ---------------------------------------------------------------- the Beta criterion


def test_the_probability_is_the_integral_that_the_paper_has():
    for first in range(12):
        for second in range(first + 1):
            # X ~ Beta(first + 1, second + 1), beyond 1/2; numerically, as the authors' code has it
            density = lambda x, a=first, b=second: x**a * (1 - x) ** b  # noqa: E731
            expected = mpmath.quad(density, [0.5, 1]) / mpmath.quad(density, [0, 1])
            assert lead_probability(first, second) == pytest.approx(float(expected), abs=1e-12)
    assert lead_probability(4, 0) == 31 / 32 and lead_probability(0, 0) == lead_probability(3, 3) == 0.5


def test_four_equal_answers_are_enough_and_three_are_not():
    found = adaptive(["4"] * 10, n=10)
    assert len(found.nodes) == 4 and found.stopped is Stopped.AGREED and found.facts["probability"] == 31 / 32


def test_disagreement_takes_longer():
    # 3:1 is 0.8125, 4:1 0.890625, 5:1 0.9375, 6:1 0.965
    found = adaptive(["5", "4", "4", "4", "4", "4", "4", "4"], n=8)
    assert len(found.nodes) == 7 and found.answer == "4"


def test_two_answers_a_look_are_drawn_in_pairs_and_at_most_n():
    assert len(adaptive(["4"] * 10, n=10, at_once=3).nodes) == 6
    found = adaptive(["4", "5"] * 3, n=5, at_once=3)
    assert len(found.nodes) == 5 and found.stopped is Stopped.DONE


def test_both_give_what_self_consistency_gives_on_the_same_draws():
    chance = random.Random(0)
    for _ in range(60):
        draws = chance.choices(["4", "5", "6", "Sorry?"], weights=[5, 2, 1, 1], k=12)
        for stopping in (windows(draws, n=12, window=3), adaptive(draws, n=12)):
            drawn = len(stopping.nodes)
            plain = voted(draws[:drawn], SelfConsistency(n=drawn))
            assert (plain.answer, plain.chosen) == (stopping.answer, stopping.chosen)
            votes = Counter(draw for draw in draws[:drawn] if draw != "Sorry?")
            assert stopping.facts["votes"] == max(votes.values(), default=0)
            if stopping.stopped is Stopped.AGREED:
                assert stopping.spent.sampled < voted(draws, SelfConsistency(n=12)).spent.sampled


def test_limits_of_spending_end_them_with_what_there_is():
    found = windows(["5", "4", "4", "5"], n=4, sampling={"max_new_tokens": 2}, spend={"tokens": 7})
    assert found.stopped is Stopped.TOKENS and found.spent.sampled == 7 and found.facts["answers"] == 3


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (SelfConsistency, {"n": 0}, "`n` has a wrong value"),
        (SelfConsistency, {"n": 2, "sampling": {"temperature": 0}}, "draws the same answer each time"),
        (EarlyStoppingConsistency, {"n": 12}, "do not part the answers evenly"),
        (EarlyStoppingConsistency, {"n": 4, "window": 1}, "`window` has a wrong value"),
        (AdaptiveConsistency, {"threshold": 0.5}, "`threshold` has a wrong value"),
        (AdaptiveConsistency, {"at_once": 0}, "`at_once` has a wrong value"),
    ],
)
def test_wrong_settings_are_refused(kind, settings, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        kind(**settings)
    assert refusal.value.remedy
