"""Rounds of critique and revision, by the model itself and by another one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from posttrain.config.strategies import CritiqueBy, SelfRefine
from posttrain.errors import ConfigError, ModelError
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.strategies import critique_by, self_refine
from posttrain.types import Message
from tests.encoding import encoder_of
from tests.inference import ScriptedEngine, run, scripted

PROMPTS = {
    "critique_prompt": "find {question}|{answer}|{stop_phrase}",
    "revise_prompt": "mend {answer}|{critique}|{question}",
}
LENGTH = {"kind": "rewards", "rewards": [{"kind": "function", "function": "tests.inference:length_of"}]}


def critique(answer):
    return f"find 2 + 2?|{answer}|NOTHING TO CHANGE"


def revise(answer, said):
    return f"mend {answer}|{said}|2 + 2?"


def refining(**settings):
    return SelfRefine(**{**PROMPTS, "stop_unchanged": False, **settings})


TWO_ROUNDS = {
    "2 + 2?": ["5"],
    critique("5"): ["too much"],
    revise("5", "too much"): ["3"],
    critique("3"): ["too little"],
    revise("3", "too little"): ["4!"],
}


def test_each_round_has_a_critique_and_a_revision_and_the_last_is_kept():
    solving = scripted(TWO_ROUNDS)
    found = run(self_refine.solve(solving, refining(rounds=2)))
    assert found.answer == "4!" and found.chosen == 4 and found.stopped is Stopped.DONE
    assert [(node.kind, node.parents) for node in found.nodes] == [
        ("answer", ()),
        ("critique", (0,)),
        ("revision", (0, 1)),
        ("critique", (2,)),
        ("revision", (2, 3)),
    ]
    assert found.spent.sampled == (1 + 8 + 1 + 10 + 2) + 5 == recounted(found.nodes) == solving.asked.engine.sampled


def test_a_content_critique_ends_the_rounds():
    script = {"2 + 2?": ["4"], critique("4"): ["Nothing to change."]}
    found = run(self_refine.solve(scripted(script), refining()))
    assert found.answer == "4" and found.stopped is Stopped.AGREED and found.facts["rounds"] == 1


def test_a_revision_that_comes_to_the_same_answer_ends_the_rounds():
    script = {"2 + 2?": ["4"], critique("4"): ["hm"], revise("4", "hm"): ["The answer is 4."]}
    found = run(self_refine.solve(scripted(script), refining(stop_unchanged=True, rounds=9)))
    assert found.answer == "The answer is 4." and found.stopped is Stopped.AGREED


def test_a_scorer_that_stops_rising_ends_the_rounds_and_keeps_the_best():
    # lengths: "55" 2, "444" 3, "3" 1
    script = {
        "2 + 2?": ["55"],
        critique("55"): ["a"],
        revise("55", "a"): ["444"],
        critique("444"): ["b"],
        revise("444", "b"): ["3"],
    }
    found = run(self_refine.solve(scripted(script), refining(rounds=9, scorer=LENGTH)))
    assert found.answer == "444" and found.stopped is Stopped.AGREED and found.nodes[4].note == "no better"
    assert [node.scores["rewards"] for node in found.nodes if node.kind != "critique"] == [2.0, 3.0, 1.0]


def test_an_equal_score_is_no_rise():
    script = {"2 + 2?": ["55"], critique("55"): ["a"], revise("55", "a"): ["44"]}
    found = run(self_refine.solve(scripted(script), refining(rounds=9, scorer=LENGTH)))
    assert found.answer == "55" and found.stopped is Stopped.AGREED


def test_a_revision_that_says_nothing_or_was_cut_is_not_taken():
    script = {"2 + 2?": ["5"], critique("5"): ["no"], revise("5", "no"): [""]}
    assert run(self_refine.solve(scripted(script), refining())).answer == "5"
    script[revise("5", "no")] = ["4444..."]
    cut = run(self_refine.solve(scripted(script, sampling={"max_new_tokens": 30}), refining()))
    assert cut.answer == "5" and cut.nodes[2].note == "cut"


def test_a_limit_of_tokens_leaves_the_answer_before():
    from posttrain.inference.solving import SpendingEnded

    solving = scripted(TWO_ROUNDS, spend={"tokens": 6}, sampling={"max_new_tokens": 5})
    with pytest.raises(SpendingEnded):
        run(self_refine.solve(solving, refining(rounds=2)))
    assert solving.leading.text == "5" and solving.spent.sampled == 6 == recounted(solving.nodes)


def test_the_system_turn_stands_above_critiques_too():
    solving = scripted({"2 + 2?": ["4"], critique("4"): ["NOTHING TO CHANGE"]})
    solving.prompt = (Message("system", "Be kind."), *solving.prompt)
    found = run(self_refine.solve(solving, refining()))
    assert [turn.content for turn in found.nodes[1].messages] == ["Be kind.", critique("4")]


def test_without_a_phrase_the_critic_is_not_told_one():
    assert "{stop_phrase}" in SelfRefine().critique_text
    assert "stop_phrase" not in SelfRefine(stop_phrase=None).critique_text


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rounds": 0}, "rounds"),
        ({"revise_prompt": "mend {anwser}"}, "no value for `{anwser}`"),
        ({"revise_prompt": "mend {answer} {critique}"}, "leaves out `{question}`"),
        ({"critique_prompt": "{question} {answer}"}, "leaves out `{stop_phrase}`"),
        ({"critique_prompt": "{question} {answer} {stop_phrase}", "stop_phrase": None}, "no value for `{stop_phrase}`"),
        ({"critique_prompt": "{question} {answer.x} {stop_phrase}"}, "no value for `{answer.x}`"),
        ({"critique_prompt": "{question} {answer!r} {stop_phrase}"}, "no value for `{answer!r}`"),
        ({"critique_prompt": "a } {question}"}, "belongs to no placeholder"),
        ({"stop_phrase": ""}, "the text is empty"),
    ],
)
def test_prompts_that_leave_something_out_are_refused(settings, problem):
    with pytest.raises(ConfigError) as error:
        SelfRefine(**settings)
    assert problem in str(error.value) and error.value.remedy


# ---------------------------------------------------------------- another model


def test_another_model_criticises_and_its_tokens_are_counted():
    solving = scripted({"2 + 2?": ["5"], revise("5", "too much"): ["4"]})
    other = encoder_of("NO_BOS")
    engine = ScriptedEngine(other, lambda before, number: "too much")
    critic = replace(solving.asked, engine=engine, encoder=other)
    solving.asked.once(critique_by.critic_key("other"), lambda: critic)
    found = run(critique_by.solve(solving, CritiqueBy(critic="other", **PROMPTS)))
    assert found.answer == "4" and found.facts == {"rounds": 1, "critic_tokens": 9}
    assert found.nodes[1].text == "too much" and found.nodes[1].prompt_ids == tuple(
        other.prompt(found.nodes[1].messages)
    )
    assert found.spent.sampled == 2 + 9 + 2 == recounted(found.nodes) == solving.asked.engine.sampled + engine.sampled
    assert engine.requests[0].sampling.stop_ids == other.stop_ids != solving.sampling.stop_ids


def test_a_critic_that_is_not_there_or_has_no_words_is_refused(tmp_path):
    solving = scripted({"2 + 2?": ["5"]})
    with pytest.raises(ModelError):
        run(critique_by.solve(solving, CritiqueBy(critic=str(tmp_path / "nobody"))))
    assert not solving.asked.engine.requests
