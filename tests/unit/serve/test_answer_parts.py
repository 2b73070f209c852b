"""Answers as thoughts, content and calls: the same parts however the text is cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.templates.thoughts import THINK, ThoughtMarks
from posttrain.serve.answer_parts import AnswerParts, Part
from posttrain.serve.call_format import CallFormat
from posttrain.serve.call_notations import Call

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
HERMES = CallFormat("json", "<tool_call>", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "", "")
BARE = CallFormat("json", "", "", "", "", "")
ADD = '{"name": "add", "arguments": {"a": 1}}'


def joined(parts: list[Part]) -> list[Part]:
    """Neighbours of one kind as one: how often a stream gives something is no matter."""
    result: list[Part] = []
    for part in parts:
        if result and part.call is None and result[-1].kind == part.kind:
            result[-1] = Part(part.kind, result[-1].text + part.text)
        else:
            result.append(part)
    return result


def read(text: str, *, cuts: list[int] | None = None, **options: object) -> list[Part]:
    parts = AnswerParts(tools=TOOLS, **options)  # type: ignore[arg-type]
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts or [])})
    found = [part for start, end in pairwise(places) for part in parts.push(text[start:end])]
    return joined(found + parts.finish())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4.", [Part("content", "4.")]),
        ("  4. ", [Part("content", "  4. ")]),
        ("<think>\n2 and 2\n</think>\n\n4.", [Part("reasoning", "2 and 2"), Part("content", "4.")]),
        ("<think></think>4.", [Part("content", "4.")]),
        ("<think>\n2 and", [Part("reasoning", "2 and")]),
        ("<thin", [Part("content", "<thin")]),
        ("4 <think>x</think>", [Part("content", "4 <think>x</think>")]),
    ],
)
def test_thoughts(text: str, expected: list[Part]) -> None:
    assert read(text, marks=[THINK]) == expected


def test_a_thought_that_the_prompt_has_opened() -> None:
    expected = [Part("reasoning", "2 and 2"), Part("content", "4.")]
    assert read("2 and 2</think>\n4.", marks=[THINK], opened=THINK) == expected
    assert read("<think>\n2 and 2</think>\n4.", marks=[THINK], opened=THINK) == expected
    assert read("never closed", marks=[THINK], opened=THINK) == [Part("reasoning", "never closed")]


def test_without_marks_nothing_is_a_thought() -> None:
    assert read("<think>2</think>4.") == [Part("content", "<think>2</think>4.")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<tool_call>\n{ADD}\n</tool_call>", [Part("call", "", Call("add", {"a": 1}))]),
        (
            f"Let me see.\n\n<tool_call>{ADD}</tool_call>",
            [Part("content", "Let me see."), Part("call", "", Call("add", {"a": 1}))],
        ),
        (f"<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{ADD}", [Part("call", "", Call("add", {"a": 1}))] * 2),
        ("<tool_call>\n{broken", [Part("content", "<tool_call>\n{broken")]),
        ("a <tool_", [Part("content", "a <tool_")]),
        ("no call \n", [Part("content", "no call \n")]),
    ],
)
def test_calls(text: str, expected: list[Part]) -> None:
    assert read(text, calls=HERMES) == expected


def test_a_call_that_nothing_announces() -> None:
    assert read(ADD, calls=BARE) == [Part("call", "", Call("add", {"a": 1}))]
    other = '{"name": "Pia", "arguments": {"a": 1}}'
    assert read(other, calls=BARE) == [Part("content", other)], "JSON that names no tool is an answer"
    assert read(f"{ADD} and more", calls=BARE) == [Part("content", f"{ADD} and more")]
    assert read("  \n", calls=BARE) == [Part("content", "  \n")]


TEXTS = (
    f"<think>\nso <tool_call> is a mark \n</think>\n\n Let me \n see.\n<tool_call>\n{ADD}\n</tool_call>\n",
    f"{ADD}",
    "<think>only",
    "plain \n text <",
    f"<tool_call>{ADD}</tool_call> and so on <tool_call>{{}}",
)


@given(st.sampled_from(TEXTS), st.lists(st.integers(0, 200), max_size=12), st.booleans(), st.booleans())
def test_pieces_are_read_as_the_whole_is(text: str, cuts: list[int], bare: bool, opened: bool) -> None:
    options = {
        "marks": [ThoughtMarks("[THINK]", "[/THINK]"), THINK],
        "opened": THINK if opened else None,
        "calls": BARE if bare else HERMES,
    }
    assert read(text, cuts=cuts, **options) == read(text, **options)


def test_what_is_certain_is_given_at_once() -> None:
    parts = AnswerParts([THINK], calls=HERMES, tools=TOOLS)
    assert parts.push("<think>a") == [Part("reasoning", "a")]
    assert parts.push(" b</th") == [Part("reasoning", " b")]
    assert parts.push("ink>\n") == []
    assert parts.push("c ") == [Part("content", "c")]
    assert parts.push("d<tool") == [Part("content", " d")]
    assert parts.push("ed>") == [Part("content", "<tooled>")]
