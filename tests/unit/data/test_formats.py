"""Rows to examples: every format with hand-written results, round trips, and every reason for refusing a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.data.formats import FORMATS, KIND_NAMES, detect, nearest_format
from posttrain.data.formats.advice import fits_nothing
from posttrain.data.refusals import REASONS
from posttrain.data.roles import Rules
from posttrain.errors import ConfigError, RowError
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef, StepwiseFeedback, Task

REF = RowRef("rows.jsonl", 3)
USER, GOOD, BAD = Message("user", "2 + 2?"), Message("assistant", "4"), Message("assistant", "5")
U, A, B = (
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": "5"},
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
PAIR = Comparison((USER,), ((GOOD,), (BAD,)), winner=0, row=REF)


def parse(row: Mapping[str, Any], rules: Rules | None = None) -> Example:
    entry = detect(row)
    assert entry is not None, f"no format for {sorted(row)}"
    return entry.parse(row, REF, rules or Rules())


def refusal(row: Mapping[str, Any], name: str | None = None, rules: Rules | None = None) -> RowError:
    entry = FORMATS[name] if name else detect(row)
    assert entry is not None
    with pytest.raises(RowError) as caught:
        entry.parse(row, REF, rules or Rules())
    return caught.value


# ---------------------------------------------------------------- what each format reads

READS: dict[str, tuple[str, dict[str, Any], Example]] = {
    "bare text": ("text", {"text": " 4\n", "url": "x"}, Demonstration((Message("assistant", " 4\n"),), REF)),
    "chat under the name conversation": ("chat", {"conversation": [U, A]}, Demonstration((USER, GOOD), REF)),
    "chat": ("chat", {"messages": [U, A]}, Demonstration((USER, GOOD), REF)),
    "chat with system and flags": (
        "chat",
        {"messages": [{"role": "system", "content": ""}, U, {**A, "train": False}, U, {**A, "weight": 1}]},
        Demonstration(
            (
                Message("system", ""),
                USER,
                Message("assistant", "4", train=False),
                USER,
                Message("assistant", "4", train=True),
            ),
            REF,
        ),
    ),
    "chat with tools": (
        "chat",
        {
            "messages": [
                U,
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "I add.",
                    "tool_calls": [
                        {"id": "x1", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}},
                        {"name": "add", "arguments": {"a": 2, "b": None}},
                    ],
                },
                {"role": "tool", "content": "4", "tool_call_id": "x1", "name": "add"},
                {"role": "tool", "content": ""},
                A,
            ],
            "tools": '[{"name": "add", "parameters": {}}]',
        },
        Demonstration(
            (
                USER,
                Message(
                    "assistant",
                    None,
                    tool_calls=(
                        {**CALL, "id": "x1"},
                        {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": None}}},
                    ),
                    reasoning="I add.",
                ),
                Message("tool", "4", tool_call_id="x1", name="add"),
                Message("tool", ""),
                GOOD,
            ),
            REF,
            tools=({"type": "function", "function": {"name": "add", "parameters": {}}},),
        ),
    ),
    "chat with text parts": (
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2 + "}, {"text": "2?"}]}, A]},
        Demonstration((USER, GOOD), REF),
    ),
    "chat under the name conversations": ("chat", {"conversations": [U, A]}, Demonstration((USER, GOOD), REF)),
    "chat with nulls of a columnar file": (
        "chat",
        {"messages": [{**U, "tool_calls": None, "name": None, "train": None}, A], "tools": None, "prompt": None},
        Demonstration((USER, GOOD), REF),
    ),
    "chat with a legacy function call": (
        "chat",
        {"messages": [U, {"role": "assistant", "content": None, "function_call": CALL["function"]}]},
        Demonstration((USER, Message("assistant", None, tool_calls=(CALL,))), REF),
    ),
    "sharegpt": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "2 + 2?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "4"},
            ],
            "system": "Count.",
            "tools": [CALL],
        },
        Demonstration(
            (
                Message("system", "Count."),
                USER,
                Message("assistant", None, tool_calls=(CALL,)),
                Message("tool", "4"),
                GOOD,
            ),
            REF,
            tools=(CALL,),
        ),
    ),
    "alpaca": (
        "alpaca",
        {"instruction": "Add.", "input": "2, 2", "output": "4", "history": [["2 + 2?", "5"]], "system": "Count."},
        Demonstration((Message("system", "Count."), USER, BAD, Message("user", "Add.\n2, 2"), GOOD), REF),
    ),
    "alpaca without input": (
        "alpaca",
        {"instruction": "2 + 2?", "input": "", "output": "4", "history": [], "system": ""},
        Demonstration((USER, GOOD), REF),
    ),
    "alpaca pair": (
        "alpaca_preference",
        {"instruction": "Add.", "input": "2, 2", "chosen": "4", "rejected": "5", "system": "Count."},
        Comparison((Message("system", "Count."), Message("user", "Add.\n2, 2")), ((GOOD,), (BAD,)), 0, REF),
    ),
    "alpaca pair without input": (
        "alpaca_preference",
        {"instruction": "2 + 2?", "input": "", "chosen": "4", "rejected": "5"},
        Comparison((USER,), ((GOOD,), (BAD,)), 0, REF),
    ),
    "alpaca feedback": (
        "alpaca_feedback",
        {"instruction": "Add.", "input": "2, 2", "output": "5", "kto_tag": False},
        Feedback((Message("user", "Add.\n2, 2"),), (BAD,), False, REF),
    ),
    "sharegpt feedback": (
        "conversation_feedback",
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}], "kto_tag": True},
        Feedback((USER,), (GOOD,), True, REF),
    ),
    "chat feedback of several turns": (
        "conversation_feedback",
        {"messages": [U, B, U, A], "label": True},
        Feedback((USER, BAD, USER), (GOOD,), True, REF),
    ),
    "a number beside a conversation may be its topic": (
        "chat",
        {"messages": [U, A], "label": 1},
        Demonstration((USER, GOOD), REF),
    ),
    "prompt_completion": (
        "prompt_completion",
        {"prompt": "2 + 2?", "completion": "4"},
        Demonstration((USER, GOOD), REF),
    ),
    "prompt_completion as turns: the prompt's answers do not train": (
        "prompt_completion",
        {"prompt": [U, B, U], "completion": [A]},
        Demonstration((USER, Message("assistant", "5", train=False), USER, GOOD), REF),
    ),
    "preference as strings": ("preference", {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, PAIR),
    "preference as turns": ("preference", {"prompt": [U], "chosen": [A], "rejected": [B]}, PAIR),
    "preference as one turn each": ("preference", {"prompt": [U], "chosen": A, "rejected": B}, PAIR),
    "preference as whole conversations": ("preference", {"chosen": [U, A], "rejected": [U, B]}, PAIR),
    "preference as whole conversations with their prompt": (
        "preference",
        {"prompt": [U], "chosen": [U, A], "rejected": [U, B], "margin": 2},
        Comparison((USER,), ((GOOD,), (BAD,)), winner=0, row=REF, margin=2.0),
    ),
    "preference in the sharegpt dialect": (
        "preference",
        {
            "conversations": [{"from": "human", "value": "2 + 2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        PAIR,
    ),
    "preference whose answers part in a tool call": (
        "preference",
        {
            "chosen": [U, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "4"}, A],
            "rejected": [U, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "5"}, B],
        },
        Comparison(
            (USER,),
            (
                (Message("assistant", None, tool_calls=(CALL,)), Message("tool", "4"), GOOD),
                (Message("assistant", None, tool_calls=(CALL,)), Message("tool", "5"), BAD),
            ),
            winner=0,
            row=REF,
        ),
    ),
    "ultrafeedback_binarized": (
        "ultrafeedback_binarized",
        {
            "prompt": "2 + 2?",
            "prompt_id": "ab12",
            "chosen": [U, A],
            "rejected": [U, B],
            "messages": [U, A],
            "score_chosen": 9,
            "score_rejected": 2.5,
        },
        Comparison((USER,), ((GOOD,), (BAD,)), winner=0, row=REF, scores=(9.0, 2.5)),
    ),
    "orca_dpo_pairs": (
        "orca_dpo_pairs",
        {"system": "Count.", "question": "2 + 2?", "chosen": "4", "rejected": "5"},
        Comparison((Message("system", "Count."), USER), ((GOOD,), (BAD,)), winner=0, row=REF),
    ),
    "orca_dpo_pairs without system": (
        "orca_dpo_pairs",
        {"system": "", "question": "2 + 2?", "chosen": "4", "rejected": "5"},
        PAIR,
    ),
    "hh_rlhf": (
        "hh_rlhf",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 2 + 2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 2 + 2?\n\nAssistant: 5\n",
        },
        Comparison((Message("user", "Hi"), Message("assistant", "Hello."), USER), ((GOOD,), (BAD,)), winner=0, row=REF),
    ),
    "align_anything, second is better": (
        "align_anything",
        {"question": "2 + 2?", "response_1": "5", "response_2": "4", "overall_response": 2},
        PAIR,
    ),
    "align_anything, first is better": (
        "align_anything",
        {"question": "2 + 2?", "response_1": "4", "response_2": "5", "overall_response": "1"},
        PAIR,
    ),
    "ranked by order": (
        "ranked",
        {"prompt": "2 + 2?", "responses": ["5", [A], "?"], "ranking": [1, 2, 0]},
        Comparison((USER,), ((BAD,), (GOOD,), (Message("assistant", "?"),)), 1, REF, ranking=(1, 2, 0)),
    ),
    "ranked by scores": (
        "ranked",
        {"question": "2 + 2?", "responses": ["5", "4"], "scores": [-1, 0.5]},
        Comparison((USER,), ((BAD,), (GOOD,)), 1, REF, ranking=(1, 0), scores=(-1.0, 0.5)),
    ),
    "ranked by votes": (
        "ranked",
        {"prompt": "2 + 2?", "responses": ["4", "5"], "votes": [3, 1]},
        Comparison((USER,), ((GOOD,), (BAD,)), 0, REF, ranking=(0, 1), votes=(3, 1)),
    ),
    "feedback": (
        "feedback",
        {"prompt": "2 + 2?", "completion": "5", "label": 0},
        Feedback((USER,), (BAD,), good=False, row=REF),
    ),
    "task": (
        "task",
        {"question": "2 + 2?", "answer": 4, "level": 1, "source": None},
        Task((USER,), "4", REF, {"level": 1, "source": None}),
    ),
    "task without an answer": (
        "prompts",
        {"prompt": [U], "answer": None, "level": 1},
        Task((USER,), None, REF, {"level": 1}),
    ),
    "prompts": ("prompts", {"prompt": "2 + 2?"}, Task((USER,), None, REF)),
}


READS |= {
    "steps": (
        "stepwise",
        {"prompt": "2 + 2?", "completions": [" I add. ", "4"], "labels": [True, 0.25]},
        StepwiseFeedback((USER,), ("I add.", "4"), (1.0, 0.25), REF),
    ),
    "steps, one of them not judged": (
        "stepwise",
        {"prompt": [U], "system": "Be brief.", "completions": ["I add.", "4"], "labels": [None, 0]},
        StepwiseFeedback((Message("system", "Be brief."), USER), ("I add.", "4"), (None, 0.0), REF),
    ),
    "prm800k, up to the first error": (
        "prm800k",
        {
            "labeler": "x",
            "question": {"problem": "2 + 2?", "ground_truth_answer": "4"},
            "label": {
                "steps": [
                    {
                        "completions": [{"text": "I guess.", "rating": -1}, {"text": "I add.", "rating": 0}],
                        "human_completion": None,
                        "chosen_completion": 1,
                    },
                    {"completions": [], "human_completion": {"text": "2 and 2."}, "chosen_completion": None},
                    {"completions": [{"text": "5", "rating": -1}], "chosen_completion": None},
                    {"completions": [{"text": "never reached", "rating": 1}], "chosen_completion": 0},
                ],
                "finish_reason": "found_error",
            },
        },
        StepwiseFeedback((USER,), ("I add.", "2 and 2.", "5"), (1.0, 1.0, 0.0), REF),
    ),
    "math_shepherd": (
        "math_shepherd",
        {
            "input": "2 + 2? Step 1: I add. ки\nStep 2: 5 - 1 = 4 ки",
            "label": "2 + 2? Step 1: I add. +\nStep 2: 5 - 1 = 4 -",
            "task": "GSM8K",
        },
        StepwiseFeedback((USER,), ("Step 1: I add.", "Step 2: 5 - 1 = 4"), (1.0, 0.0), REF),
    ),
}


STEPS = {"prompt": "2 + 2?", "completions": ["I add.", "4"], "labels": [1, 0]}
SHEPHERD = {"input": "2? Step 1: a ки", "label": "2? Step 1: a +"}


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        (STEPS | {"labels": [1]}, "bad_label", "2 steps and 1 labels"),
        (STEPS | {"labels": [1, -1]}, "bad_label", "is -1"),
        (STEPS | {"labels": [None, None]}, "bad_label", "no step of the row has a label"),
        (STEPS | {"completions": ["I add.", " "]}, "empty_response", "step 2 in 'completions' has no text"),
        (STEPS | {"completions": "I add."}, "wrong_shape", "not a list"),
        (STEPS | {"completions": [], "labels": []}, "wrong_shape", "'completions' is empty"),
        (SHEPHERD | {"label": "2? Step 1: a"}, "wrong_shape", "does not say + or - after step 1"),
        (SHEPHERD | {"input": "2? Step 1: a ки Step 2: b"}, "wrong_shape", "no mark after it"),
        (SHEPHERD | {"input": "2? a ки"}, "wrong_shape", "no 'Step 1:'"),
        (
            {"question": {"problem": "2?"}, "label": {"steps": [{"completions": [{"text": "a", "rating": 2}]}]}},
            "bad_label",
            "the rating of step 1 is 2",
        ),
        ({"question": {"problem": "2?"}, "label": {"steps": []}}, "wrong_shape", "'steps' is empty"),
    ],
)
def test_steps_that_cannot_be_read(row: dict[str, Any], reason: str, words: str) -> None:
    error = refusal(row)
    assert error.reason == reason and words in str(error)


@pytest.mark.parametrize("case", READS)
def test_reads(case: str) -> None:
    name, row, expected = READS[case]
    entry = detect(row)
    assert entry is not None and entry.name == name
    assert entry.parse(row, REF) == expected


def test_every_format_is_shown_reading_and_its_own_example_is_right() -> None:
    # The published layouts are shown in test_layouts.py.
    assert {name for name, _, _ in READS.values()} == {name for name, entry in FORMATS.items() if not entry.published}
    for name, entry in FORMATS.items():
        assert detect(entry.example) is entry, name
        example = entry.parse(entry.example, REF)
        assert type(example) is entry.kind and entry.kind in KIND_NAMES
        assert json.loads(entry.example_line) == entry.example


# ---------------------------------------------------------------- round trips

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda value: bool(value.strip())
)
exchanges = st.lists(st.tuples(text, text), min_size=1, max_size=4)


def conversation(system: str | None, turns: list[tuple[str, str]]) -> tuple[Message, ...]:
    messages = [Message("system", system)] if system is not None else []
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    return tuple(messages)


@settings(max_examples=60, deadline=None)
@given(system=st.none() | text, turns=exchanges)
def test_round_trips_of_demonstrations(system: str | None, turns: list[tuple[str, str]]) -> None:
    expected = Demonstration(conversation(system, turns), REF)
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    chat = [{"role": message.role, "content": message.content} for message in expected.messages]
    share = [{"from": names[message.role], "value": message.content} for message in expected.messages]
    own = Rules.of({"bot": "assistant", "me": "user"})
    mine = {"system": "system", "user": "me", "assistant": "bot"}
    *before, (question, answer) = turns
    for row, rules in (
        ({"messages": chat}, Rules()),
        ({"conversations": share}, Rules()),
        ({"messages": [{**turn, "role": mine[turn["role"]]} for turn in chat]}, own),  # type: ignore[index]
        ({"instruction": question, "output": answer, "history": before, "system": system}, Rules()),
    ):
        assert parse(row, rules) == expected


@settings(max_examples=60, deadline=None)
@given(turns=exchanges, other=text, swap=st.booleans())
def test_round_trips_of_comparisons(turns: list[tuple[str, str]], other: str, swap: bool) -> None:
    *before, (question, answer) = turns
    if other == answer:
        other += "!"
    prompt = (*conversation(None, before), Message("user", question))
    expected = Comparison(prompt, ((Message("assistant", answer),), (Message("assistant", other),)), 0, REF)
    raw = [{"role": message.role, "content": message.content} for message in prompt]
    chosen, rejected = {"role": "assistant", "content": answer}, {"role": "assistant", "content": other}
    pair = [answer, other][:: -1 if swap else 1]
    rows: list[dict[str, Any]] = [
        {"prompt": raw, "chosen": answer, "rejected": other},
        {"prompt": raw, "chosen": [chosen], "rejected": [rejected]},
        {"chosen": [*raw, chosen], "rejected": [*raw, rejected]},
        {"question": raw, "chosen": [*raw, chosen], "rejected": [*raw, rejected]},
        {"question": raw, "response_1": pair[0], "response_2": pair[1], "overall_response": 2 if swap else 1},
    ]
    for row in rows:
        assert parse(row) == expected


@settings(max_examples=60, deadline=None)
@given(turns=exchanges, other=text)
def test_round_trips_of_dialogues(turns: list[tuple[str, str]], other: str) -> None:
    plain = [(question.strip(), answer.strip()) for question, answer in turns]
    *before, (question, answer) = plain
    other = other.strip() + ("!" if other.strip() == answer else "")
    start = "".join(f"\n\nHuman: {q}\n\nAssistant: {a}" for q, a in before) + f"\n\nHuman: {question}\n\nAssistant: "
    example = parse({"chosen": start + answer, "rejected": start + other})
    prompt = (*conversation(None, before), Message("user", question))
    assert example == Comparison(prompt, ((Message("assistant", answer),), (Message("assistant", other),)), 0, REF)


@settings(max_examples=60, deadline=None)
@given(scores=st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True))
def test_a_ranked_list_is_in_the_order_of_its_scores(scores: list[int]) -> None:
    row = {"prompt": "q", "responses": [f"answer {score}" for score in scores], "scores": scores}
    example = parse(row)
    assert isinstance(example, Comparison) and example.ranking is not None
    assert [scores[index] for index in example.ranking] == sorted(scores, reverse=True)
    assert example.responses[example.winner][0].content == f"answer {max(scores)}"
    assert parse({**row, "ranking": list(example.ranking)}) == example


# ---------------------------------------------------------------- what is refused, and under which reason

SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"role": "tool", "content": "4"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "id": "x1"}]}


def chat(*turns: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(turns), **columns}


def pair(chosen: Any, rejected: Any, **columns: Any) -> dict[str, Any]:
    return {"prompt": "2 + 2?", "chosen": chosen, "rejected": rejected, **columns}


def dialogue(text: str, other: str) -> dict[str, Any]:
    return {"chosen": text, "rejected": other}


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("empty_conversation", chat(), "'messages' has no turns"),
    ("starts_with_assistant", chat(A, U, A), "starts with the assistant"),
    ("starts_with_assistant", chat(SYSTEM, A), "in turn 2"),
    ("repeated_role", chat(U, U, A), "turns 1 and 2 of 'messages' are both of the user"),
    ("repeated_role", chat(U, A, A), "turns 2 and 3"),
    ("late_system", chat(U, A, SYSTEM, U, A), "turn 3"),
    ("late_system", chat(SYSTEM, U, A, system="Be long."), "two system prompts"),
    ("unanswered_turn", chat(U, A, U), "ends with a turn of the user"),
    ("unanswered_turn", chat(U), "columns: {prompt: messages}"),
    ("unknown_role", chat({"role": "human", "content": "x"}, A), "roles: {user: user, human: user}"),
    ("unknown_role", chat(U, {"role": "asistant", "content": "x"}), "did you mean `assistant`?"),
    ("unknown_role", chat(U, {"role": None, "content": "x"}), "role None"),
    ("unknown_role", chat(U, {"role": ["user"], "content": "x"}), "which is not known"),
    ("unknown_role", {"conversations": [{"from": "user", "value": "x"}]}, "roles: {human: user, user: user}"),
    ("null_content", chat({"role": "user", "content": None}, A), "the text of turn 1 of 'messages' is null"),
    ("null_content", pair(None, "b"), "'chosen' is null"),
    ("content_not_text", chat({"role": "user", "content": 5}, A), "is a number, not text"),
    ("content_not_text", chat({"role": "user", "content": {"a": 1}}, A), "is an object, not text"),
    ("content_not_text", chat({"role": "user", "content": True}, A), "is a true/false value"),
    ("content_not_text", chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, A), "'image_url'"),
    ("content_not_text", chat({**U, "images": ["a.png"]}, A), "carries 'images'"),
    ("wrong_shape", {"prompt": "a", "completion": ["b"]}, "turn 1 of 'completion' is a string"),
    ("empty_turn", chat({"role": "user", "content": " \n"}, A), "turn 1 of 'messages' (user) has no text"),
    ("empty_turn", {"prompt": "", "completion": "b"}, "'prompt' has no text"),
    ("empty_response", chat(U, {"role": "assistant", "content": ""}), "text or a tool call"),
    ("empty_response", chat(U, {"role": "assistant", "content": []}), "turn 2"),
    ("empty_response", pair("4", "  "), "'rejected' has no text"),
    ("empty_response", {"instruction": "a", "output": ""}, "'output' has no text"),
    ("empty_response", dialogue("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant:"), "turn 2 of 'rejected'"),
    ("bad_character", chat({"role": "user", "content": "a\0b"}, A), "position 1"),
    ("bad_character", chat({"role": "user", "content": "ä\ud83d"}, A), "surrogate pair at position 1"),
    ("wrong_shape", chat("hi"), "turn 1 of 'messages' is a string"),
    ("wrong_shape", {"messages": "hi"}, "not a list of turns"),
    ("wrong_shape", chat({"role": "user"}, A), "has no 'content'"),
    ("wrong_shape", chat(U, {"roel": "assistant", "content": "x"}), "rename `roel` to `role`"),
    ("wrong_shape", chat(U, {"from": "gpt", "value": "x"}), "has no 'role', 'content'"),
    ("wrong_shape", pair(5, "b"), "'chosen' is a number, not a response"),
    ("wrong_shape", {"instruction": "a", "output": "b", "history": [["q"]]}, "entry 1 of 'history'"),
    ("wrong_shape", dialogue("good", "bad"), "is not a dialogue"),
    ("wrong_shape", {"prompt": [SYSTEM], "completion": "b"}, "without a question"),
    ("wrong_shape", {"prompt": [U], "completion": [U, A]}, "begins with a turn of the user"),
    ("unknown_key", chat(U, {**A, "tool_call": []}), "looks like 'tool_calls'"),
    ("unknown_key", chat(U, {**A, "tarin": False}), "looks like 'train'"),
    ("dialogue_as_text", {"prompt": "### Human: Hi### Assistant: Hello.", "completion": "b"}, "'### Human:'"),
    ("bad_flag", chat(U, {**A, "train": "yes"}), "`train`"),
    ("bad_flag", chat(U, {**A, "weight": 0.5}), "0 or 1"),
    ("tool_without_call", chat(U, A, TOOL, A), "no tool call comes before it"),
    ("tool_without_call", chat(U, TOOL, A), "turn 2"),
    ("tool_without_call", chat(TOOL, A), "turn 1"),
    ("tool_without_call", chat(U, CALLING, {**TOOL, "tool_call_id": "x2"}, A), "none of the calls' ids 'x1'"),
    ("bad_tool_call", chat(U, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}), "no function"),
    (
        "bad_tool_call",
        chat(U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{a"}]}),
        "not an object",
    ),
    (
        "bad_tool_call",
        chat(U, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}),
        "not an object",
    ),
    ("bad_tool_call", chat(U, {"role": "assistant", "tool_calls": [{"name": "f", "parameters": {}}]}), "'arguments'"),
    ("bad_tool_call", chat({**U, "tool_calls": [CALL]}, A), "only the assistant calls tools"),
    ("bad_tool_call", {"conversations": [{"from": "function_call", "value": "add(2)"}]}, "not JSON"),
    ("bad_tools", chat(U, A, tools="add"), "`tools` is"),
    ("bad_tools", chat(U, A, tools=[{"type": "function"}]), "tool 1 has no name"),
    ("answered_prompt", {"prompt": [U, A], "completion": "b"}, "ends with the assistant"),
    ("prompts_differ", {"chosen": [U, A], "rejected": [{"role": "user", "content": "3 + 3?"}, B]}, "part at turn 1"),
    ("prompts_differ", {"chosen": [SYSTEM, U, A], "rejected": [U, B]}, "part at turn 1"),
    ("prompts_differ", {"chosen": [U, A, U, A], "rejected": [U, B, U, A]}, "part at turn 2"),
    ("prompts_differ", {"chosen": [U, A, U, A], "rejected": [U, A]}, "it ends before"),
    (
        "prompts_differ",
        {"prompt": "3 + 3?", "chosen": [U, A], "rejected": [U, B]},
        "do not begin with the row's 'prompt'",
    ),
    ("prompts_differ", {"prompt": [SYSTEM, U], "chosen": [U, A], "rejected": [U, B]}, "do not begin with"),
    ("prompts_differ", dialogue("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: x"), "part at turn 1"),
    ("repeated_role", dialogue("\n\nHuman: a\n\nHuman: b\n\nAssistant: x", "\n\nHuman: a\n\nAssistant: x"), "chosen"),
    ("starts_with_assistant", dialogue("\n\nAssistant: x", "\n\nAssistant: y"), "'chosen' starts"),
    ("identical_responses", pair("4", "4"), "'chosen' and 'rejected' are the same"),
    ("identical_responses", {"chosen": [U, A], "rejected": [U, A]}, "are the same"),
    ("identical_responses", {"prompt": "a", "responses": ["b", "c", "b"], "scores": [1, 2, 3]}, "response 0"),
    ("too_few_responses", {"prompt": "a", "responses": ["b"], "scores": [1]}, "at least two"),
    ("tie", pair("4", "5", score_chosen=3, score_rejected=3), "both 3"),
    ("tie", {"question": "a", "response_1": "b", "response_2": "c", "overall_response": 0}, "is 0"),
    ("tie", {"prompt": "a", "responses": ["b", "c", "d"], "scores": [2, 2, 1]}, "the best responses are level"),
    ("tie", {"prompt": "a", "responses": ["b", "c", "d"], "votes": [2, 1, 1]}, "two responses are level"),
    ("score_order", pair("4", "5", score_chosen=2, score_rejected=3), "the rejected response has the higher score"),
    ("score_order", {"prompt": "a", "responses": ["b", "c"], "scores": [2, 1], "ranking": [1, 0]}, "different things"),
    ("empty_text", {"text": " \n"}, "'text' has no text"),
    ("dialogue_as_text", {"text": "\n\nHuman: a\n\nAssistant: b"}, "holds the turns of a conversation"),
    ("bad_score", pair("4", "5", score_chosen="nine", score_rejected=3), "'score_chosen' is 'nine'"),
    ("bad_score", pair("4", "5", score_chosen=9), "'score_rejected' is None"),
    ("score_order", pair("4", "5", margin=-1.5), "-1.5"),
    ("bad_score", pair("4", "5", margin=float("nan")), "finite"),
    ("bad_score", pair("4", "5", votes=[1, -1]), "no count"),
    ("bad_score", {"prompt": "a", "responses": ["b", "c"], "scores": [1, 2, 3]}, "a list of 2 numbers"),
    ("bad_ranking", {"prompt": "a", "responses": ["b", "c"], "ranking": [1, 2]}, "subtract 1"),
    ("bad_ranking", {"prompt": "a", "responses": ["b", "c"], "ranking": [0, 0]}, "each once"),
    ("bad_label", {"question": "a", "response_1": "b", "response_2": "c", "overall_response": 3}, "is 3"),
    ("bad_label", {"question": "a", "response_1": "b", "response_2": "c", "overall_response": True}, "is True"),
    ("bad_label", {"prompt": "a", "completion": "b", "label": "good"}, "'label' is 'good'"),
    ("bad_label", {"prompt": "a", "completion": "b", "label": -1}, "'label' is -1"),
    ("bad_label", {"prompt": "a", "answer": ["b"]}, "'answer' is a list"),
    ("bad_label", {"prompt": "a", "answer": " "}, "'answer' has no text"),
]


@pytest.mark.parametrize(("reason", "row", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refuses(reason: str, row: dict[str, Any], words: str) -> None:
    name = "preference" if "chosen" in row and not isinstance(row["chosen"], str) else None
    error = refusal(row, name)
    shown = str(error)
    assert error.reason == reason
    assert words in shown
    for part in ("rows.jsonl, row 3: ", "found:", "expected:", "example:", "remedy:", "the row's keys: ", "format '"):
        assert part in shown


def test_every_reason_of_a_row_is_tested() -> None:
    elsewhere = {
        "bad_json",
        "duplicate_key",
        "bad_encoding",
        "truncated",
        "mixed_kinds",
        "too_long",
        "cell_count",
        "before_skip",
    }  # test_delimited.py, test_skip.py, test_sources.py, test_bounds.py, test_read.py
    assert {reason for reason, _, _ in REFUSED} | elsewhere == set(REASONS)


def test_ties_can_be_kept_where_the_winner_is_known() -> None:
    rules = Rules.of(allow_ties=True)
    kept = parse(pair("4", "5", score_chosen=3, score_rejected=3), rules)
    assert isinstance(kept, Comparison) and kept.scores == (3.0, 3.0)
    lower = parse({"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 3, 1]}, rules)
    assert isinstance(lower, Comparison) and lower.winner == 1 and lower.ranking == (1, 0, 2)
    best = refusal({"prompt": "a", "responses": ["b", "c"], "scores": [3, 3]}, rules=rules)
    assert best.reason == "tie" and "allow_ties" not in best.remedy


junk = st.recursive(
    st.sampled_from([None, True, 0, 1, -2.5, float("nan"), "", " ", "x", "user", "gpt", "{}", "[", "\ud800", "\0"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "type", "text", "name", "arguments", "function", "id"]
            ),
            children,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def spoilt(value: Any, path: tuple[int, ...], put: Any) -> Any:
    """The value with the part that `path` leads to replaced; indices wrap around."""
    if not path or not isinstance(value, dict | list) or not value:
        return put
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[key] = spoilt(value[key], path[1:], put)
    return changed


WHOLE_ROWS = [row for _, row, _ in READS.values()] + [dict(entry.example) for entry in FORMATS.values()]


@settings(max_examples=300, deadline=None)
@given(
    row=st.sampled_from(WHOLE_ROWS),
    path=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    put=junk,
    name=st.sampled_from(sorted(FORMATS)) | st.none(),
)
def test_whatever_a_row_holds_it_is_read_or_refused_by_name(
    row: dict[str, Any], path: list[int], put: Any, name: str | None
) -> None:
    row = spoilt(row, tuple(path), put)
    entry = FORMATS[name] if name else detect(row)
    if entry is None:
        assert str(fits_nothing(row))
        return
    try:
        entry.parse(row, REF)
    except RowError as error:
        assert error.reason in REASONS and str(error).startswith("rows.jsonl, row 3: ")


# ---------------------------------------------------------------- roles


def test_a_map_for_a_role_replaces_its_default_names_only() -> None:
    rules = Rules.of({"customer": "user"})
    row = {"messages": [{"role": "customer", "content": "2 + 2?"}, A]}
    assert parse(row, rules) == Demonstration((USER, GOOD), REF)
    error = refusal(chat(U, A), rules=rules)
    assert error.reason == "unknown_role" and "roles: {customer: user, user: user}" in str(error)
    both = Rules.of({"customer": "user", "user": "user"})
    assert parse(chat(U, A), both) == Demonstration((USER, GOOD), REF)


def test_a_map_to_no_role_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"write `roles: \{bot: assistant\}`"):
        Rules.of({"bot": "asistant"})


# ---------------------------------------------------------------- detection


def test_a_kind_settles_what_a_row_with_two_readings_is() -> None:
    row = FORMATS["ultrafeedback_binarized"].example | {"messages": [U, A]}
    names = {kind: entry.name for kind in KIND_NAMES if (entry := detect(row, kind)) is not None}
    assert names == {Comparison: "ultrafeedback_binarized", Demonstration: "chat"}


def test_a_row_that_lost_its_answer_is_no_bare_prompt() -> None:
    assert detect({"prompt": "a", "chosen": "b"}) is None
    assert detect({"prompt": "a", "response": "b"}) is None
    assert detect({"prompt": "a", "completion": None}) is None


@pytest.mark.parametrize(
    ("row", "name", "remedy"),
    [
        ({"prompt": "2 + 2?", "response": "4"}, "prompt_completion", "columns: {completion: response}"),
        (
            {"question_text": "2 + 2?", "reply": "4"},
            "prompt_completion",
            "{question: question_text, completion: reply}",
        ),
        (
            {"Prompt": "2 + 2?", "Chosen": "4", "Rejected": "5"},
            "preference",
            "{chosen: Chosen, rejected: Rejected, prompt: Prompt}",
        ),
        ({"prompt": 1, "chosen": 2}, "preference", "rejected: YOUR_COLUMN"),
        ({"question": 1, "chosen": 2}, "orca_dpo_pairs", "rejected: YOUR_COLUMN"),
        ({"dialogue": [U, A], "id": 1}, "chat", "columns: {messages: dialogue}"),
        ({"mesages": [U, A]}, "chat", "columns: {messages: mesages}"),
        ({"instruction": "2 + 2?", "response": "4"}, "alpaca", "columns: {output: response}"),
        ({"question": 1, "response_1": 2, "response_2": 3}, "align_anything", "overall_response: YOUR_COLUMN"),
        (
            {"prompt": "2 + 2?", "completions": ["4", "5"], "ratings": [9, 1]},
            "ranked",
            "{responses: completions, scores: ratings}",
        ),
        ({"text": 1}, "chat", "the formats are: align_anything"),
        ({}, "chat", "the formats are"),
    ],
)
def test_the_nearest_format_and_the_map_that_would_do(row: dict[str, Any], name: str, remedy: str) -> None:
    assert nearest_format(row).name == name
    error = fits_nothing(row)
    assert f"'{name}'" in str(error.expected) and remedy in error.remedy
    assert error.example == FORMATS[name].example_line


def test_a_ranking_from_one_may_be_an_order_or_ranks() -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranking": [2, 3, 1]}
    with pytest.raises(RowError) as caught:
        pt.read([row])
    assert "[1, 2, 0]; where it gives the rank of each response, write [2, 0, 1]" in caught.value.remedy
    for ranking, best in (([1, 2, 0], "b"), ([2, 0, 1], "c")):
        (example,) = pt.read([{**row, "ranking": ranking}])
        assert isinstance(example, Comparison) and example.responses[example.winner][0].content == best
