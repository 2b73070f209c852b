"""Each constraint met and missed, and rows that state one wrongly."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.errors import RewardError
from posttrain.rewards.instructions import CONSTRAINTS, constraints, instructions
from posttrain.types import Message, RowRef, Task

PROMPT = (Message("user", "Write."),)


def task(**metadata: Any) -> Task:
    return Task(PROMPT, None, RowRef("ifeval.jsonl", 7), metadata)


def meets(name: str, arguments: dict[str, Any], answer: str) -> float | None:
    return instructions(PROMPT, answer, task(instruction_id_list=[name], kwargs=[arguments]))


CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["apple", "Pear"]}, "An Apple and a pear.", "A pineapple and a pear."),
    (
        "keywords:frequency",
        {"keyword": "red", "frequency": 2, "relation": "at least"},
        "Red, red.",
        "Red, reddish.",
    ),
    ("keywords:frequency", {"keyword": "red", "frequency": 2, "relation": "less than"}, "Red.", "Red red."),
    ("keywords:forbidden_words", {"forbidden_words": ["bad"]}, "A badge.", "Not bad."),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        "Eleven e",
        "Ten eggs",
    ),
    ("language:response_language", {"language": "de"}, "Das ist ein Haus und es ist neu.", "This is a house."),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "It's one two three", "One two x-y"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two", "one two three"),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        'One. "Two!" Three?',
        "It is 3.5 km. Two.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", "One\n***\n\n***\nTwo"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        'First.\n\n"Then, more.',
        "First.\n\nNow then.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [street]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. More.", "Bye. Ps More"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. More.", "Bye.\nP.S. More"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two\n**bold**", "* one\n* two\n* three"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and ** **"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na",
    ),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A day>>\nIt was.", "<< >>\nIt was."),
    ("combination:two_responses", {}, "One.******Two.", "One.******One."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write it."}, "write it.\nDone.", "Done. Write it."),
    ("startend:end_checker", {"end_phrase": "Any more?"}, "So. any more?", "Any more? No."),
    ("startend:quotation", {}, '"All of it."', '"All" of it.'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "THIS and THAT",
        "THIS and That",
    ),
    ("change_case:english_capital", {}, "THIS IS THE END OF IT.", "THIS is THE END."),
    ("change_case:english_lowercase", {}, "this is the end of it.", "This is the end."),
    ("punctuation:no_comma", {}, "one two", "one, two"),
]


@pytest.mark.parametrize(("name", "arguments", "right", "wrong"), CASES)
def test_a_constraint(name: str, arguments: dict[str, Any], right: str, wrong: str) -> None:
    assert meets(name, arguments, right) == 1
    assert meets(name, arguments, wrong) == 0
    assert meets(name, arguments, "  ") == 0, "no answer meets nothing"


def test_every_constraint_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CONSTRAINTS)
    assert len(CONSTRAINTS) == 25


def test_several_constraints() -> None:
    row = task(instructions=[{"id": "punctuation:no_comma"}, {"id": "startend:end_checker", "end_phrase": "end"}])
    assert instructions(PROMPT, "one, two", row) == 0
    assert instructions(PROMPT, "one two", row) == 0.5
    assert instructions(PROMPT, "one two", row, partial=False) == 0
    assert instructions(PROMPT, "<think>a, b</think>the end", row, partial=False) == 1


def test_rows_as_the_hub_gives_them() -> None:
    row = task(instruction_id_list=["punctuation:no_comma"], kwargs=[{"num_words": None, "relation": None}])
    assert constraints(row) == [("punctuation:no_comma", {})]
    assert instructions(PROMPT, "x", task()) is None


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}, "did you mean 'punctuation:no_comma'"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "another number of arguments"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end": "x"}]}, "end_phrase"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "about"}],
            },
            "neither 'at least' nor 'less than'",
        ),
    ],
)
def test_a_row_that_states_it_wrongly_is_named(metadata: dict[str, Any], words: str) -> None:
    if metadata["kwargs"] == []:
        metadata["kwargs"] = [{}, {}]
    with pytest.raises(RewardError) as caught:
        instructions(PROMPT, "one two", task(**metadata))
    assert words in str(caught.value) and "ifeval.jsonl, row 7" in str(caught.value)
