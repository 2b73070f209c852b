"""Trees and graphs of thoughts on scripted replies: proposals, values, votes, backtracking, merges, refinements."""

from __future__ import annotations

import pytest

from posttrain.config.strategies import GraphOfThoughts, TreeOfThoughts
from posttrain.errors import ConfigError
from posttrain.inference.search.thoughts import filled, listed, mark_value, numbered, vote_of, word_value
from posttrain.inference.solution import Stopped, recounted
from posttrain.inference.strategies import graph_of_thoughts, tree_of_thoughts
from posttrain.types import Message
from tests.inference import StepScorers, run, scripted, tree_script

PROMPTS = {
    "propose": "PROPOSE {count} {question} [{thoughts}]",
    "words": "VALUE {question} [{thoughts}]",
    "marks": "MARK {question} [{thoughts}]",
    "vote": "VOTE {question} [{choices}]",
    "final": "FINAL {question} [{thoughts}]",
    "merge": "MERGE {question} [{choices}]",
    "refine": "REFINE {question} [{thoughts}]",
}
PLAIN = {"kind": "rewards", "rewards": [{"kind": "function", "function": "tests.inference:length_of"}]}


def tree(**settings):
    given = {"step": "|", "k": 2, "keep": 1, "judgements": 1, "max_steps": 2, "prompts": PROMPTS, **settings}
    return TreeOfThoughts(**given)


def solve(settings, replies, steps=None, **how):
    """Replies to whole requests by their text; steps of answers by `steps`."""
    of_steps = tree_script(steps or {})

    def said(before, number):
        if before in replies:
            return replies[before][number % len(replies[before])]
        assert before.startswith("2 + 2?"), f"nothing is said to {before!r}"
        return of_steps(before, number)

    solving = scripted(said, **how)
    solve_by = graph_of_thoughts if isinstance(settings, GraphOfThoughts) else tree_of_thoughts
    found = run(solve_by.solve(solving, settings))
    assert found.spent.sampled == recounted(found.nodes) == solving.asked.engine.sampled
    return found


def kinds(found):
    return [(node.kind, node.text) for node in found.nodes]


# ---------------------------------------------------------------- reading replies


def test_replies():
    assert listed("Here:\n1. add\n2) multiply\n - divide\n1. add") == ["add", "multiply", "divide"]
    assert listed("just\n\nlines ") == ["just", "lines"] and listed(" \n") == []
    assert word_value("not impossible, I am Sure.") == 20 and word_value("likely") == word_value("maybe") == 1
    assert word_value("impossible") == 0.001 and word_value("surely not") is None
    assert mark_value("a 7 of 10") == 7 and mark_value("0.5") is None and mark_value("10") == 10
    assert vote_of("2 is better than 1, so: 2.", 2) == 1 and vote_of("3", 2) is None and vote_of("none", 2) is None
    assert numbered(["a ", "b"]) == "1.\na\n\n2.\nb"


def test_a_question_that_names_a_place_stays_as_it_is():
    assert filled("{question} / {thoughts}", question="what is {thoughts}?", thoughts="T") == "what is {thoughts}? / T"


# ---------------------------------------------------------------- breadth


def test_sampled_thoughts_valued_in_words():
    steps = {"": ["a|", "b|"], "b|": ["c.", "d."]}
    replies = {
        "VALUE 2 + 2? [a|]": ["impossible"],
        "VALUE 2 + 2? [b|]": ["sure"],
        "VALUE 2 + 2? [b|c.]": ["maybe"],
        "VALUE 2 + 2? [b|d.]": ["sure"],
    }
    found = solve(tree(), replies, steps)
    assert found.answer == "b|d." and found.facts["states"] == 4
    assert [node.facts["value"] for node in found.nodes if node.kind in ("step", "answer")] == [0.001, 20, 1, 20]
    assert found.nodes[0].note == "pruned" and found.nodes[found.chosen].note == "chosen"


def test_the_mean_of_several_values_without_those_that_say_nothing():
    steps = {"": ["a.", "b."]}
    replies = {"VALUE 2 + 2? [a.]": ["sure", "hm", "maybe"], "VALUE 2 + 2? [b.]": ["hm", "hm", "hm"]}
    found = solve(tree(judgements=3), replies, steps)
    assert found.nodes[0].facts["value"] == 10.5 and "value" not in found.nodes[1].facts


def test_marks():
    found = solve(tree(scale="marks"), {"MARK 2 + 2? [a.]": ["3"], "MARK 2 + 2? [b.]": ["8"]}, {"": ["a.", "b."]})
    assert found.answer == "b."


