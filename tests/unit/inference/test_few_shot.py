"""Examples before the question, and another strategy that answers behind them."""

from __future__ import annotations

import pytest

from posttrain.config.strategies import BestOfN, FewShot, SelfRefine, strategy_of
from posttrain.errors import ConfigError, SourceError, UnknownKeyError
from posttrain.inference.solution import recounted
from posttrain.inference.table import STRATEGIES
from posttrain.types import Message
from tests.inference import run, scripted

ROWS = ["1 + 1?", "2  +\\n2?", "What is a cat?", "What is a dog?", "2 + 5?"]
"""The second is the asked question with other blanks."""
LENGTH = {"kind": "rewards", "rewards": [{"kind": "function", "function": "tests.inference:length_of"}]}


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [f'{{"prompt": "{text}", "answer": "a{number}"}}\n' for number, text in enumerate(ROWS)]
    path.write_text("".join(lines))
    return str(path)


def solve(solving, settings):
    return run(STRATEGIES[type(settings)](solving, settings))


def answers_before(solving):
    """The answers that stand in the first request's conversation."""
    return [turn.content for turn in solving.nodes[0].messages if turn.role == "assistant"]


def shots(rows, **settings):
    return {"path": rows, "count": 2, **settings}


def test_random_examples_are_the_same_for_every_question_and_follow_their_seed(rows):
    chosen = {}
    for seed in range(6):
        for question in ("2 + 2?", "Who are you?"):
            solving = scripted({question: ["4"]}, prompt=question)
            solve(solving, FewShot(demonstrations=shots(rows, seed=seed)))
            chosen[seed, question] = answers_before(solving)
    assert all("a1" not in chosen[seed, "2 + 2?"] for seed in range(6))
    assert len({tuple(answers) for answers in chosen.values()}) > 3
    unshared = [seed for seed in range(6) if chosen[seed, "2 + 2?"] != chosen[seed, "Who are you?"]]
    assert all("a1" in chosen[seed, "Who are you?"] for seed in unshared)


def test_the_nearest_example_stands_last(rows):
    solving = scripted({"2 + 2?": ["4"]})
    found = solve(solving, FewShot(demonstrations=shots(rows, choose="nearest")))
    assert answers_before(solving)[-1] == "a4" and found.facts == {"demonstrations": 2}
    cats = scripted({"a cat or a dog?": ["cat"]}, prompt="a cat or a dog?")
    solve(cats, FewShot(demonstrations=shots(rows, choose="nearest")))
    assert sorted(answers_before(cats)) == ["a2", "a3"]


def test_diverse_examples_are_not_all_alike(rows):
    solving = scripted({"What is a cat?": ["a pet"]}, prompt="What is a cat?")
    solve(solving, FewShot(demonstrations=shots(rows, choose="diverse", diversity=0.9)))
    assert answers_before(solving)[-1] == "a3" and answers_before(solving)[0] != "a2"


def test_examples_may_stand_in_the_questions_own_turn(rows):
    asked = "Question: 2 + 5?\nAnswer: a4\n\nQuestion: 2 + 2?\nAnswer:"
    solving = scripted({asked: ["4"]})
    found = solve(solving, FewShot(demonstrations={"path": rows, "count": 1, "choose": "nearest", "form": "text"}))
    assert found.answer == "4" and found.task.prompt == (Message("user", "2 + 2?"),)


def test_a_system_turn_stays_the_first(rows):
    solving = scripted({"2 + 2?": ["4"]})
    solving.prompt = (Message("system", "Be kind."), *solving.prompt)
    solve(solving, FewShot(demonstrations=shots(rows)))
    assert [turn.role for turn in solving.nodes[0].messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]


def test_fewer_examples_than_asked_for_are_said(rows):
    solving = scripted({"2 + 2?": ["4"]})
    found = solve(solving, FewShot(demonstrations=shots(rows, count=5)))
    assert found.facts["demonstrations"] == 4 and found.notes == (
        "4 of 5 demonstrations: the others ask the same question",
    )


def test_another_strategy_answers_and_its_tokens_are_the_same_count(rows):
    solving = scripted({"2 + 2?": ["4", "four", "five"]})
    settings = FewShot(demonstrations=shots(rows), then={"kind": "best_of_n", "n": 3, "scorer": LENGTH})
    found = solve(solving, settings)
    assert found.answer == "four" and found.facts == {"demonstrations": 2, "answers": 3, "abstained": 0}
    assert found.spent.sampled == 2 + 5 + 5 == recounted(found.nodes) == solving.asked.engine.sampled
    assert len(answers_before(solving)) == 2


