"""Each constraint met and missed, in both variants, and rows that state one wrongly."""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from typing import Any

import pytest

from posttrain.errors import MissingExtraError, RewardError
from posttrain.rewards.instructions import CONSTRAINTS, OWN, Variant, constraints, instructions
from posttrain.rewards.language import PUBLISHED, detect
from posttrain.types import Message, RowRef, Task

PROMPT = (Message("user", "Write."),)


def task(**metadata: Any) -> Task:
    return Task(PROMPT, None, RowRef("ifeval.jsonl", 7), metadata)


def meets(name: str, arguments: dict[str, Any], answer: str, variant: Variant = "strict") -> float | None:
    return instructions(PROMPT, answer, task(instruction_id_list=[name], kwargs=[arguments]), variant=variant)


class FakeLangdetect(types.ModuleType):
    """Says what our own detector says; the real package is not installed everywhere."""

    class LangDetectException(Exception):
        pass

    class DetectorFactory:
        seed: int | None = None

    def detect(self, text: str) -> str:
        found = detect(text)
        if found is None:
            raise self.LangDetectException("No features in text.")
        return found


@pytest.fixture(autouse=True)
def langdetect(monkeypatch: pytest.MonkeyPatch) -> FakeLangdetect:
    fake = FakeLangdetect("langdetect")
    monkeypatch.setitem(sys.modules, "langdetect", fake)
    return fake


CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["apple", "Pear"]}, "A pineapple and a pear.", "An Apple and a plum."),
    (
        "keywords:frequency",
        {"keyword": "red", "frequency": 2, "relation": "at least"},
        "Red, reddish.",
        "Red, green.",
    ),
    ("keywords:frequency", {"keyword": "red", "frequency": 2, "relation": "less than"}, "Red.", "Red red."),
    ("keywords:forbidden_words", {"forbidden_words": ["bad"]}, "A badge.", "Not bad."),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        "Eleven e",
        "Ten eggs",
    ),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist ein Haus und es ist neu.",
        "This is a house and it is new.",
    ),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "One two x-y", "One two xy"),
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
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye. P. S. More.", "Bye.\nPS: More"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP. P.S. More.", "Bye.\nPPS More"),
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


DIFFERENT: list[tuple[str, dict[str, Any], str, int, int]] = [
    ("keywords:existence", {"keywords": ["mom"]}, "The moms left.", 1, 0),
    ("keywords:existence", {"keywords": ["a.b"]}, "axb", 1, 0),
    ("keywords:frequency", {"keyword": "  red ", "frequency": 2, "relation": "at least"}, "red reddish", 1, 0),
    ("keywords:forbidden_words", {"forbidden_words": ["b.d"]}, "so bad", 0, 1),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "don't stop", 0, 1),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "well-known poet", 1, 0),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye, p.s. more", 1, 0),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nPPS: more", 0, 1),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "Dear [], hello", 1, 0),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "- one\n-\ntwo", 1, 0),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "***one***", 1, 0),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "then"},
        "*Then* more.",
        0,
        1,
    ),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "I'M", 1, 0),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, "U.S. won", 1, 0),
    ("language:response_language", {"language": "fr"}, "123!", 1, 0),
    ("change_case:english_lowercase", {}, "xyz", 1, 0),
    ("change_case:english_capital", {}, "XYZ", 1, 0),
]
"""What the two variants decide differently: (name, arguments, answer, strict, own)."""


@pytest.mark.parametrize(("name", "arguments", "answer", "strict", "own"), DIFFERENT)
def test_the_variants(name: str, arguments: dict[str, Any], answer: str, strict: int, own: int) -> None:
    assert meets(name, arguments, answer) == strict
    assert meets(name, arguments, answer, "own") == own


def test_every_difference_has_a_case() -> None:
    assert {name for name, *_ in DIFFERENT} == set(OWN) <= set(CONSTRAINTS)


@pytest.mark.parametrize("variant", ["strict", "own"])
@pytest.mark.parametrize(("name", "arguments"), [(name, arguments) for name, arguments, *_ in CASES])
@pytest.mark.parametrize("text", ["\n" * 9_999, "[" * 9_999, "* " * 9_999, "<<" * 9_999, "a" * 9_999, " ]" * 9_999])
def test_hostile_answers_take_no_time(name: str, arguments: dict[str, Any], text: str, variant: Variant) -> None:
    started = time.perf_counter()
    meets(name, arguments, f"x{text}x", variant)
    assert time.perf_counter() - started < 1


def test_languages_that_share_a_script(langdetect: FakeLangdetect, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"hindi": "hi", "marathi": "mr", "swahili": "sw"}
    monkeypatch.setattr(langdetect, "detect", lambda text: said[text])
    for text, language in said.items():
        for asked in said.values():
            assert meets("language:response_language", {"language": asked}, text) == (asked == language)
    assert langdetect.DetectorFactory.seed == 0, "its draws are seeded"


@pytest.mark.parametrize("variant", ["strict", "own"])
def test_a_language_that_nobody_can_tell_is_an_error(variant: Variant) -> None:
    with pytest.raises(RewardError) as caught:
        meets("language:response_language", {"language": "la"}, "Gallia est omnis divisa.", variant)
    assert "'la'" in str(caught.value) and "row 7" in str(caught.value)


def test_without_langdetect_strict_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(MissingExtraError, match="langdetect"):
        meets("language:response_language", {"language": "de"}, "Das ist ein Haus.")
    assert meets("language:response_language", {"language": "de"}, "Das ist ein Haus und es ist neu.", "own") == 1


@pytest.mark.skipif(importlib.util.find_spec("langdetect") is None, reason="needs the extra rl")
def test_the_real_langdetect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "langdetect")
    swahili = (
        "Watoto wanacheza mpira uwanjani kila siku baada ya shule. Mwalimu wao anawafundisha jinsi ya kuandika na "
        "kusoma vitabu vya Kiswahili."
    )
    marathi = "\u0939\u0947 \u090f\u0915 \u092a\u0941\u0938\u094d\u0924\u0915 \u0906\u0939\u0947."
    for language, text in (("sw", swahili), ("mr", marathi), ("en", "Mary saw three dogs running quickly.")):
        for asked in ("sw", "mr", "hi", "en", "fi"):
            assert meets("language:response_language", {"language": asked}, text) == (asked == language)
    langdetect = importlib.import_module("langdetect")
    langdetect.detect("x")
    # By its own name: where another test has loaded it, the new package does not get it as an attribute.
    factory = importlib.import_module("langdetect.detector_factory")
    assert set(factory._factory.get_lang_list()) == PUBLISHED


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
        ({"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}, "did you mean `punctuation:no_comma`"),
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