def test_votes_compare_all_states():
    steps = {"": ["a|", "b|"], "a|": ["c.", "d."], "b|": ["e.", "f."]}
    replies = {
        "VOTE 2 + 2? [1.\na|\n\n2.\nb|]": ["1", "2", "2"],
        "VOTE 2 + 2? [1.\nb|e.\n\n2.\nb|f.]": ["1", "1", "x"],
    }
    found = solve(tree(judge="voted", judgements=3), replies, steps)
    assert found.answer == "b|e." and [node.facts.get("value") for node in found.nodes[:2]] == [1, 2]
    assert found.nodes[2].kind == "vote" and found.nodes[2].parents == (0, 1)


def test_an_ended_answer_keeps_its_place_until_a_better_one_comes():
    steps = {"": ["a.", "b|"], "b|": ["c.", "d."]}
    replies = {
        "VALUE 2 + 2? [a.]": ["maybe"],
        "VALUE 2 + 2? [b|]": ["maybe"],
        "VALUE 2 + 2? [b|c.]": ["impossible"],
        "VALUE 2 + 2? [b|d.]": ["sure"],
    }
    assert solve(tree(keep=2), replies, steps).answer == "b|d."
    worse = {**replies, "VALUE 2 + 2? [b|d.]": ["impossible"]}
    assert solve(tree(keep=2), worse, steps).answer == "a."


def test_proposed_thoughts_and_a_request_for_the_answer():
    replies = {
        "PROPOSE 2 2 + 2? [(none yet)]": ["1. count\n2. guess\n3. never read"],
        "VALUE 2 + 2? [count]": ["sure"],
        "VALUE 2 + 2? [guess]": ["impossible"],
        "PROPOSE 2 2 + 2? [count]": ["- one two three four\n- one"],
        "VALUE 2 + 2? [count\none two three four]": ["sure"],
        "VALUE 2 + 2? [count\none]": ["maybe"],
        "FINAL 2 + 2? [count\none two three four]": ["4"],
    }
    found = solve(tree(thoughts="proposed"), replies)
    assert found.answer == "4" and kinds(found)[:3] == [
        ("proposal", "1. count\n2. guess\n3. never read"),
        ("thought", "count"),
        ("thought", "guess"),
    ]
    final = found.nodes[found.chosen]
    assert final.kind == "answer" and found.nodes[final.parents[0]].answer == "count\none two three four"
    assert all(not node.ids for node in found.nodes if node.kind == "thought")


def test_equal_thoughts_are_one_state():
    found = solve(tree(k=3, max_steps=1), {"VALUE 2 + 2? [a.]": ["sure"]}, {"": ["a."]})
    assert found.facts["states"] == 1 and [node.note for node in found.nodes[:3]] == [
        "chosen",
        "said before",
        "said before",
    ]


def test_an_open_state_is_written_to_its_end():
    steps = {"": ["a|", "b|"], "a|": ["c|"], "a|c|": ["d."]}
    found = solve(tree(max_steps=1), {"VALUE 2 + 2? [a|]": ["sure"], "VALUE 2 + 2? [b|]": ["maybe"]}, steps)
    assert found.answer == "a|c|d." and found.nodes[-1].kind == "answer"


def test_a_scorer_judges():
    steps = {"": ["a|", "b|"], "b|": ["c.", "d."]}
    scorers = StepScorers({"a|": 0.1, "b|": 0.2, "b|c.": 0.4, "b|d.": 0.3})
    found = solve(tree(judge="scorer", scorer=PLAIN), {}, steps, scorers=scorers)
    assert found.answer == "b|c."


# ---------------------------------------------------------------- depth


def test_depth_goes_back_where_no_state_is_worth_it():
    steps = {"": ["a|", "b|"], "b|": ["c|", "d|"], "a|": ["e.", "f."]}
    replies = {
        "VALUE 2 + 2? [a|]": ["maybe"],
        "VALUE 2 + 2? [b|]": ["sure"],
        "VALUE 2 + 2? [b|c|]": ["impossible"],
        "VALUE 2 + 2? [b|d|]": ["impossible"],
        "VALUE 2 + 2? [a|e.]": ["impossible"],
        "VALUE 2 + 2? [a|f.]": ["maybe"],
    }
    found = solve(tree(search="depth", max_steps=3), replies, steps)
    # b first, which leads nowhere; back to a
    order = [node.answer for node in found.nodes if node.kind in ("step", "answer")]
    assert order == ["a|", "b|", "b|c|", "b|d|", "a|e.", "a|f."] and found.answer == "a|f."
    assert [node.note for node in found.nodes if node.answer in ("b|c|", "b|d|")] == ["pruned"] * 2


def test_depth_takes_the_earlier_of_equal_states_and_stops_at_the_first_end():
    steps = {"": ["a|", "b|"], "a|": ["c.", "d."]}
    replies = {f"VALUE 2 + 2? [{text}]": ["sure"] for text in ("a|", "b|", "a|c.", "a|d.")}
    assert solve(tree(search="depth"), replies, steps).answer == "a|c."


