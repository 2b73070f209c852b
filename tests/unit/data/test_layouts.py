"""The published layouts of tools and data sets: what each reads, how one is told from another, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.data.formats import FORMATS, detect
from posttrain.data.formats.layouts import PUBLISHED
from posttrain.errors import ConfigError, RowError
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef, Task

REF = RowRef("rows.jsonl", 3)
USER, GOOD, BAD = Message("user", "2 + 2?"), Message("assistant", "4"), Message("assistant", "5")
U = {"role": "user", "content": "2 + 2?"}
A, B = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}
PAIR = Comparison((USER,), ((GOOD,), (BAD,)), winner=0, row=REF)
SHOWN = Demonstration((USER, GOOD), REF)
ADD = {
    "name": "add",
    "parameters": {"type": "dict", "properties": {"type": {"type": "tuple", "items": {"type": "any"}}}},
}
ADD_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"type": {"type": "array", "items": {"type": "string"}}}},
    },
}


def pair(**more: Any) -> Comparison:
    return Comparison((USER,), ((GOOD,), (BAD,)), winner=0, row=REF, **more)


def ranked(scores: tuple[float, ...] | None) -> Comparison:
    return Comparison((USER,), ((BAD,), (GOOD,)), winner=1, row=REF, ranking=(1, 0), scores=scores)


CHECKED = {"data_source": "sums", "prompt": [U], "extra_info": {"split": "train", "index": 2.0}}

READS: dict[str, tuple[str, dict[str, Any], Example]] = {
    "arena, the second wins": (
        "arena",
        {"question_id": "x", "conversation_a": [U, B], "conversation_b": [U, A], "winner": "model_b", "prompt": "?"},
        PAIR,
    ),
    "helpsteer2": (
        "helpsteer_preference",
        {"prompt": "2 + 2?", "response_1": "5", "response_2": "4", "preference_strength": 2, "split": "train"},
        pair(margin=2.0),
    ),
    "helpsteer3": (
        "helpsteer_preference",
        {"context": [U], "response1": "4", "response2": "5", "overall_preference": -1, "domain": "math"},
        pair(margin=1.0),
    ),
    "helpsteer": ("helpsteer", {"prompt": "2 + 2?", "response": "4", "helpfulness": 1, "verbosity": 2}, SHOWN),
    "nectar": (
        "nectar",
        {
            "prompt": "\n\nHuman: 2 + 2?\n\nAssistant: ",
            "answers": [{"answer": "5", "rank": 2.0, "model": "x"}, {"answer": "4", "rank": 1.0, "model": "y"}],
            "turns": 1,
        },
        ranked(None),
    ),
    "ultrafeedback": (
        "ultrafeedback",
        {
            "instruction": "2 + 2?",
            "models": ["x", "y"],
            "completions": [
                {"response": "5", "overall_score": 10, "fine-grained_score": 1.5},
                {"response": "4", "overall_score": 8, "fine-grained_score": 4.75},
            ],
        },
        ranked((1.5, 4.75)),
    ),
    "ultrafeedback with marks alone": (
        "ultrafeedback",
        {
            "instruction": "2 + 2?",
            "completions": [{"response": "5", "overall_score": 1}, {"response": "4", "overall_score": 8.5}],
        },
        ranked((1.0, 8.5)),
    ),
    "llama-factory v1 pairs, in parts with weights": (
        "paired_messages",
        {
            "chosen_messages": [
                {"role": "user", "content": [{"type": "text", "value": "2 + 2?"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "4"}], "loss_weight": 1.0},
            ],
            "rejected_messages": [
                {"role": "user", "content": [{"type": "text", "value": "2 + 2?"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "5"}], "loss_weight": 1.0},
            ],
        },
        Comparison(
            (Message("user", "2 + 2?", train=False),),
            ((Message("assistant", "4", train=True),), (Message("assistant", "5", train=True),)),
            winner=0,
            row=REF,
        ),
    ),
    "ms-swift conversations": (
        "paired_messages",
        {"conversations": [U, A], "rejected_messages": [U, B], "margin": 0.5},
        pair(margin=0.5),
    ),
    "a worse response": ("rejected_response", {"messages": [U, A], "rejected_response": "5"}, PAIR),
    "a worse response with tools": (
        "rejected_response",
        {"messages": [U, A, U, A], "rejected_response": [B]},
        Comparison((USER, GOOD, USER), ((GOOD,), (BAD,)), winner=0, row=REF),
    ),
    "a query and two responses": (
        "query_preference",
        {"query": "2 + 2?", "response": "4", "rejected_response": "5", "history": None},
        PAIR,
    ),
    "a query with a judged response": (
        "query_feedback",
        {"query": "2 + 2?", "response": "4", "label": True},
        Feedback((USER,), (GOOD,), True, REF),
    ),
    "a query and a response": (
        "query_response",
        {"query": "2 + 2?", "response": "4", "history": [["Hi.", "Hello."]], "system": "Count.", "input": "no"},
        Demonstration(
            (Message("system", "Count."), Message("user", "Hi."), Message("assistant", "Hello."), USER, GOOD), REF
        ),
    ),
    "lima": ("lima", {"conversations": ["2 + 2?", "4"], "source": "x"}, SHOWN),
    "ms-swift's conversation": (
        "exchanges",
        {"system": "Count.", "conversation": [{"human": "2 + 2?", "assistant": "4"}]},
        Demonstration((Message("system", "Count."), USER, GOOD), REF),
    ),
    "capybara": (
        "exchanges",
        {"source": "x", "conversation": [{"input": "2 + 2?", "output": "4"}, {"input": "2 + 2?", "output": "5"}]},
        Demonstration((USER, GOOD, USER, BAD), REF),
    ),
    "verl": (
        "verl",
        {**CHECKED, "reward_model": {"style": "rule", "ground_truth": ["42"]}, "ability": "math"},
        Task(
            (USER,),
            "42",
            REF,
            {
                "data_source": "sums",
                "extra_info": {"split": "train", "index": 2},
                "reward_model": {"style": "rule", "ground_truth": ["42"]},
                "ability": "math",
            },
        ),
    ),
    "verl, stored as text": (
        "verl",
        {"prompt": json.dumps([U]), "reward_model": json.dumps({"ground_truth": 4.0})},
        Task((USER,), "4", REF, {"reward_model": {"ground_truth": 4.0}}),
    ),
    "bfcl": (
        "bfcl",
        {"id": "simple_1", "question": [[U]], "function": [ADD], "ground_truth": [{"add": {"a": [2]}}]},
        Task(
            (USER,),
            '[{"add": {"a": [2]}}]',
            REF,
            {"id": "simple_1", "question": [[U]], "ground_truth": [{"add": {"a": [2]}}]},
            (ADD_TOOL,),
        ),
    ),
    "mt-bench": (
        "mt_bench",
        {"question_id": 81, "category": "math", "turns": ["2 + 2?", "Why?"], "reference": ["4", "So."]},
        Task(
            (USER,),
            "4",
            REF,
            {"question_id": 81, "category": "math", "turns": ["2 + 2?", "Why?"], "reference": ["4", "So."]},
        ),
    ),
    "mt-bench without references": (
        "mt_bench",
        {"category": "writing", "turns": ["2 + 2?"]},
        Task((USER,), None, REF, {"category": "writing", "turns": ["2 + 2?"]}),
    ),
}


@pytest.mark.parametrize("case", READS)
def test_reads(case: str) -> None:
    name, row, expected = READS[case]
    entry = detect(row)
    assert entry is not None
    read = entry.parse(row, REF)
    assert (entry.name, read) == (name, expected)
    if isinstance(read, Task) and isinstance(expected, Task):
        assert read.metadata == expected.metadata


def test_every_published_layout_is_shown_reading_and_is_told_from_the_others() -> None:
    assert {name for name, _, _ in READS.values()} == {entry.name for entry in PUBLISHED}
    for entry in FORMATS.values():
        row = entry.example
        fitting = [other.name for other in PUBLISHED if not other.missing([*row]) and other.fits(row)]
        # The first counts: a query with two responses is also one with a response.
        assert fitting[:1] == ([entry.name] if entry.published else []), entry.name


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("tie", {"conversation_a": [U, A], "conversation_b": [U, B], "winner": "tie (bothbad)"}, "neither", "bad_rows"),
    ("bad_label", {"conversation_a": [U, A], "conversation_b": [U, B], "winner": "model_c"}, "'model_c'", "one of"),
    (
        "prompts_differ",
        {"conversation_a": [U, A, U, A], "conversation_b": [U, B, U, A], "winner": "model_a"},
        "'conversation_a' and 'conversation_b' do not answer the same prompt",
        "part at turn 2",
    ),
    (
        "tie",
        {"prompt": "a", "response_1": "b", "response_2": "c", "preference_strength": 0},
        "'preference_strength' is 0",
        "bad_rows",
    ),
    (
        "bad_score",
        {"prompt": "a", "response_1": "b", "response_2": "c", "preference_strength": "much"},
        "'preference_strength' is 'much'",
        "number",
    ),
    (
        "tie",
        {"prompt": "a", "answers": [{"answer": "b", "rank": 1}, {"answer": "c", "rank": 1}]},
        "the best responses are level",
        "bad_rows",
    ),
    ("bad_score", {"prompt": "a", "answers": [{"answer": "b", "rank": "x"}]}, "'rank of answer 1' is 'x'", "number"),
    ("unanswered_turn", {"conversations": ["2 + 2?"]}, "ends with a turn of the user", "add the answer"),
    ("empty_response", {"conversations": ["2 + 2?", " "]}, "'text 2 of conversations' has no text", "bad_rows"),
    (
        "wrong_shape",
        {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c"}]},
        "exchange 2 of 'conversation' has no 'assistant'",
        "complete",
    ),
    (
        "bad_label",
        {"prompt": [U], "reward_model": {"ground_truth": {"target": ["4", "four"]}}},
        "'reward_model.ground_truth' is an object",
        "columns: {answer: reward_model.ground_truth.target.0}",
    ),
    (
        "identical_responses",
        {"query": "a", "response": "b", "rejected_response": "b"},
        "are the same",
        "remove the row",
    ),
    (
        "dialogue_as_text",
        {"query": "### Human: a### Assistant: b", "response": "c"},
        "'query' is a whole dialogue",
        "messages",
    ),
]


@pytest.mark.parametrize(("reason", "row", "problem", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refuses(reason: str, row: dict[str, Any], problem: str, words: str) -> None:
    entry = detect(row)
    assert entry is not None
    with pytest.raises(RowError) as caught:
        entry.parse(row, REF)
    assert caught.value.reason == reason and problem in caught.value.problem
    assert words in str(caught.value) and "rows.jsonl, row 3: " in str(caught.value)


def test_the_columns_that_a_refusal_of_verl_names_read() -> None:
    row = {"prompt": [U], "reward_model": {"style": "rule", "ground_truth": {"target": ["4", "four"]}}}
    (task,) = pt.read([row], columns={"answer": "reward_model.ground_truth.target.0"})
    assert isinstance(task, Task) and task.answer == "4" and task.metadata == {"reward_model": row["reward_model"]}
    (bare,) = pt.read([row], format="prompts")
    assert isinstance(bare, Task) and bare.answer is None and "reward_model" in bare.metadata


def test_nested_columns_name_any_place_of_a_row() -> None:
    row = {"data": {"turns": [{"content": "2 + 2?"}, {"content": "4"}]}, "meta": json.dumps({"gold": ["4"]})}
    columns = {"prompt": "data.turns.0.content", "completion": "data.turns.1.content"}
    (example,) = pt.read([row], columns=columns)
    assert isinstance(example, Demonstration) and example.messages[-1].content == "4"
    (task,) = pt.read([row], columns={"prompt": "data.turns.0.content", "answer": "meta.gold.0"})
    assert isinstance(task, Task) and task.answer == "4"


def test_a_layout_that_is_named_and_not_there_is_refused_by_name() -> None:
    with pytest.raises(RowError, match="does not have the form of 'bfcl'"):
        FORMATS["bfcl"].parse({"question": "2 + 2?", "function": []}, REF)
    with pytest.raises(RowError, match="no 'winner'"):
        pt.read([{"conversation_a": [U, A], "conversation_b": [U, B]}], format="arena")


def test_later_turns_and_ratings_are_told() -> None:
    examples = pt.read([{"category": "x", "turns": ["a", "b"]}, {"category": "x", "turns": ["c"]}])
    assert examples.counts.unread_keys == {"task.turns after the first (kept as metadata)": 1}
    rated = pt.read([{"prompt": "a", "response": "b", "helpfulness": 1, "verbosity": 0}])
    assert rated.counts.unused_columns == {"verbosity"}
    with pytest.raises(RowError, match="demonstrations"):
        pt.read([{"prompt": "a", "response": "b", "helpfulness": 1}], kind=Comparison)


def test_a_map_for_a_published_column_is_not_needed_and_refused() -> None:
    with pytest.raises(ConfigError, match="which no format reads"):
        pt.read([{"a": 1}], columns={"conversation_a": "a"})


def test_the_pairs_of_helpsteer_that_the_page_makes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    code = page.split("**helpsteer**")[1].split("```python\n")[1].split("```")[0]
    rows = [("2 + 2?", "4", 4), ("2 + 2?", "5", 0), ("Who?", "I.", 3), ("Where?", "Here.", 1), ("Where?", "There.", 2)]
    names = ("prompt", "response", "helpfulness")
    text = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    (tmp_path / "helpsteer.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    pairs = [row for row in pt.read("pairs.jsonl") if isinstance(row, Comparison)]
    assert [[turn.content for turn in pair.responses[pair.winner]] for pair in pairs] == [["4"], ["There."]]
