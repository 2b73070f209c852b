"""What makes an answer good, and how a recipe's suites become questions."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from posttrain.config.suites import ExactSuite, MatchSuite, NumberSuite, PerplexitySuite, Sampling
from posttrain.data.questions import Question, question
from posttrain.errors import RowError
from posttrain.evaluate.suites import AnswerSuite, load_suite
from posttrain.evaluate.suites.exact import equals
from posttrain.evaluate.suites.match import matches
from posttrain.evaluate.suites.number import last_number_equals
from posttrain.evaluate.suites.perplexity import Perplexity
from posttrain.rewards.numbers import last_number
from posttrain.types import Comparison, Message, RowRef, Task
from tests.fixtures import chat, demonstration

ROW = RowRef("test.jsonl", 1)


def asked(answer: str | None = None) -> Question:
    return Question(chat("?"), answer, ROW)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 42", "42"),
        ("42.", "42"),
        ("42.0", "42"),
        ("$42.", "42"),
        ("1,234", "1234"),
        ("It costs $1,234,567.89, I think.", "1234567.89"),
        ("-5", "-5"),
        ("x = -5", "-5"),
        ("(-5)", "-5"),
        ("\u22127", "-7"),
        ("-$3.50", "-3.5"),
        ("$-3.50", "-3.5"),
        ("10 - 5 = 5", "5"),
        ("17-5", "5"),
        ("f(2)-3", "3"),
        ("2, 3", "3"),
        ("1,23", "23"),
        (".5", "0.5"),
        ("1.5e3", "1500"),
        ("2e", "2"),
        ("**72**", "72"),
        ("\\boxed{8}", "8"),
        ("#### 18", "18"),
        ("100%", "100"),
        ("007", "7"),
        ("-0", "0"),
    ],
)
def test_the_last_number_of_a_text(text: str, value: str) -> None:
    assert last_number(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "none", "five", "-", "$", "1.2.3.".replace("1.2.3.", "...")])
def test_a_text_without_numbers_has_none(text: str) -> None:
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("It is 1,234.", "1234", 1),
        ("-5", "5", 0),
        ("42.0", "#### 42", 1),
        ("First 42, then 7.", "42", 0),
        ("0.1", "0.10", 1),
        ("0.3", "0.30000000000000004", 0),
        ("no idea", "0", 0),
        ("The answer is 42. This took 3 steps.", "42", 1),
        ("The answer is 42. This took 3 steps.", "3", 0),
        ("It is 1/2.", "2", 0),
        ("It is 1/2.", "0.5", 1),
        ("1/2", "1/2", 1),
        ("5 or 6", "6", 0),
        ("3 + 5", "8", 0),
        (r"\boxed{8}, as 3 + 5 = 8, not 9", "8", 1),
        ("I have 3 apples and 4 pears", "I have 3 apples and 4 pears", 1),
    ],
)
def test_an_answer_is_right_if_its_last_number_has_the_value(answer: str, gold: str, score: int) -> None:
    assert last_number_equals(answer, asked(gold)) == score


def test_match_and_exact() -> None:
    assert matches(r"\bPia\b")("I am Pia.", asked()) == 1
    assert matches(r"\bPia\b")("I play piano.", asked()) == 0
    assert matches(r"\bpia\b")("I am Pia.", asked()) == 0
    assert matches(r"\bpia\b", ignore_case=True)("I am Pia.", asked()) == 1
    assert equals(" yes\n", asked("yes")) == 1
    assert equals("Yes", asked("yes")) == 0
    assert equals("", asked(None)) == 0


def test_questions_of_every_kind_of_row() -> None:
    task = Task(chat("2 + 2?"), "4", ROW)
    assert question(task) == Question(chat("2 + 2?"), "4", ROW)
    last = question(demonstration("Hi", "Hello.", "Who?", "Pia."))
    assert (last.prompt, last.answer) == (chat("Hi", "Hello.", "Who?"), "Pia.")
    pair = Comparison(chat("Hi"), ((Message("assistant", "Bah."),), (Message("assistant", "Hello."),)), 1, ROW)
    assert question(pair).answer == "Hello."
    assert question(demonstration("Hi", "Hello.", system="Be kind.")).text == "system: Be kind.\nuser: Hi"
    assert question(task).text == "2 + 2?"


def written(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_recipes_suites_become_suites(tmp_path: Path) -> None:
    sums = written(tmp_path / "sums.jsonl", {"prompt": "2 + 2?", "answer": 4}, {"prompt": "3 + 3?", "answer": "6"})
    number = load_suite(NumberSuite(name="sums", kind="number", prompts=sums, limit=1))
    assert isinstance(number, AnswerSuite)
    assert (number.metric, len(number.questions), number.judge("It is 4.0", number.questions[0])) == ("accuracy", 1, 1)
    sampling = Sampling(temperature=0.5, max_new_tokens=7)
    match = load_suite(
        MatchSuite(name="m", kind="match", prompts=sums, pattern="X", sampling=sampling, samples_per_prompt=3)
    )
    assert isinstance(match, AnswerSuite)
    assert (match.metric, match.samples_per_prompt, match.sampling.temperature) == ("match", 3, 0.5)
    assert match.sampling.max_new_tokens == 7
    drift = load_suite(PerplexitySuite(name="p", kind="perplexity", prompts=sums))
    assert isinstance(drift, Perplexity)
    assert drift.sampling.is_greedy


@pytest.mark.parametrize(
    ("kind", "answer", "problem"),
    [(NumberSuite, "four", "holds no number"), (NumberSuite, None, "no answer"), (ExactSuite, None, "no answer")],
)
def test_a_row_that_no_model_could_get_right_is_refused(
    tmp_path: Path, kind: type, answer: str | None, problem: str
) -> None:
    row = {"prompt": "2 + 2?"} | ({} if answer is None else {"answer": answer})
    path = written(tmp_path / "bad.jsonl", {"prompt": "1 + 1?", "answer": "2"}, row)
    with pytest.raises(RowError, match=problem) as refused:
        load_suite(kind(name="s", kind={NumberSuite: "number", ExactSuite: "exact"}[kind], prompts=path))
    assert "row 2" in str(refused.value)
