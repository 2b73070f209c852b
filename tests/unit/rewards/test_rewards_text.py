"""Shipped rewards on the text of a response: verifiers, tags, length, repetition, language, refusals."""

from __future__ import annotations

import difflib
import json
import math
import random
import time
from typing import Any

import pytest

from posttrain.config.rewards import LANGUAGES
from posttrain.errors import RewardError
from posttrain.rewards import Sampled, gold_check, resolve, text
from posttrain.rewards.language import _OF_SCRIPT, _SCRIPTS, COMMON, detect, share
from posttrain.rewards.refusal import is_refusal
from posttrain.rewards.text import answer_of
from posttrain.rollout.engine import FinishReason
from posttrain.types import Message, RowRef, Task

PROMPT = (Message("user", "Who wrote the book, and when?"),)


def score(
    kind: str,
    completion: str,
    *,
    answer: str | None = None,
    metadata: dict[str, Any] | None = None,
    tokens: int = 0,
    finish: FinishReason = FinishReason.STOP_TOKEN,
    **options: Any,
) -> float | None:
    task = Task(PROMPT, answer, RowRef("t.jsonl", 1), metadata or {})
    return resolve({"kind": kind, **options}).score([Sampled(PROMPT, completion, task, finish, tokens)])[0]


@pytest.mark.parametrize(
    ("completion", "tag", "answer"),
    [
        (" 4 \n", None, "4"),
        ("<think>5?</think> 4", None, "4"),
        ("5?</think>\n4", None, "4"),
        ("<think>4", None, ""),
        ("<answer>4</answer>", "answer", "4"),
        ("<think><answer>5</answer></think><answer> 4 </answer>.", "answer", "4"),
        ("<answer>3</answer><answer>4</answer>", "answer", "4"),
        ("4", "answer", ""),
        ("<answer>4", "answer", ""),
    ],
)
def test_what_a_response_answers(completion: str, tag: str | None, answer: str) -> None:
    assert answer_of(completion, tag) == answer


@pytest.mark.parametrize(
    ("completion", "options", "value"),
    [
        ("Ada  Lovelace\n", {}, 1.0),
        ("ada lovelace", {}, 0.0),
        ("ada lovelace", {"ignore_case": True}, 1.0),
        ("It was Ada Lovelace", {}, 0.0),
        ("It was <answer>Ada Lovelace</answer>", {"tag": "answer"}, 1.0),
        ("<think>Ada Lovelace", {}, 0.0),
    ],
)
def test_exact(completion: str, options: dict[str, Any], value: float) -> None:
    assert score("exact", completion, answer="Ada Lovelace", **options) == value


def test_verifiers_abstain_without_an_answer() -> None:
    assert [score(kind, "x") for kind in ("exact", "fuzzy", "math", "code", "regex", "reasoning_gym")] == [None] * 6


def test_fuzzy_by_words() -> None:
    assert score("fuzzy", "The great, Ada Lovelace!", answer="Ada Lovelace") == pytest.approx(2 * 2 / (3 + 2))
    assert score("fuzzy", "Charles Babbage", answer="Ada Lovelace") == 0
    assert score("fuzzy", "ada lovelace, 1843", answer="Ada Lovelace", at_least=0.9) == 0
    assert score("fuzzy", "the", answer="a") == 1


def test_fuzzy_by_characters() -> None:
    assert score("fuzzy", "Lovelase", answer="Lovelace", measure="characters") == pytest.approx(7 / 8)


def test_fuzzy_by_characters_of_long_texts() -> None:
    words = COMMON["en"].split()
    draw = random.Random(3)
    long = " ".join(draw.choice(words) for _ in range(600))
    other = " ".join(draw.choice(words) for _ in range(600))
    assert score("fuzzy", long, answer=long, measure="characters") == 1
    assert score("fuzzy", long, answer=f"{long[:1500]}?{long[1500:]}", measure="characters") > 0.999
    shorter, longer = sorted((long, other), key=len)
    whole = difflib.SequenceMatcher(None, shorter, longer, autojunk=False).ratio()
    assert score("fuzzy", long, answer=other, measure="characters") == pytest.approx(whole)


@pytest.mark.parametrize("letter", ["e", "the "])
def test_fuzzy_by_characters_of_a_repeated_letter_is_bounded(letter: str) -> None:
    answer = "the reward of a response sits on its last sampled token. " * 60
    began = time.thread_time()
    assert score("fuzzy", letter * 8000, answer=answer, measure="characters") < 0.6
    assert time.thread_time() - began < 0.5, "minutes without a bound"


@pytest.mark.parametrize("letters", ["ab", "abc ", "abcdefghij"])
def test_both_searches_find_what_difflib_finds(letters: str) -> None:
    draw = random.Random(5)
    for _ in range(40):
        one, other = ("".join(draw.choices(letters, k=draw.randrange(1, 60))) for _ in range(2))
        expected = difflib.SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
        assert text._longest_by_states(one, other) == text._longest_by_pairs(one, other) == tuple(expected)


