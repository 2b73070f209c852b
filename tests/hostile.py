"""Completions that a collapsed or a scheming policy may write, and the rewards that have to bear them.

Made by rules, so that every run asks the same; each text has the size that is asked for, give or take one repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from posttrain.types import Message, RowRef, Task

PROMPT = (Message("user", "What is 2 + 2? Answer in JSON, and repeat the question."),)


def repeated(unit: str, size: int) -> str:
    return (unit * (size // len(unit) + 1))[:size]


def nested(opening: str, inside: str, closing: str, size: int) -> str:
    count = size // (len(opening) + len(closing))
    return opening * count + inside + closing * count


def in_the_middle(before: str, filling: str, after: str, size: int) -> str:
    return before + repeated(filling, size) + after


def letters_of_all_planes(size: int) -> str:
    """Every few hundredth code point, the surrogates included."""
    return "".join(chr(32 + 397 * place % 0x10FF00) for place in range(size))


TEXTS: Mapping[str, Callable[[int], str]] = {
    "one letter": lambda size: "a" * size,
    "two letters in turn": lambda size: repeated("ab", size),
    "a word": lambda size: repeated("Ada ", size),
    "groups of digits": lambda size: repeated("111,", size) + "1",
    "digits": lambda size: "1" * size,
    "digits in a box": lambda size: rf"\boxed{{{'1' * size}}}",
    "points": lambda size: repeated("1.", size),
    "exponents": lambda size: repeated("9^", size) + "9",
    "signs": lambda size: repeated("+-", size) + "1",
    "brackets that stay open": lambda size: "[" * size,
    "nested lists": lambda size: nested("[", "", "]", size),
    "nested lists below any limit of depth": lambda size: nested("[", "", "]", 1800) + " " * (size - 1800),
    "nested objects": lambda size: nested('{"a":', "1", "}", size),
    "boxes that stay open": lambda size: repeated(r"\boxed{", size),
    "nested boxes": lambda size: nested(r"\boxed{", "4", "}", size),
    "boxes in a row": lambda size: repeated(r"\boxed{4} ", size),
    "nested fractions": lambda size: r"\boxed{" + nested(r"\frac{1}{", "2", "}", size) + "}",
    "braces": lambda size: repeated("{}", size),
    "dollars": lambda size: repeated("$ ", size) + "4",
    "the answer is": lambda size: repeated("the answer is ", size),
    "a number beyond a double": lambda size: in_the_middle('{"n": 1e999, "t": "', "a", '"}', size),
    "numbers beyond a double": lambda size: "[" + ",".join(["1e999"] * (size // 6)) + "]",
    "a number of many digits in a list": lambda size: f"[{'9' * size}]",
    "titles that stay open": lambda size: repeated("<<", size),
    "tags that stay open": lambda size: repeated("<answer>", size),
    "tags and thoughts": lambda size: repeated("<think></think><answer>4</answer>", size),
    "blanks": lambda size: in_the_middle("a", " ", "a", size),
    "line ends": lambda size: in_the_middle("a", "\n", "a", size),
    "fences": lambda size: repeated("```json\n", size),
    "stars": lambda size: repeated("*", size) + "a",
    "markup": lambda size: repeated("<div class='a'><script>alert(1)</script>", size),
    "control signs": lambda size: repeated("\x00\x1b[2J\x07\x7f\x85", size),
    "halves of letters": lambda size: repeated("\ud800\udfff", size),
    "letters of all planes": letters_of_all_planes,
}
"""34 texts, by what is wrong with them: name -> (size in characters) -> text."""

SCHEMA = {
    "anyOf": [
        {"type": "object", "properties": {"n": {"type": "number", "multipleOf": 0.01}, "t": {"pattern": "^(a+)+$"}}},
        {"type": "array", "uniqueItems": True, "items": {"$ref": "#"}},
    ]
}
"""Asks for what is slow or raises: multiples, a pattern with nested repeats, itself."""
INSTRUCTIONS = (
    {"id": "keywords:existence", "keywords": ["(a+)+$", "(a|a)*b", "x*x*x*y"]},
    {"id": "keywords:frequency", "keyword": "(a+)+$", "frequency": 2, "relation": "at least"},
    {"id": "keywords:forbidden_words", "forbidden_words": [r"(\w+\s?)+!", "word"]},
    {"id": "keywords:letter_frequency", "letter": "a", "let_frequency": 3, "let_relation": "at least"},
    {"id": "language:response_language", "language": "de"},
    {"id": "length_constraints:number_words", "num_words": 3, "relation": "at least"},
    {"id": "length_constraints:number_sentences", "num_sentences": 3, "relation": "at least"},
    {"id": "length_constraints:number_paragraphs", "num_paragraphs": 2},
    {
        "id": "length_constraints:nth_paragraph_first_word",
        "num_paragraphs": 2,
        "nth_paragraph": 1,
        "first_word": "a",
    },
    {"id": "detectable_content:number_placeholders", "num_placeholders": 2},
    {"id": "detectable_content:postscript", "postscript_marker": "P.S."},
    {"id": "detectable_content:postscript", "postscript_marker": "(a+)+:"},
    {"id": "detectable_format:number_bullet_lists", "num_bullets": 2},
    {"id": "detectable_format:number_highlighted_sections", "num_highlights": 2},
    {"id": "detectable_format:multiple_sections", "section_spliter": "(?:1,?)*#", "num_sections": 2},
    {"id": "detectable_format:constrained_response"},
    {"id": "detectable_format:json_format"},
    {"id": "detectable_format:title"},
    {"id": "combination:two_responses"},
    {"id": "combination:repeat_prompt", "prompt_to_repeat": "What is 2 + 2?"},
    {"id": "startend:end_checker", "end_phrase": "the end"},
    {"id": "startend:quotation"},
    {"id": "change_case:capital_word_frequency", "capital_frequency": 2, "capital_relation": "at least"},
    {"id": "change_case:english_capital"},
    {"id": "change_case:english_lowercase"},
    {"id": "punctuation:no_comma"},
)
BOMB = r"^(?:a+)+$|(?:\d+,?)+#|(?:\w*\s*)*!|.*.*.*=.*;"
"""A pattern whose time grows exponentially, or with a power of the length, on the texts above."""


Spec = tuple[dict[str, Any], str | None, dict[str, Any]]


def _instruction_specs() -> dict[str, Spec]:
    return {
        f"instructions {variant} {part}": (
            {"kind": "instructions", "variant": variant},
            None,
            {"instructions": list(rows)},
        )
        for variant in ("strict", "own")
        for part, rows in enumerate((INSTRUCTIONS[:13], INSTRUCTIONS[13:]), 1)
    }


SPECS: Mapping[str, Spec] = {
    "math": ({"kind": "math"}, "4", {}),
    "math boxed": ({"kind": "math", "require_boxed": True}, r"\frac{1}{2}", {}),
    "math of a choice": ({"kind": "math"}, "(C) 12", {}),
    "math of a set": ({"kind": "math"}, r"\{1, 2, 3\}", {}),
    "math of a formula": ({"kind": "math"}, "x^2 + 2x + 1", {}),
    "exact": ({"kind": "exact"}, "Ada Lovelace", {}),
    "exact tag": ({"kind": "exact", "tag": "answer", "ignore_case": True}, "4", {}),
    "fuzzy words": ({"kind": "fuzzy"}, "Ada Lovelace wrote it", {}),
    "fuzzy letters": ({"kind": "fuzzy", "measure": "characters"}, "Ada Lovelace wrote it", {}),
    "fuzzy letters of a long answer": ({"kind": "fuzzy", "measure": "characters"}, "ab" * 2000, {}),
    "fuzzy tag": ({"kind": "fuzzy", "tag": "answer", "at_least": 0.5}, "4", {}),
    "regex": ({"kind": "regex", "pattern": BOMB}, None, {}),
    "regex whole": ({"kind": "regex", "pattern": r"(?:a|a|b)*c", "whole": True}, None, {}),
    "regex absent": ({"kind": "regex", "pattern": BOMB, "absent": True, "ignore_case": True}, None, {}),
    "regex of the row": ({"kind": "regex"}, None, {"pattern": r"<think>.*?</think>\s*<answer>.*?</answer>\s*$"}),
    "json": ({"kind": "json_schema"}, None, {}),
    "json schema": ({"kind": "json_schema", "schema": SCHEMA}, None, {}),
    "json schema of the row": ({"kind": "json_schema"}, None, {"schema": SCHEMA["anyOf"][1]}),
    "format": ({"kind": "format"}, None, {}),
    "format partial": ({"kind": "format", "tags": ["a", "b", "c"], "partial": True}, None, {}),
    "think_tags": ({"kind": "think_tags"}, None, {}),
    "think_tags partial": ({"kind": "think_tags", "opened": True, "partial": True}, None, {}),
    "length": ({"kind": "length", "target": 10, "tolerance": 5, "unit": "words"}, None, {}),
    "overlong": ({"kind": "overlong", "max_length": 10, "buffer": 5}, None, {}),
    "cosine": ({"kind": "cosine", "of": {"kind": "math"}, "max_length": 10}, "4", {}),
    "repetition": ({"kind": "repetition"}, None, {}),
    "repetition long": ({"kind": "repetition", "ngram": 20}, None, {}),
    "language": ({"kind": "language", "language": "en"}, None, {}),
    "language of the prompt": ({"kind": "language"}, None, {}),
    "refusal": ({"kind": "refusal"}, None, {}),
    "refusal of the row": ({"kind": "refusal", "want": "row"}, None, {"refuse": True}),
    "instructions ifeval": (
        {"kind": "instructions", "partial": False},
        None,
        {
            "instruction_id_list": ["detectable_format:title", "keywords:existence"],
            "kwargs": [{}, {"keywords": ["(a*)*b"]}],
        },
    ),
    **_instruction_specs(),
}
"""36 entries of a recipe with the row that they are asked about: name -> (entry, answer, other columns)."""


def task_of(answer: str | None, columns: Mapping[str, Any]) -> Task:
    return Task(PROMPT, answer, RowRef("hostile.jsonl", 1), dict(columns))
