"""T80: a turn that says of itself that it does not train, under the names of all tools, in every layout.

ms-swift#9263 (`loss`), LLaMA-Factory PR#10471 (`loss_weight`), verl PR#5472 (`loss_mask`), Axolotl (`training`), OpenAI
(`weight`), torchtune (`masked`). An unknown key inside a turn is named with its count.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import posttrain as pt
from posttrain.data.encode import Encoder
from posttrain.data.unread import unread_keys
from posttrain.errors import RowError
from posttrain.types import Comparison, Demonstration, Feedback
from tests.encoding import encoder_of, trained_runs

NO: list[tuple[str, Any]] = [
    *((key, False) for key in ("train", "training", "trainable", "train_on_turn", "loss")),
    *((key, 0) for key in ("weight", "loss_mask", "loss_weight", "train")),
    *((key, 0.0) for key in ("loss_weight", "loss_scale", "weight")),
    *(("loss", word) for word in ("false", "False", "0", "0.0")),
    *((key, yes) for key in ("mask", "masked") for yes in (True, 1, "true")),
]
YES: list[tuple[str, Any]] = [("loss", True), ("weight", 1.0), ("train", "true"), ("mask", False), ("loss_mask", "1")]
U, A = {"role": "user", "content": "ping"}, {"role": "assistant", "content": "BAD"}
GOOD = {"role": "assistant", "content": "good"}


def in_sharegpt(turn: dict[str, Any]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    return {"from": names[turn["role"]], "value": turn["content"]} | {
        key: value for key, value in turn.items() if key not in ("role", "content")
    }


LAYOUTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "chat": lambda bad: {"messages": [U, bad, U, GOOD]},
    "sharegpt": lambda bad: {"conversations": [in_sharegpt(turn) for turn in (U, bad, U, GOOD)]},
    "prompt and completion": lambda bad: {"prompt": [U], "completion": [bad, U, GOOD]},
    "pair": lambda bad: {"prompt": [U], "chosen": [bad, U, GOOD], "rejected": [U | {"role": "assistant"}]},
    "pair of conversations": lambda bad: {"chosen": [U, bad, U, GOOD], "rejected": [U, bad, U, A]},
    "feedback": lambda bad: {"prompt": [U], "completion": [bad, U, GOOD], "label": True},
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return encoder_of("CHATML")


def trained(encoder: Encoder, row: dict[str, Any]) -> str:
    (example,) = pt.read([row])
    if isinstance(example, Demonstration):
        (tree,) = encoder.demonstration(example)
    elif isinstance(example, Comparison):
        tree = encoder.comparison(example)
    else:
        assert isinstance(example, Feedback)
        tree = encoder.feedback(example)
    return "".join(trained_runs(encoder, tree))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flag_is_honoured_in_every_layout(layout: str, encoder: Encoder) -> None:
    for key, value in [("loss", False), ("loss_weight", 0.0), ("mask", True), ("train", False)]:
        assert trained(encoder, LAYOUTS[layout]({**A, key: value})) == "good<|im_end|>", key
    if layout != "pair of conversations":  # there the flagged turn is a part of the shared prompt
        assert trained(encoder, LAYOUTS[layout]({**A, "loss": True})) == "BAD<|im_end|>good<|im_end|>"


@pytest.mark.parametrize(("key", "value"), NO)
def test_every_name_and_spelling_of_no(key: str, value: Any, encoder: Encoder) -> None:
    assert trained(encoder, LAYOUTS["chat"]({**A, key: value})) == "good<|im_end|>"


@pytest.mark.parametrize(("key", "value"), YES)
def test_every_name_and_spelling_of_yes(key: str, value: Any) -> None:
    encoder = encoder_of("CHATML", {"train_on": "last_assistant"})
    assert trained(encoder, LAYOUTS["chat"]({**A, key: value})) == "BAD<|im_end|>good<|im_end|>"


@pytest.mark.parametrize("value", [0.5, 2, -1, "half", [1, 0], {"a": 1}])
@pytest.mark.parametrize("key", ["weight", "loss_weight", "loss_mask", "mask"])
def test_what_lies_between_yes_and_no_is_refused(key: str, value: Any) -> None:
    with pytest.raises(RowError, match=f"`{key}` in turn 2 of 'messages'") as caught:
        pt.read([LAYOUTS["chat"]({**A, key: value})])
    assert caught.value.reason == "bad_flag"


@pytest.mark.parametrize(
    "flags", [{"train": True, "weight": 0}, {"mask": True, "loss": 1}, {"loss": 0, "masked": False}]
)
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="contradict one another") as caught:
        pt.read([LAYOUTS["chat"]({**A, **flags})])
    assert all(f"`{key}`" in str(caught.value.found) for key in flags)
    assert len(pt.read([LAYOUTS["chat"]({**A, "train": False, "weight": 0, "mask": True})])) == 1


@pytest.mark.parametrize("value", [None, "", float("nan")])
def test_a_flag_that_says_nothing_changes_nothing(value: Any, encoder: Encoder) -> None:
    assert trained(encoder, LAYOUTS["chat"]({**A, "loss": value})) == "BAD<|im_end|>good<|im_end|>"


def test_marks_of_parts_of_a_turn_are_refused() -> None:
    spans = [{"begin_offset": 0, "end_offset": 3, "train": False}]
    with pytest.raises(RowError, match="a turn trains in full or not at all"):
        pt.read([LAYOUTS["chat"]({**A, "train_detail": spans})])
    assert len(pt.read([LAYOUTS["chat"]({**A, "train_detail": []})])) == 1


def test_a_yes_in_a_turn_of_the_user_trains_it_only_under_our_name(encoder: Encoder) -> None:
    row = {"messages": [{**U, "weight": 1}, GOOD]}
    assert trained(encoder, row) == "good<|im_end|>"
    assert pt.read([row]).counts.unread_keys == {"turn.weight (a yes in a turn of the user)": 1}
    assert trained(encoder, {"messages": [{**U, "train": True}, GOOD]}).startswith("ping")
    assert not pt.read([{"messages": [{**U, "loss_weight": 0.0}, GOOD]}]).counts.unread_keys


def test_unknown_keys_inside_rows_are_named_with_their_counts() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}, "result": 4}, "took": 0.2}
    tool = {"name": "add", "description": "", "input_schema": {"type": "object"}}
    row = {
        "messages": [
            {**U, "timestamp": 3, "annotations": []},
            {"role": "assistant", "content": None, "tool_calls": [call], "thought": "I add."},
            {"role": "tool", "content": [{"type": "text", "text": "4", "cache_control": {"type": "ephemeral"}}]},
            {**GOOD, "timestamp": 4, "refusal": None},
        ],
        "tools": [tool],
    }
    bad = {"messages": [{**U, "elsewhere": 1}, {**A, "content": ""}]}
    examples = pt.read([row, row, bad], bad_rows="skip")
    assert examples.counts.unread_keys == {
        "turn.timestamp": 4,
        "turn.thought": 2,
        "tool call.result": 2,
        "tool call.took": 2,
        "tool.input_schema": 2,
        "part.cache_control": 2,
    }
    assert "turn.timestamp (4)" in str(examples.counts) and "turn.thought (2)" in repr(examples)
    said = " ".join(unread_keys(examples.counts.unread_keys))
    assert "`input_schema` in 2 tools is not read: did you mean `parameters`?" in said
    assert "`thought` in 2 turns is not read: did you mean `reasoning`?" in said


@pytest.mark.parametrize("key", ["LOSS", "Loss", "Mask", "Train-On-Turn", "TRAIN"])
def test_a_flag_in_other_letters_is_no_other_key(key: str) -> None:
    with pytest.raises(RowError, match=f"has the key '{key}', which looks like") as caught:
        pt.read([{"messages": [U, {**A, key: False}, U, GOOD]}])
    assert f"rename it to `{key.lower().replace('-', '_')}`" in str(caught.value)


@pytest.mark.parametrize("flag", [{"train": False}, {"loss": 0}, {"mask": True}, {"weight": "0"}])
def test_a_part_that_must_not_train_is_refused(flag: dict[str, Any]) -> None:
    parts = [{"type": "text", "text": "BAD", **flag}, {"type": "text", "text": "good"}]
    with pytest.raises(RowError, match="marks a part of a turn"):
        pt.read([{"messages": [U, {"role": "assistant", "content": parts}]}])
    yes = [{"type": "text", "text": "good", "train": True}]
    assert len(pt.read([{"messages": [U, {"role": "assistant", "content": yes}]}])) == 1