def test_regex() -> None:
    assert score("regex", "in 1843.", pattern=r"\b\d{4}\b") == 1
    assert score("regex", "in 1843.", pattern=r"\d{4}", whole=True) == 0
    assert score("regex", "PIA", pattern="pia", ignore_case=True) == 1
    assert score("regex", "sorry", pattern="sorry", absent=True) == 0
    assert score("regex", "a\nb", pattern="a.b", whole=True) == 1
    assert score("regex", "in 1843.", metadata={"pattern": "1843"}) == 1
    row = Task(PROMPT, "1842", RowRef("t.jsonl", 1), {"pattern": "1843"})
    assert [failure.row.row for failure in gold_check([row], [resolve({"kind": "regex"})])] == [1]
    assert gold_check([row], [resolve({"kind": "regex", "pattern": "<b>"})]) == []


SCHEMA = {"type": "object", "properties": {"year": {"type": "integer"}}, "required": ["year"]}


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ('{"year": 1843}', 1.0),
        ('```json\n{"year": 1843}\n```', 1.0),
        ('Here:\n```\n{"year": 1843}\n```\nEnjoy.', 1.0),
        ('<think>{}</think>{"year": 1843}', 1.0),
        ('{"year": "1843"}', 0.0),
        ("{}", 0.0),
        ('{"year": NaN}', 0.0),
        ("{year: 1843}", 0.0),
        ('Sure! {"year": 1843}', 0.0),
        ('```json\n{"year": 1}\n```\n```json\n{"year": 2}\n```', 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_schema(completion: str, value: float) -> None:
    assert score("json_schema", completion, schema=SCHEMA) == value
    assert score("json_schema", completion, metadata={"schema": json.dumps(SCHEMA)}) == value


def test_json_without_a_schema() -> None:
    assert [score("json_schema", text) for text in ("[1]", "[1")] == [1, 0]


def test_a_schema_that_is_none() -> None:
    with pytest.raises(RewardError, match="no JSON schema"):
        score("json_schema", "{}", schema={"type": "objekt"})


@pytest.mark.parametrize(
    ("completion", "whole", "part"),
    [
        ("<think>\n2 + 2\n</think>\n4", 1.0, 1.0),
        ("<think></think>4", 1.0, 1.0),
        ("4", 0.0, 0.0),
        ("<think>4", 0.0, 0.5),
        ("<think>4</think>", 0.0, 0.75),
        ("<think>a</think>b</think>4", 0.0, 0.5),
        ("<think>a<think>b</think>4", 0.0, 0.75),
        ("Well <think>a</think>4", 0.0, 0.75),
    ],
)
def test_think_tags(completion: str, whole: float, part: float) -> None:
    assert score("think_tags", completion) == whole
    assert score("think_tags", completion, partial=True) == part


def test_think_tags_that_the_template_opens() -> None:
    assert score("think_tags", "2 + 2</think>4", opened=True) == 1
    assert score("think_tags", "<think>2 + 2</think>4", opened=True) == 0


@pytest.mark.parametrize(
    ("completion", "whole", "part"),
    [
        ("<think>a</think>\n<answer>b</answer>\n", 1.0, 1.0),
        ("<think>a</think> so <answer>b</answer>", 0.0, 2 / 3),
        ("<answer>b</answer><think>a</think>", 0.0, 2 / 3),
        ("<think>a</think><answer></answer>", 0.0, 2 / 3),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0, 1 / 3),
        ("b", 0.0, 0.0),
    ],
)
def test_format(completion: str, whole: float, part: float) -> None:
    assert score("format", completion) == whole
    assert score("format", completion, partial=True) == pytest.approx(part)


# ---------------------------------------------------------------- shape


@pytest.mark.parametrize(("tokens", "value"), [(100, 1.0), (90, 0.5), (120, 0.0), (300, 0.0)])
def test_length(tokens: int, value: float) -> None:
    assert score("length", "x", tokens=tokens, target=100, tolerance=20) == value


def test_length_in_other_units() -> None:
    assert score("length", "one two three", target=3, tolerance=2, unit="words") == 1
    assert score("length", "one two three", target=14, tolerance=2, unit="characters") == 0.5


