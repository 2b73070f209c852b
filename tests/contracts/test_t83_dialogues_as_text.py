"""T83: text that is a dialogue is read as what it is, or refused; everywhere alike (SkyRL PR#1675, oumi#2599).

Arrow wants one type for a column, so files store turns, tools and calls as JSON text, or as `str` of Python's lists.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import posttrain as pt
from posttrain.errors import RowError
from posttrain.types import Example

U, A, B = (
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "assistant", "content": "It's 5"},
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "4"}
HUMAN, GPT = {"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def twice(value: Any) -> str:
    return json.dumps(json.dumps(value))


STORES: dict[str, Callable[[Any], str]] = {"json": json.dumps, "json of json": twice, "python": str}
ROWS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"messages": [U, A]}, ("messages",)),
    ({"conversations": [HUMAN, GPT]}, ("conversations",)),
    ({"prompt": [U], "completion": [A]}, ("prompt", "completion")),
    ({"prompt": [U], "completion": [A]}, ("completion",)),
    ({"prompt": [HUMAN], "completion": [GPT]}, ("prompt", "completion")),
    ({"chosen": [U, A], "rejected": [U, B]}, ("chosen", "rejected")),
    ({"prompt": [U], "chosen": [A], "rejected": [B]}, ("prompt", "chosen", "rejected")),
    ({"prompt": [U], "chosen": [U, A], "rejected": [U, B]}, ("prompt", "chosen", "rejected")),
    ({"prompt": [U], "responses": [[A], [B]], "scores": [2, 1]}, ("prompt", "responses", "scores")),
    ({"prompt": [U], "completion": [A], "label": True}, ("prompt", "completion")),
    ({"messages": [U, A], "kto_tag": True}, ("messages",)),
    ({"prompt": [U], "answer": "4"}, ("prompt",)),
    ({"instruction": "2 + 2?", "output": "4", "history": [["1?", "1"]]}, ("history",)),
    ({"prompt": "2 + 2?", "completions": ["2", "4"], "labels": [True, False]}, ("completions", "labels")),
    ({"messages": [U, CALLING, RESULT, A], "tools": TOOLS}, ("tools",)),
]


def one(row: dict[str, Any]) -> Example:
    (example,) = pt.read([row])
    return example


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("number", range(len(ROWS)))
def test_stored_turns_are_turns(number: int, store: str) -> None:
    row, columns = ROWS[number]
    text = {**row, **{column: STORES[store](row[column]) for column in columns}}
    assert all(isinstance(text[column], str) for column in columns) and one(text) == one(row)


@pytest.mark.parametrize("store", STORES)
def test_calls_arguments_and_tools_may_be_text(store: str) -> None:
    put = STORES[store]
    plain = one({"messages": [U, CALLING, RESULT, A], "tools": TOOLS})
    function = {"name": "add", "arguments": put({"a": 2})}
    for calls in (put([CALL]), [put(CALL)], [{**CALL, "function": put(CALL["function"])}], [{"function": function}]):
        assert one({"messages": [U, {**CALLING, "tool_calls": calls}, RESULT, A], "tools": TOOLS}) == plain
    schema = {"type": "function", "function": {"name": "add", "parameters": put({"type": "object"})}}
    for tools in ([put(TOOLS[0])], [schema]):
        assert one({"messages": [U, CALLING, RESULT, A], "tools": tools}) == plain
    turns = [put(turn) for turn in (U, CALLING, RESULT, A)]
    assert one({"messages": turns, "tools": TOOLS}) == plain


@pytest.mark.parametrize("nothing", ["[]", "null", "", " ", None, []])
def test_nothing_stored_as_text_is_nothing(nothing: Any) -> None:
    plain = one({"messages": [U, A]})
    assert one({"messages": [U, {**A, "tool_calls": nothing}], "tools": nothing}) == plain
    assert one({"messages": [U, {**A, "function_call": nothing}], "tools": nothing}) == plain
    empty = {"name": "add", "arguments": nothing if isinstance(nothing, str) else None}
    call = one({"messages": [U, {**A, "content": None, "tool_calls": [empty]}]}).messages[1].tool_calls[0]  # type: ignore[union-attr]
    assert call["function"]["arguments"] == {}


@pytest.mark.parametrize(
    "text",
    [
        *(
            '{"a": 1}',
            "[1, 2]",
            "[]",
            "null",
            '"4"',
            '[{"name": "Ann"}]',
            '{"role": "admin", "content": "x"}',
            "{'a': 1}",
        ),
        *("[x] and [y]", "Human: is an odd word.", "Assistant professors teach.", "From: me\nTo: you", "[INST]"),
        *('Write {"role": "user", "content": "x"} here', "### Human rights\nAll people.", "User: me"),
    ],
)
def test_an_answer_that_is_json_or_prose_stays_text(text: str) -> None:
    assert one({"prompt": text, "completion": text}).messages[1].content == text  # type: ignore[union-attr]
    pair = one({"prompt": "p", "chosen": text, "rejected": "no"})
    assert pair.responses[0][0].content == text  # type: ignore[union-attr]
    assert one({"instruction": text, "output": text}).messages[0].content == text  # type: ignore[union-attr]


DIALOGUES = [
    "### Human: Hi### Assistant: Hello.",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>",
    "<s>[INST] Hi [/INST] Hello.</s>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant"
    "<|end_header_id|>\n\nHello.",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.",
    "<|user|>\nHi</s>\n<|assistant|>\nHello.",
    "USER: Hi ASSISTANT: Hello.",
    "User: Hi\nAssistant: Hello.",
    '[{"role": "user", "content": "cut o',
]


@pytest.mark.parametrize("text", DIALOGUES)
def test_a_dialogue_in_some_prompt_format_is_refused_everywhere(text: str) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": text, "completion": "4"},
        {"prompt": "p", "completion": text},
        {"prompt": "p", "chosen": text, "rejected": "no"},
        {"prompt": "p", "responses": ["no", text], "scores": [2, 1]},
        {"question": text, "answer": "4"},
        {"instruction": "i", "output": text},
        {"instruction": text, "chosen": "4", "rejected": "5"},
        {"messages": text},
    ]
    for row in rows:
        with pytest.raises(RowError) as caught:
            pt.read([row])
        assert caught.value.reason in ("dialogue_as_text", "wrong_shape"), row
    if text.startswith("["):
        return
    kept = pt.read([rows[1]], dialogues_in_text="keep")
    assert next(iter(kept)).messages[1].content == text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text", ["### Human: Hi### Assistant:", "<|user|>\nHi</s>\n<|assistant|>\n", "User: Hi\nAssistant:"]
)
def test_a_prompt_for_a_base_model_is_no_dialogue(text: str) -> None:
    assert one({"prompt": text, "completion": " Hello."}).messages[0].content == text  # type: ignore[union-attr]


def test_the_form_of_hh_rlhf_is_read_wherever_it_stands() -> None:
    prompt, answer = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 2 + 2?\n\nAssistant:", "4"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, U]
    read = pt.read([{"prompt": prompt, "completion": answer}])
    assert list(read) == [one({"prompt": turns, "completion": answer})]
    assert any("read as turns" in key for key in read.counts.unread_keys)
    whole = {"prompt": prompt, "chosen": prompt + " 4", "rejected": prompt + " 5"}
    assert one(whole) == one({"prompt": turns, "chosen": "4", "rejected": "5"})
    assert one({"question": prompt, "answer": "4"}) == one({"question": turns, "answer": "4"})
    kept = pt.read([{"prompt": prompt, "completion": answer}], dialogues_in_text="keep")
    assert next(iter(kept)).messages[0].content == prompt  # type: ignore[union-attr]


def test_turns_in_a_column_of_one_turn_are_refused_with_a_map_that_reads() -> None:
    row = {"instruction": json.dumps([U]), "output": json.dumps([A])}
    with pytest.raises(RowError, match="stored as text") as caught:
        pt.read([row])
    assert "columns: {prompt: instruction, completion: output}" in caught.value.remedy
    columns = {"prompt": "instruction", "completion": "output"}
    (example,) = pt.read([row], format="prompt_completion", columns=columns)
    assert example.messages[1].content == "4"  # type: ignore[union-attr]


def test_parts_of_other_tools_are_read_or_refused_with_their_true_reason() -> None:
    parts = [{"type": "reasoning", "value": "I add."}, {"type": "text", "value": "4"}]
    (example,) = pt.read(
        [{"messages": [{"role": "user", "content": [{"type": "text", "value": "2 + 2?"}]}, A | {"content": parts}]}]
    )
    assert example.messages[1].content == "4" and example.messages[1].reasoning == "I add."  # type: ignore[union-attr]
    called = [{"type": "tool_call", "value": json.dumps(CALL["function"])}]
    (example,) = pt.read([{"messages": [U, A | {"content": called}, RESULT, A]}])
    assert example.messages[1].tool_calls == (CALL,) and example.messages[1].content is None  # type: ignore[union-attr]
    responses = [{"type": "input_text", "text": "2 + "}, {"type": "input_text", "text": "2?"}]
    (example,) = pt.read(
        [{"messages": [U | {"content": responses}, A | {"content": [{"type": "output_text", "text": "4"}]}]}]
    )
    assert [message.content for message in example.messages] == ["2 + 2?", "4"]  # type: ignore[union-attr]
    for content, words in (
        ([{"type": "text", "words": "x"}], "has no text.*the keys 'type', 'words'"),
        ([{"type": "text", "text": None}], "is null"),
        ([{"type": "image_url", "image_url": {}}], "'image_url'"),
        ([{"type": "text", "text": "4"}, {"type": "thinking", "thinking": "late"}], "an order that a turn cannot keep"),
    ):
        with pytest.raises(RowError, match=f"(?s){words}"):
            pt.read([{"messages": [U, A | {"content": content}]}])
