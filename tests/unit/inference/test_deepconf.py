"""DeepConf on confidences worked by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from posttrain.config.strategies import DeepConf
from posttrain.errors import ConfigError
from posttrain.inference.drawing import ENDED_EARLY
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.strategies import deepconf
from posttrain.rollout.engine import Alternatives, FinishReason, SampledToken
from tests.inference import run, scripted


def solving_of(draws, **options):
    """A draw says its answer, and its digits before the bar are its tokens' confidences: "911|4" answers 4.

    The bar, the answer and the stop token have the confidence 9.
    """
    encoder = scripted({}).asked.encoder

    def top(before, ids):
        said = encoder.tokens.decode(ids)
        confidence = float(said[-1]) if said[-1].isdigit() and "|" not in said else 9.0
        return [(1, -confidence + 0.5), (2, -confidence - 0.5)]  # the mean is the confidence

    return scripted({"2 + 2?": list(draws)}, top=top, **options)


def solved(draws, **settings):
    spend = settings.pop("spend", None)
    solving = solving_of(draws, spend=spend, sampling=settings.pop("sampling", None))
    settings = {
        "n": len(draws),
        "group": 2,
        "top": 2,
        "answers": {"kind": "function", "function": after_bar},
        **settings,
    }
    found = run(deepconf.solve(solving, DeepConf(**settings)))
    assert found.spent.sampled == recounted(found.nodes) == solving.asked.engine.sampled
    assert all(request.alternatives == 2 for request in solving.asked.engine.requests)
    return found


def after_bar(text):
    return text.partition("|")[2] or None


def confidences(found):
    return [node.scores["confidence"] for node in found.nodes]


# ---------------------------------------------------------------- an answer's confidence

# seven tokens: 8 2 4 | (9) then the answer (9) and the stop token (9); groups of two: 5 3 6.5 9 9
MEASURES = {"lowest": 3.0, "bottom": 3.0, "tail": 9.0, "mean": (8 + 2 + 4 + 9 + 9 + 9) / 6}


@pytest.mark.parametrize("measure", [*MEASURES])
def test_measures(measure):
    assert confidences(solved(["824|4"], confidence=measure)) == pytest.approx([MEASURES[measure]])


def test_the_bottom_tenth_is_of_twenty_groups_two():
    # 21 groups: 1 (1 1), 1.5 (1 2), then higher
    found = solved(["112" + "9" * 16 + "|4"], confidence="bottom")
    assert confidences(found) == [(1.0 + 1.5) / 2]


def test_an_answer_shorter_than_a_group_has_the_mean_of_all():
    assert confidences(solved(["3|4"], group=50)) == [(3 + 9 + 9 + 9) / 4]


def test_equal_draws_have_equal_confidences_whatever_the_last_digits():
    exact = Alternatives(-0.1, ((5, -0.1), (6, -2.4)))
    rounded = Alternatives(-0.1, ((5, -0.1000001), (6, -2.3999997)))
    assert deepconf.token_confidence(exact) == deepconf.token_confidence(rounded) == 1250
    assert deepconf.token_confidence(Alternatives(0.0, ((5, -1.0), (6, float("-inf"))))) == 1000


def test_the_watch_sees_what_the_answer_is_judged_by():
    chance = random.Random(1)
    for _ in range(50):
        values = [chance.randrange(0, 5000) for _ in range(12)]
        tokens = [SampledToken(1, 0.0, Alternatives(0.0, ((1, -value / 1000),))) for value in values]
        means = [np.mean(values[at - 3 : at]) / 1000 for at in range(3, 13)]
        watch = deepconf.Falling(2.0, 3)
        seen = [watch(token) for token in tokens]
        assert seen == [False, False, *(mean < 2.0 for mean in means)]


# ---------------------------------------------------------------- all are drawn whole


def test_confident_answers_outvote_more_of_them():
    # 9 against 2 + 2; a plain majority would say 5
    found = solved(["22|5", "22|5", "99|4"], keep=1.0)
    assert confidences(found) == [2, 2, 9] and found.answer == "99|4"
    assert found.facts["share"] == pytest.approx(9 / 13) and found.stopped is Stopped.DONE


def test_the_least_confident_have_no_vote():
    # 8 + 8 of 5 against 9 of 4: 5 wins with all, 4 where the best third votes
    draws = ["88|5", "88|5", "99|4"]
    assert solved(draws, keep=1.0).answer == "88|5"
    found = solved(draws, keep=0.3)
    assert found.answer == "99|4" and found.facts["voting"] == 1
    assert found.facts["threshold"] == pytest.approx(float(np.quantile([8, 8, 9], 0.7)))


def test_answers_that_say_nothing_do_not_raise_the_threshold():
    found = solved(["99", "99", "22|4"], keep=0.3)
    assert found.answer == "22|4" and (found.facts["voting"], found.facts["votes"]) == (1, 1)


def test_where_nothing_has_a_vote_the_first_is_given():
    assert solved(["99", "22"]).chosen == 0


def test_equal_answers_keep_all():
    assert solved(["55|4"] * 7, keep=0.1).facts["voting"] == 7


# ---------------------------------------------------------------- later draws are ended early


def test_a_draw_is_ended_at_the_token_where_its_group_falls():
    # the warm-up's lowest groups are 5 and 7; keep 0.5: the threshold is 6
    found = solved(["55|4", "77|4", "9933399|5", "88|6"], warmup=2, keep=0.5, consensus=None)
    assert found.facts["threshold"] == 6 and found.facts["ended_early"] == 1
    ended = found.nodes[2]
    assert (ended.text, ended.finish, ended.note) == (
        "9933",
        FinishReason.ABORTED,
        ENDED_EARLY,
    )  # 9 9, 9 3 = 6, 3 3 = 3
    assert found.spent.sampled == 5 + 5 + 4 + 5 and found.stopped is Stopped.DONE
    # 77|4 and 88|6 vote, by 7 and 8
    assert (found.facts["voting"], found.answer) == (2, "88|6")


def test_draws_end_when_the_votes_agree():
    found = solved(["77|4", "77|4", "88|4", "88|5"], warmup=2, keep=1.0)
    assert (len(found.nodes), found.stopped, found.answer) == (2, Stopped.AGREED, "77|4")
    # 7 of 14 is no consensus of 0.6; 15 of 22 is
    found = solved(["77|4", "77|5", "88|4", "88|5"], warmup=2, keep=1.0, consensus=0.6)
    assert (len(found.nodes), found.stopped, found.answer) == (3, Stopped.AGREED, "77|4")


def test_an_answer_that_ended_at_the_token_where_it_fell_is_whole_and_has_no_vote():
    # too short for a full group: nothing ends it, and its mean is below the threshold
    found = solved(["8888|4", "1|5"], warmup=1, keep=1.0, consensus=None, group=5)
    assert found.nodes[1].ended and found.facts["ended_early"] == 0 and found.facts["voting"] == 1


def test_the_draws_are_those_of_whole_answers():
    draws = ["55|4", "77|4", "9933399|5", "88|6"]
    whole = solved(draws, keep=0.5)
    online = solved(draws, warmup=2, keep=0.5, consensus=None)
    assert all(one.ids[: len(other.ids)] == other.ids for one, other in zip(whole.nodes, online.nodes, strict=True))
    assert online.spent.sampled < whole.spent.sampled


def test_the_end_of_the_spending():
    # 5 + 5 tokens of the warm-up, and 2 of the third
    options = {"sampling": {"max_new_tokens": 5}, "keep": 0.5, "consensus": None}
    found = solved(["55|4", "77|5", "99|4"], warmup=2, spend={"tokens": 12}, **options)
    assert (found.stopped, found.spent.sampled, found.answer) == (Stopped.TOKENS, 12, "77|5")
    found = solved(["55|4", "77|5", "99|4"], warmup=2, spend={"tokens": 7}, **options)
    assert (found.stopped, found.spent.sampled, found.answer) == (Stopped.TOKENS, 7, "55|4")
    found = solved(["55|4"], spend={"seconds": 1e-9})
    assert (found.answer, found.chosen, found.stopped) == ("", None, Stopped.SECONDS)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "`n` has a wrong value"),
        ({"keep": 0}, "`keep` has a wrong value"),
        ({"group": 0}, "`group` has a wrong value"),
        ({"top": 0}, "`top` has a wrong value"),
        ({"n": 4, "warmup": 5}, "more answers than there are"),
        ({"warmup": 4, "confidence": "tail"}, "the votes go by something else"),
        ({"consensus": 0.9}, "after a warm-up, and there is none"),
        ({"at_once": 2}, "after a warm-up, and there is none"),
        ({"sampling": {"temperature": 0}}, "draws the same answer each time"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        DeepConf(**settings)
    assert refusal.value.remedy