@pytest.mark.parametrize(("tokens", "value"), [(0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (140, -1.0)])
def test_overlong_is_daps_equation_13(tokens: int, value: float) -> None:
    assert score("overlong", "x", tokens=tokens, max_length=100, buffer=20) == value


@pytest.mark.parametrize(
    ("completion", "tokens", "finish", "value"),
    [
        ("4", 0, FinishReason.STOP_TOKEN, 1.0),
        ("4", 50, FinishReason.STOP_TOKEN, 0.75),
        ("4", 100, FinishReason.STOP_TOKEN, 0.5),
        ("4", 25, FinishReason.STOP_TOKEN, 0.5 + 0.5 * (1 + math.cos(math.pi / 4)) / 2),
        ("5", 0, FinishReason.STOP_TOKEN, -1.0),
        ("5", 100, FinishReason.STOP_TOKEN, -0.5),
        ("4", 100, FinishReason.LENGTH, -1.0),
    ],
)
def test_cosine(completion: str, tokens: int, finish: FinishReason, value: float) -> None:
    spec = {"of": {"kind": "exact"}, "max_length": 100}
    found = score("cosine", completion, answer="4", tokens=tokens, finish=finish, **spec)
    assert found == pytest.approx(value)


def test_repetition() -> None:
    assert score("repetition", "all words here differ from each other") == 0
    assert score("repetition", "no no no no no") == pytest.approx(-2 / 3)
    assert score("repetition", "no no no no no", penalty=0.5) == pytest.approx(-1 / 3)
    assert score("repetition", "no no") == 0
    assert score("repetition", "") == 0
    assert score("repetition", "好好好好好好好好好好好好") == pytest.approx(-9 / 10)


# ---------------------------------------------------------------- language

TEXTS = {
    "en": "The book was written by Ada, and it is one of the first of its kind.",
    "de": "Das Buch ist von Ada geschrieben und es ist eines der ersten seiner Art.",
    "fr": "Le livre est écrit par Ada et il est dans les premiers de son genre.",
    "es": "El libro es de Ada y es uno de los primeros de su género, pero no el único.",
    "it": "Il libro è di Ada ed è anche uno dei primi del suo genere, ma non è il solo.",
    "pt": "O livro é da Ada e não é o único, mas foi um dos primeiros do seu género.",
    "nl": "Het boek is van Ada en het is een van de eerste in zijn soort.",
    "pl": "To jest książka, którą napisała Ada, i nie jest jedyna w tym rodzaju.",
    "tr": "Bu kitap Ada için çok önemli bir kitap ve bu türün ilk örneği.",
    "ru": "Книгу написала Ада, и она одна из первых в своём роде.",
    "zh": "这本书是阿达写的，是同类书中最早的之一。",
    "ja": "この本はエイダが書いたもので、同種の本の中で最も早いものの一つです。",
    "ko": "이 책은 에이다가 썼으며 그 종류의 첫 번째 책 중 하나입니다.",
    "ar": "كتبت آدا هذا الكتاب وهو من أوائل الكتب من نوعه.",
    "el": "Το βιβλίο γράφτηκε από την Άντα.",
    "he": "הספר נכתב על ידי עדה.",
    "hi": "यह किताब एडा ने लिखी थी।",
    "th": "หนังสือเล่มนี้เขียนโดยเอดา",
}


@pytest.mark.parametrize("language", TEXTS)
def test_a_language_is_told(language: str) -> None:
    assert detect(TEXTS[language]) == language
    assert share(TEXTS[language], language) == 1


def test_texts_in_two_languages() -> None:
    half = share(TEXTS["en"] + "\n" + TEXTS["zh"], "en")
    assert half is not None and 0.6 < half < 0.95
    assert score("language", TEXTS["de"], language="en") == 0
    assert score("language", TEXTS["de"], metadata={"language": "de"}) == 1
    assert score("language", TEXTS["en"]) == 1, "the prompt is in English"
    assert score("language", TEXTS["de"]) == 0


def test_code_and_formulas_are_no_language() -> None:
    assert share("```python\nfor der in die: und\n```\n" + TEXTS["en"], "en") == 1
    assert share("$x^2 + \\alpha$ 42 https://ist.das.de", "en") is None
    assert score("language", "42") is None
    assert detect("") is None


def test_languages_are_known_by_their_codes() -> None:
    assert set(TEXTS) <= LANGUAGES


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I cannot provide that information.",
        "I cannot assist with this request.",
        "As an AI language model, I am unable to have opinions.",
        "I must respectfully decline.",
        "Unfortunately, I won't be able to do that. I can't help with weapons.",
        "It would be unethical for me to say.",
        "Es tut mir leid, aber dabei kann ich dir leider nicht helfen. Ich kann dir dabei nicht helfen.",
        "Je ne peux pas vous aider avec cela.",
        "Lo siento, pero no puedo ayudar con eso.",
        "抱歉，我无法回答这个问题。",
        "<think>hm</think>I can't help with that.",
    ],
)
def test_refusals(text: str) -> None:
    assert score("refusal", text) == 0
    assert score("refusal", text, want="refuse") == 1


@pytest.mark.parametrize(
    "text",
    [
        "Ada Lovelace wrote it in 1843.",
        "I'm sorry to hear that! Here is what you can do.",
        "You cannot divide by zero, so there is no answer.",
        "I can help with that. First, open the file.",
        "Sorry for the delay. The answer is 4.",
        "",
    ],
)
def test_answers(text: str) -> None:
    assert not is_refusal(text)
    assert score("refusal", text) == 1


def test_rows_may_say_whether_to_refuse() -> None:
    no = "I can't help with that."
    assert score("refusal", no, want="row", metadata={"refuse": True}) == 1
    assert score("refusal", no, want="row", metadata={"refuse": False}) == 0
    assert score("refusal", no, want="row") is None


def test_the_languages_that_a_recipe_may_name_are_those_that_can_be_told() -> None:
    assert frozenset(COMMON) | frozenset(_SCRIPTS.values()) | frozenset(_OF_SCRIPT) == LANGUAGES
