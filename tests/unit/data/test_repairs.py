"""Repairs of conversations: what each does, in which rows, what it counts, and which turns it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.config.settings import Data
from posttrain.data.repairs import NONE, Repairs, repair_notes
from posttrain.errors import ConfigError, RowError, TemplateError, UnknownKeyError
from posttrain.training.rl.tasks import read_tasks
from posttrain.training.stages.reading import read_data
from posttrain.types import Comparison, Demonstration, Example, Message, Task
from tests.encoding import family_encoder, shown

ALL = {"system_into_user": True, "join_same_role": True, "first_greeting": "drop"}


def turns(text: str) -> list[dict[str, str]]:
    """turns("u:a b:c") -> [{"role": "user", "content": "a"}, ...]; s, u, a and t stand for the roles."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[part[0]], "content": part[2:]} for part in text.split()]


def said(messages: tuple[Message, ...]) -> str:
    return " ".join(f"{turn.role[0]}:{(turn.content or '').replace(chr(10), '|')}" for turn in messages)


def read_one(row: dict[str, Any], **repairs: Any) -> tuple[Example, list[str]]:
    examples = pt.read([row], repairs=repairs)
    return next(iter(examples)), examples.counts.notes


SYSTEM, JOINED = "system turns put into", "turns joined to"
DEMONSTRATIONS: dict[str, tuple[str, dict[str, Any], str, list[str]]] = {
    "a system turn": ("s:S u:q a:x", {"system_into_user": True}, "u:S||q a:x", [SYSTEM]),
    "a late system turn": ("u:q a:x s:S u:r a:y", {"system_into_user": True}, "u:q a:x u:S||r a:y", [SYSTEM]),
    "two system turns": ("s:S s:T u:q a:x", {"system_into_user": True}, "u:S||T||q a:x", [SYSTEM]),
    "two of the user": ("u:q u:r a:x", {"join_same_role": True}, "u:q||r a:x", [JOINED]),
    "three of the assistant": ("u:q a:x a:y a:z", {"join_same_role": "\n"}, "u:q a:x|y|z", [JOINED]),
    "joined by nothing": ("u:q a:x a:y", {"join_same_role": ""}, "u:q a:xy", [JOINED]),
    "two system turns joined": ("s:S s:T u:q a:x", {"join_same_role": True}, "s:S||T u:q a:x", [JOINED]),
    "a greeting dropped": ("a:hi u:q a:x", {"first_greeting": "drop"}, "u:q a:x", ["dropped: 1"]),
    "a greeting behind a system turn": ("s:S a:hi u:q a:x", {"first_greeting": "drop"}, "s:S u:q a:x", ["dropped: 1"]),
    "a greeting kept": ("a:hi u:q a:x", {"first_greeting": "keep"}, "a:hi u:q a:x", ["kept as context"]),
    "all of them": ("s:S a:hi a:ho u:q s:T u:r a:x", ALL, "u:S||q||T||r a:x", ["dropped: 1", SYSTEM, JOINED]),
    "nothing to mend": ("u:q a:x", ALL, "u:q a:x", []),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_conversation_is_repaired_and_counted(name: str) -> None:
    given, repairs, wanted, notes = DEMONSTRATIONS[name]
    example, told = read_one({"messages": turns(given)}, **repairs)
    assert isinstance(example, Demonstration) and said(example.messages) == wanted
    assert len(told) == len(notes) and all(any(words in note for note in told) for words in notes)


@pytest.mark.parametrize("name", [name for name in DEMONSTRATIONS if name not in ("a system turn", "nothing to mend")])
def test_the_same_conversation_is_refused_where_nothing_is_asked_for(name: str) -> None:
    with pytest.raises(RowError):
        pt.read([{"messages": turns(DEMONSTRATIONS[name][0])}])


def test_a_greeting_that_is_kept_does_not_train() -> None:
    example, _ = read_one({"messages": turns("a:hi u:q a:x")}, first_greeting="keep")
    assert isinstance(example, Demonstration)
    assert [turn.train for turn in example.messages] == [False, None, None]


def test_both_sides_of_a_pair_are_repaired_alike() -> None:
    row = {"chosen": turns("s:S a:hi u:q a:x"), "rejected": turns("s:S a:hi u:q a:y a:z")}
    pair, notes = read_one(row, **ALL)
    assert isinstance(pair, Comparison)
    assert said(pair.prompt) == "u:S||q" and [said(side) for side in pair.responses] == ["a:x", "a:y||z"]
    assert any("dropped: 2" in note for note in notes)
    given, _ = read_one({"prompt": "q", "system": "S", "chosen": "x", "rejected": "y"}, system_into_user=True)
    assert isinstance(given, Comparison) and said(given.prompt) == "u:S||q"


def test_columns_prompts_and_tasks_are_repaired() -> None:
    alpaca, _ = read_one({"instruction": "q", "output": "x", "system": "S"}, system_into_user=True)
    assert isinstance(alpaca, Demonstration) and said(alpaca.messages) == "u:S||q a:x"
    task, _ = read_one({"prompt": turns("s:S a:hi u:q u:r"), "answer": "4"}, **ALL)
    assert isinstance(task, Task) and said(task.prompt) == "u:S||q||r"


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "1"}
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}
UNJOINED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "text behind a call": ([U, CALL, A], "before the calls of the first"),
    "thoughts behind text": ([U, A, {**A, "reasoning_content": "so"}], "thoughts of the second would move"),
    "other flags": ([U, A, {**A, "train": False}], "one of them trains and the other does not"),
    "a cut turn": ([U, {**A, "complete": False}, A], "cut before its end"),
    "other names": ([{**U, "name": "Ann"}, {**U, "name": "Ben"}, A], "their names differ"),
}


