"""Budget forcing on thoughts that are written out by hand: what is cut, what is taken back, what is put in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from posttrain.config.strategies import BudgetForcing
from posttrain.errors import ConfigError
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.strategies import budget_forcing
from tests.encoding import encoder_of
from tests.inference import run, scripted

OPEN = "2 + 2?\n<think>\n"
"""What stands before the first thought of a template that opens it."""


def thinking(script, *, template="THINK_PREFILL", **options):
    return scripted(script, encoder=encoder_of(template), **options)


def single(script):
    """Marks that are one token each, as thinking models have them."""
    return scripted(script, encoder=encoder_of("THINK_PREFILL", specials=("<think>", "</think>")))


def forced(**settings):
    return BudgetForcing(**{"max_thinking_tokens": None, "waits": 1, **settings})


def path(solving, found):
    """The whole answer as the model would read it."""
    return solving.asked.encoder.tokens.decode(found.nodes[found.chosen].path_ids)


def test_a_thought_within_the_cap_is_left_as_it_was_sampled():
    solving = thinking({OPEN: ["2 and 2</think>"], OPEN + "2 and 2</think>": ["\n\n4"]})
    found = run(budget_forcing.solve(solving, BudgetForcing(max_thinking_tokens=20)))
    assert found.answer == "2 and 2</think>\n\n4" and found.nodes[1].before_ids == found.nodes[0].ids
    assert found.facts == {"thinking_tokens": 7, "waits": 0, "forced": 0.0, "within_budget": 1.0}


def test_a_thought_is_cut_at_the_cap_and_the_answer_asked_for():
    closing = "</think>\n\nFinal Answer:"
    solving = thinking({OPEN: ["2 and 2 and..."], OPEN + "2 and" + closing: [" 4"]})
    found = run(budget_forcing.solve(solving, BudgetForcing(max_thinking_tokens=5)))
    assert found.answer == "2 and</think>\n\nFinal Answer: 4"
    assert found.facts == {"thinking_tokens": 5, "waits": 0, "forced": 1.0, "within_budget": 1.0}
    assert found.nodes[0].note == "cut at the cap" and found.nodes[1].parents == (0,)
    # what was put in is read and not sampled: one byte a token, and the answer's stop token
    assert found.spent.sampled == 5 + 3 == recounted(found.nodes) == solving.asked.engine.sampled
    prompt = len(solving.prompt_ids(solving.prompt))
    assert found.spent.read == prompt + (prompt + 5 + len(closing))


def test_what_is_put_in_takes_no_room_from_the_answer():
    # 12 tokens may be written: 7 of the thought (with "Wait", 4 that were put in) and so 3 + 9
    script = {OPEN: ["a</think>"], OPEN + "aWait": ["bcd..."], OPEN + "aWaitbc</think>\n\nFinal Answer:": ["4" * 40]}
    solving = single(script)
    solving.sampling = replace(solving.sampling, max_new_tokens=12)
    found = run(budget_forcing.solve(solving, BudgetForcing(max_thinking_tokens=7, waits=1)))
    assert found.answer.endswith("Final Answer:" + "4" * 9) and found.facts["thinking_tokens"] == 7


def test_nothing_is_put_before_the_answer_where_there_is_no_final_text():
    solving = thinking({OPEN: ["2 and 2 and..."], OPEN + "2 and</think>\n\n": ["4"]})
    found = run(budget_forcing.solve(solving, BudgetForcing(max_thinking_tokens=5, final=None)))
    assert found.answer == "2 and</think>\n\n4"


def test_the_end_is_taken_back_as_often_as_there_are_waits():
    script = {
        OPEN: ["a</think>"],
        OPEN + "aWait": ["b</think>"],
        OPEN + "aWaitbWait": ["c</think>"],
        OPEN + "aWaitbWaitc</think>": ["4"],
    }
    solving = thinking(script)
    found = run(budget_forcing.solve(solving, forced(waits=2)))
    assert found.answer == "aWaitbWaitc</think>4"
    assert found.facts == {"thinking_tokens": 11, "waits": 2, "forced": 0.0, "within_budget": 1.0}
    assert [node.parents for node in found.nodes] == [(), (0,), (1,), (2,)]
    # three thoughts with the mark of eight bytes, taken back or not; "4" and the stop token
    assert found.spent.sampled == 3 * 9 + 2 == recounted(found.nodes) == solving.asked.engine.sampled


def test_a_thought_that_ends_with_a_stop_token_ends_there_too():
    script = {OPEN: ["a"], OPEN + "aWait": ["b"], OPEN + "aWaitb</think>\n\nFinal Answer:": ["4"]}
    found = run(budget_forcing.solve(thinking(script), forced(waits=1)))
    assert found.answer == "aWaitb</think>\n\nFinal Answer:4" and found.facts["forced"] == 1.0
    assert found.nodes[1].note == "ended without its mark"


def test_only_short_thoughts_are_made_to_go_on():
    script = {OPEN: ["abc</think>"], OPEN + "abcWait": ["d</think>"], OPEN + "abcWaitd</think>": ["4"]}
    found = run(budget_forcing.solve(thinking(script), forced(waits=5, min_thinking_tokens=8)))
    assert found.facts == {"thinking_tokens": 8, "waits": 1, "forced": 0.0, "within_budget": 1.0}
    long = run(budget_forcing.solve(thinking({OPEN: ["abc</think>"], OPEN + "abc</think>": ["4"]}),
                                    forced(waits=5, min_thinking_tokens=3)))  # fmt: skip
    assert long.facts["waits"] == 0 and long.facts["within_budget"] == 1.0


def test_the_cap_counts_the_waits_and_wins_over_the_floor():
    # "ab" and "Wait" are 6 of 7 tokens; a second wait would leave no token to think with
    script = {OPEN: ["ab</think>"], OPEN + "abWait": ["c</think>"], OPEN + "abWaitc</think>\n\n": ["4"]}
    found = run(budget_forcing.solve(single(script), BudgetForcing(max_thinking_tokens=7, waits=2, final=None)))
    assert found.facts == {"thinking_tokens": 7, "waits": 1, "forced": 1.0, "within_budget": 1.0}
    short = run(budget_forcing.solve(
        single({OPEN: ["ab</think>"], OPEN + "ab</think>\n\n": ["4"]}),
        BudgetForcing(max_thinking_tokens=2, waits=2, final=None, min_thinking_tokens=2),
    ))  # fmt: skip
    assert short.facts["waits"] == 0 and short.facts["within_budget"] == 1.0
    # it ended by itself, and a wait had no room
    script = {OPEN: ["ab</think>"], OPEN + "ab</think>": ["4"]}
    ended = run(budget_forcing.solve(single(script), BudgetForcing(max_thinking_tokens=6, waits=2)))
    assert ended.facts == {"thinking_tokens": 2, "waits": 0, "forced": 0.0, "within_budget": 0.0}


def test_a_mark_that_the_cap_cuts_in_half_is_left_out():
    solving = thinking({OPEN: ["ab</think>"], OPEN + "ab</think>\n\n": ["4"]})
    found = run(budget_forcing.solve(solving, BudgetForcing(max_thinking_tokens=5, final=None)))
    assert found.answer == "ab</think>\n\n4" and found.facts["thinking_tokens"] == 2


def test_the_thought_is_opened_where_the_template_leaves_it_to_the_model():
    script = {"2 + 2?\n<think>\n": ["a</think>"], "2 + 2?\n<think>\na</think>": ["4"]}
    solving = thinking(script, template="THINK_DROPPED")
    found = run(budget_forcing.solve(solving, BudgetForcing(max_thinking_tokens=20)))
    assert found.answer == "<think>\na</think>4" and found.nodes[0].before_ids == solving.text_ids("<think>\n")


def test_marks_of_the_settings_serve_a_template_without_thoughts():
    script = {"2 + 2?\n[T]\n": ["a[/T]"], "2 + 2?\n[T]\na[/T]": ["4"]}
    settings = BudgetForcing(max_thinking_tokens=20, begin="[T]", end="[/T]")
    assert run(budget_forcing.solve(thinking(script, template="CHATML"), settings)).answer == "[T]\na[/T]4"


def test_a_template_without_thoughts_is_refused_before_anything_is_drawn():
    solving = thinking({}, template="CHATML")
    with pytest.raises(ConfigError, match="knows no thoughts") as error:
        run(budget_forcing.solve(solving, BudgetForcing()))
    assert "`begin: <think>`" in error.value.remedy and not solving.asked.engine.requests


def test_a_thought_that_the_template_closes_is_refused():
    template = encoder_of("THINK_PREFILL").tokenizer.chat_template.replace("<think>\n", "<think>\n\n</think>\n\n")
    solving = scripted({}, encoder=encoder_of(template, specials=("<|im_start|>", "<|im_end|>")))
    with pytest.raises(ConfigError, match="closed already"):
        run(budget_forcing.solve(solving, BudgetForcing(begin="<think>", end="</think>")))


def test_a_mark_that_begins_within_a_token_leaves_what_stood_before_it():
    # one token for "b<": the thought keeps its "b", written anew
    encoder = encoder_of("THINK_PREFILL", merges=[("b", "<")])
    solving = scripted({OPEN: ["ab</think>"], OPEN + "abWait": ["</think>"], OPEN + "abWait</think>": ["4"]},
                       encoder=encoder)  # fmt: skip
    found = run(budget_forcing.solve(solving, forced(waits=1)))
    assert path(solving, found) == "abWait</think>4</s>" and found.facts["thinking_tokens"] == 6


def test_without_a_cap_a_thought_may_take_the_whole_answer_and_says_so():
    solving = thinking({OPEN: ["abcdefgh..."]}, sampling={"max_new_tokens": 5})
    found = run(budget_forcing.solve(solving, forced(waits=1)))
    assert found.answer == "abcde" and "within the thought" in found.nodes[0].note
    assert found.facts["within_budget"] == 1.0


def test_a_limit_of_tokens_leaves_what_was_thought_and_its_facts():
    solving = thinking({OPEN: ["a</think>"], OPEN + "aWait": ["bcdefgh</think>"]}, spend={"tokens": 12})
    found = run(budget_forcing.solve(solving, forced(waits=1)))
    assert found.spent.sampled == 12 == recounted(found.nodes) and found.answer == "aWaitbcd"
    assert found.stopped is Stopped.TOKENS


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_thinking_tokens": None}, "neither a cap nor a floor"),
        ({"max_thinking_tokens": 512}, "all the tokens of the answer"),
        ({"begin": "<think>"}, "belong together"),
        ({"min_thinking_tokens": 10}, "a floor needs waits"),
        ({"min_thinking_tokens": 300, "waits": 1}, "above the cap"),
        ({"wait": " "}, "the text is empty"),
        ({"waits": -1}, "waits"),
    ],
)
def test_settings_that_force_nothing_or_too_much_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        BudgetForcing(**settings)