def test_depth_has_a_bound_on_states():
    steps = {"": ["a|", "b|"], "a|": ["c|", "d|"], "a|c|": ["e|", "f|"], "a|c|e|": ["g."]}
    replies = {f"VALUE 2 + 2? [{text}]": ["maybe"] for text in ("a|", "b|", "a|c|", "a|d|")}
    found = solve(tree(search="depth", max_steps=9, max_states=4), replies, steps)
    assert found.facts["states"] == 4 and found.answer == "a|c|e|g."  # written to its end from the furthest state
    assert found.nodes[found.chosen].parents == (4,) and found.nodes[4].answer == "a|c|"


def test_a_state_below_the_floor_is_taken_where_there_is_no_other():
    replies = {"VALUE 2 + 2? [a.]": ["impossible"], "VALUE 2 + 2? [b.]": ["impossible"],
               "FINAL 2 + 2? [(none yet)]": ["4"]}  # fmt: skip
    assert solve(tree(search="depth"), replies, {"": ["a.", "b."]}).answer == "4"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge": "scorer"}, "belong together"),
        ({"scorer": PLAIN}, "belong together"),
        ({"search": "depth", "judge": "voted"}, "votes give a state no value"),
        ({"thoughts": "proposed", "judge": "scorer", "scorer": PLAIN}, "notes beside the answer"),
        ({"sampling": {"temperature": 0.0}}, "temperature 0"),
        ({"k": 0}, "1"),
        ({"prompts": {**PROMPTS, "vote": "{question}"}}, "lacks a place"),
        ({"prompts": {**PROMPTS, "vote": "{question} {choices} {thougths}"}}, "names a place that nothing fills in"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        tree(**settings)


def test_other_braces_are_text():
    assert tree(prompts={**PROMPTS, "final": '{question} {thoughts} \\boxed{} {"a": 1}'}).prompts.final


# ---------------------------------------------------------------- graphs


def graph(**settings):
    given = {"generate": 3, "keep": 2, "merges": 2, "refine": 2, "scorer": PLAIN, "prompts": PROMPTS, **settings}
    return GraphOfThoughts(**given)


REPLIES = {
    "2 + 2?": ["a", "b", "c"],
    "MERGE 2 + 2? [1.\nc\n\n2.\nb]": ["cb", "bc"],
    "REFINE 2 + 2? [bc]": ["Bc"],
    "REFINE 2 + 2? [Bc]": ["Bd"],
}
SCORES = {"a": 0.1, "b": 0.2, "c": 0.3, "cb": 0.4, "bc": 0.5, "Bc": 0.6, "Bd": 0.55}


def test_generate_keep_merge_refine():
    found = solve(graph(), REPLIES, scorers=StepScorers(SCORES, judges_steps=False))
    assert [(node.kind, node.text, node.parents) for node in found.nodes] == [
        ("answer", "a", ()),
        ("answer", "b", ()),
        ("answer", "c", ()),
        ("merge", "cb", (2, 1)),
        ("merge", "bc", (2, 1)),
        ("refine", "Bc", (4,)),
        ("refine", "Bd", (5,)),
    ]
    assert found.answer == "Bc" and found.chosen == 5


def test_a_merge_that_is_worse_does_not_win():
    scores = {**SCORES, "c": 0.9}
    assert solve(graph(), REPLIES, scorers=StepScorers(scores, judges_steps=False)).answer == "c"


def test_a_second_round_merges_what_the_first_gave():
    scores = {**SCORES, "z": 0.7}
    settings = graph(rounds=2, merges=1, refine=0)
    replies = {
        "2 + 2?": ["a", "b", "c"],
        "MERGE 2 + 2? [1.\nc\n\n2.\nb]": ["cb"],
        "MERGE 2 + 2? [1.\ncb\n\n2.\nc]": ["z"],
    }
    found = solve(settings, replies, scorers=StepScorers(scores, judges_steps=False))
    assert found.answer == "z" and found.nodes[-1].parents == (3, 2)


def test_what_was_drawn_before_the_tokens_ended_is_judged():
    found = solve(
        graph(),
        REPLIES,
        scorers=StepScorers(SCORES, judges_steps=False),
        spend={"tokens": 4},
        sampling={"max_new_tokens": 9},
    )
    assert found.answer == "b" and found.stopped is Stopped.TOKENS


def test_wrong_settings_of_graphs():
    for wrong, message in (({"keep": 4}, "more thoughts are kept"), ({"keep": 1}, "2"), ({"generate": 0}, "1")):
        with pytest.raises(ConfigError, match=message):
            graph(**wrong)


def test_the_system_turn_stands_before_what_is_asked_too():
    solving = scripted(lambda before, number: "sure" if before.startswith("VALUE") else "4.")
    solving.prompt = (Message("system", "Be brief."), *solving.task.prompt)
    found = run(tree_of_thoughts.solve(solving, tree(k=1)))
    values = [node for node in found.nodes if node.kind == "value"]
    assert [message.content for message in values[0].messages] == ["Be brief.", "VALUE 2 + 2? [4.]"]