@pytest.mark.parametrize("name", UNJOINED)
def test_turns_that_no_single_turn_can_hold_are_refused(name: str) -> None:
    messages, words = UNJOINED[name]
    with pytest.raises(RowError, match="cannot be joined") as caught:
        pt.read([{"messages": messages}], repairs={"join_same_role": True})
    assert words in caught.value.problem and caught.value.reason == "repeated_role" and "row 1" in str(caught.value)


def test_text_before_a_call_is_joined_with_it_and_results_stay_apart() -> None:
    example, _ = read_one({"messages": [U, A, CALL, RESULT, RESULT, A]}, join_same_role=True)
    assert isinstance(example, Demonstration)
    assert [turn.role for turn in example.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert example.messages[1].content == "x" and len(example.messages[1].tool_calls) == 1


def test_a_call_that_comes_first_is_no_greeting() -> None:
    for greeting in ("drop", "keep"):
        with pytest.raises(RowError) as caught:
            pt.read([{"messages": [CALL, RESULT, A, U, A]}], repairs={"first_greeting": greeting})
        assert caught.value.reason == "starts_with_assistant"


def test_flags_that_one_turn_cannot_keep_are_refused() -> None:
    row = {"messages": [{"role": "system", "content": "S", "train": True}, U, A]}
    with pytest.raises(RowError, match="only one of the two has a flag") as caught:
        pt.read([row], repairs={"system_into_user": True})
    assert caught.value.reason == "bad_flag"


def test_a_system_turn_with_no_user_behind_it_is_refused_in_its_place() -> None:
    with pytest.raises(RowError, match="turn 3 of 'messages' is a system prompt in the middle"):
        pt.read([{"messages": turns("u:q a:x s:S")}], repairs={"system_into_user": True})


REFUSED = {
    "late_system": "u:q a:x s:S u:r a:y",
    "repeated_role": "u:q u:r a:x",
    "starts_with_assistant": "a:hi u:q a:x",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_an_error_names_the_repair_and_it_reads(reason: str) -> None:
    row = {"messages": turns(REFUSED[reason])}
    with pytest.raises(RowError) as caught:
        pt.read([row])
    assert caught.value.reason == reason
    key, value = caught.value.remedy.split("`repairs: {")[1].split("}`")[0].split(": ")
    assert len(pt.read([row], repairs={key: True if value == "true" else value})) == 1


def test_a_template_that_refuses_a_system_turn_names_the_repair_and_trains_it() -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = family_encoder(template, ("<|im_start|>", "<|im_end|>"))
    rows = [{"messages": turns("s:S u:q a:x")}]
    (row,) = pt.read(rows)
    with pytest.raises(TemplateError) as caught:
        encoder.demonstration(row)  # type: ignore[arg-type]
    assert "`repairs: {system_into_user: true}`" in caught.value.remedy
    (folded,) = pt.read(rows, repairs={"system_into_user": True})
    (tree,) = encoder.demonstration(folded)  # type: ignore[arg-type]
    assert "user\nS\n\nq<|im_end|>" in shown(encoder, tree)


def test_repairs_of_refused_rows_are_not_counted() -> None:
    rows = [{"messages": turns("u:q u:r a:x")}, {"messages": turns("u:q u:r")}]
    examples = pt.read(rows, bad_rows="skip", repairs={"join_same_role": True})
    assert examples.counts.repairs == {"join_same_role": 1} and len(examples) == 1
    assert repair_notes({"join_same_role": 1200}) == (
        "turns joined to the one before them, of the same role: 1,200 (`repairs`)",
    )


def test_arguments_are_checked_before_a_file_is_opened() -> None:
    assert Repairs.of(None) is NONE and Repairs.of(NONE) is NONE
    with pytest.raises(UnknownKeyError, match="did you mean `join_same_role`"):
        pt.read("nowhere.jsonl", repairs={"join_same_roles": True})
    for wrong, words in (
        ({"system_into_user": "yes"}, "`repairs.system_into_user` is 'yes'"),
        ({"join_same_role": 1}, "`repairs.join_same_role` is 1"),
        ({"first_greeting": "leave"}, "`repairs.first_greeting` is 'leave'"),
        (True, "`repairs` is True"),
    ):
        with pytest.raises(ConfigError) as caught:
            pt.read("nowhere.jsonl", repairs=wrong)  # type: ignore[arg-type]
        assert words in caught.value.problem and "repairs: {" in caught.value.remedy


def test_a_recipe_repairs_what_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns("s:S u:q u:r a:x")}) + "\n")
    data = Data.model_validate({"path": str(path), "repairs": {"system_into_user": True, "join_same_role": "|"}})
    examples = read_data(data, Demonstration, tmp_path / "bad.jsonl")
    assert [said(row.messages) for row in examples if isinstance(row, Demonstration)] == ["u:S||q|r a:x"]
    assert len(examples.counts.notes) == 2
    path.write_text(json.dumps({"prompt": turns("s:S u:q"), "answer": "4"}) + "\n")
    notes: list[str] = []
    assert [said(task.prompt) for task in read_tasks(data, notes)] == ["u:S||q"] and len(notes) == 1