def test_a_strategy_inside_a_strategy_inside_a_strategy(rows):
    prompts = {"critique_prompt": "find {question}|{answer}|{stop_phrase}"}
    inner = SelfRefine(**prompts, sampling={"max_new_tokens": 40})
    settings = FewShot(demonstrations=shots(rows), then=FewShot(demonstrations=shots(rows, seed=3), then=inner))
    solving = scripted(lambda before, number: "NOTHING TO CHANGE" if before.startswith("find") else "4")
    found = solve(solving, settings)
    assert found.answer == "4" and len(answers_before(solving)) == 4
    assert {request.sampling.max_new_tokens for request in solving.asked.engine.requests} == {40}
    # the examples are part of the conversation that a critique is asked about
    assert "user: 2 + 2?" in found.nodes[1].messages[-1].content


def test_the_inner_strategys_sampling_scorers_and_name_count(rows):
    inner = BestOfN(n=2, scorer="logprob", sampling={"temperature": 0.5})
    settings = FewShot(demonstrations=shots(rows), then=inner)
    assert (
        settings.label == "few_shot.best_of_n" and FewShot(name="mine", demonstrations=rows, then=inner).label == "mine"
    )
    assert settings.scorers == inner.scorers and settings.parts == (settings, inner)
    solving = scripted({"2 + 2?": ["4", "5"]}, raw_logprobs=True)
    solve(solving, settings)
    request = solving.asked.engine.requests[0]
    assert request.sampling.temperature == 0.5 and request.sampling.stop_ids == solving.asked.encoder.stop_ids


def test_a_scorer_within_is_checked_before_anything_is_drawn(rows):
    settings = FewShot(
        demonstrations=rows,
        then=BestOfN(scorer={"kind": "rewards", "rewards": [{"kind": "function", "function": "no:x"}]}),
    )
    solving = scripted({})
    with pytest.raises(ConfigError):
        solving.asked.scorers.check(settings)


def test_a_scorer_of_answers_is_refused_for_a_search_within(rows):
    settings = FewShot(demonstrations=rows, then={"kind": "prm_beam", "scorer": LENGTH})
    with pytest.raises(ConfigError, match="judges finished answers"):
        scripted({}).asked.scorers.check(settings)


def test_a_kind_alone_may_stand_for_the_inner_strategy(rows):
    assert FewShot(demonstrations=rows, then="self_refine").then == SelfRefine()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"then": "self_refine", "sampling": {"temperature": 1.0}}, "`sampling` has no part"),
        ({"then": {"kind": "self_refine", "spend": {"tokens": 9}}}, "limited once"),
        ({"demonstrations": {"path": "rows.jsonl", "count": 0}}, "count"),
        ({"demonstrations": {"path": "rows.jsonl", "choose": "best"}}, "choose"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        FewShot(**{"demonstrations": "rows.jsonl", **settings})


def test_an_inner_strategy_that_there_is_not_is_named():
    with pytest.raises(UnknownKeyError, match="did you mean `best_of_n`"):
        strategy_of({"kind": "few_shot", "demonstrations": "rows.jsonl", "then": {"kind": "best_of", "n": 2}})


def test_a_file_that_is_not_there_is_refused_before_anything_is_drawn():
    solving = scripted({})
    with pytest.raises(SourceError):
        solve(solving, FewShot(demonstrations="none.jsonl"))
    assert not solving.asked.engine.requests


def test_the_file_is_read_once_for_all_questions(rows, tmp_path):
    solving = scripted({"2 + 2?": ["4"]})
    solve(solving, FewShot(demonstrations=shots(rows)))
    (tmp_path / "rows.jsonl").unlink()
    assert solve(solving, FewShot(demonstrations=shots(rows))).answer == "4"


@pytest.mark.parametrize("inner", ["tree_of_thoughts", {"kind": "graph_of_thoughts", "scorer": LENGTH}])
def test_searches_that_write_prompts_of_their_own_have_the_examples_in_them(rows, inner):
    solving = scripted(lambda before, number: "4")
    found = solve(solving, FewShot(demonstrations=shots(rows, choose="nearest"), then=inner))
    judged = [node for node in found.nodes if len(node.messages) == 1]
    assert judged and all("a4" in node.messages[0].content for node in judged)
    assert found.spent.sampled == recounted(found.nodes) == solving.asked.engine.sampled


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "few_shot", "demonstrations": "rows.jsonl"},
        {
            "kind": "few_shot",
            "demonstrations": {"path": "a", "choose": "diverse"},
            "then": {"kind": "self_verification"},
        },
        {"kind": "chain_of_thought", "demonstrations": "rows.jsonl"},
        {"kind": "budget_forcing"},
        {"kind": "self_refine", "stop_phrase": None},
        {"kind": "critique_by", "critic": "embedded"},
        {"kind": "retrieval", "documents": "docs", "then": "chain_of_thought"},
    ],
)
def test_what_is_written_out_with_every_default_reads_back(entry):
    settings = strategy_of(entry)
    assert strategy_of(settings.model_dump()) == settings
