"""What a model is asked, and what makes an answer good.

    identity = AnswerSuite("identity", questions(read("heldout.jsonl")), metric="match", judge=matches(r"\\bPia\\b"))
    arithmetic = AnswerSuite("arithmetic", questions(read("sums.jsonl")), metric="accuracy", judge=last_number_equals)
    drift = PerplexitySuite("unrelated", questions(read("unrelated.jsonl")))

A judge is a plain function of the answer's text and the question, and returns 0 to 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.config.suites import (
    ExactSuite,
    MatchSuite,
    NumberSuite,
    SuiteSettings,
)
from posttrain.config.suites import PerplexitySuite as PerplexitySettings
from posttrain.config.suites import WinRateSuite as WinRateSettings
from posttrain.data import read
from posttrain.errors import RowError
from posttrain.rewards.numbers import last_number
from posttrain.rollout.sampling import SamplingDistribution
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef, Task

GREEDY = SamplingDistribution(temperature=0.0, max_new_tokens=128)


@dataclass(frozen=True, slots=True)
class Question:
    """Question((Message("user", "2 + 2?"),), answer="4", row=RowRef("sums.jsonl", 1))"""

    prompt: tuple[Message, ...]
    answer: str | None
    """The right or wanted answer, None where the row has none."""
    row: RowRef
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """The prompt for people: its only message, or its messages with their roles."""
        if len(self.prompt) == 1:
            return self.prompt[0].content or ""
        return "\n".join(f"{message.role}: {message.content or ''}" for message in self.prompt)


Judge = Callable[[str, Question], float]


@dataclass(frozen=True, slots=True)
class AnswerSuite:
    """Questions whose sampled answers a judge scores."""

    name: str
    questions: Sequence[Question]
    metric: str
    """Name of the mean of the judge's scores: "match" or "accuracy"."""
    judge: Judge
    sampling: SamplingDistribution = GREEDY
    """Stop ids and seed are the evaluation's own."""
    samples_per_prompt: int = 1


@dataclass(frozen=True, slots=True)
class PerplexitySuite:
    """How surprised a model is by fixed answers; a rise means that it has drifted from where it spoke like that.

    own: the start model's greedy answers to the questions, sampled once and kept.
    given: the answers that the rows hold.
    """

    name: str
    questions: Sequence[Question]
    sampling: SamplingDistribution = GREEDY
    answers: Literal["own", "given"] = "own"


@dataclass(frozen=True, slots=True)
class WinRateSuite:
    """Questions whose answers a reward model compares with the start's own; see `posttrain.evaluate.win_rate`."""

    name: str
    questions: Sequence[Question]
    reward_model: str | None
    """Folder or name of the judge; None while it has yet to be trained."""
    sampling: SamplingDistribution = GREEDY
    samples_per_prompt: int = 1


Suite = AnswerSuite | PerplexitySuite | WinRateSuite


# ---------------------------------------------------------------- from recipes and files


def load_suite(settings: SuiteSettings) -> Suite:
    """A recipe's suite with its questions read.

    Raises:
        DataError: the file cannot be read, or a row lacks the answer that the suite's kind compares with.
    """
    asked = questions(read(settings.prompts, limit=settings.limit))
    sampling = SamplingDistribution(**settings.sampling.model_dump())
    match settings:
        case PerplexitySettings():
            return PerplexitySuite(settings.name, asked, sampling)
        case WinRateSettings():
            return WinRateSuite(settings.name, asked, settings.reward_model.path, sampling, settings.samples_per_prompt)
        case MatchSuite():
            judge = matches(settings.pattern, ignore_case=settings.ignore_case)
            metric = "match" if settings.wanted else "unwanted_match"
        case ExactSuite():
            judge, metric = equals, "accuracy"
        case NumberSuite():
            judge, metric = last_number_equals, "accuracy"
        case _:
            raise AssertionError(f"no suite is made of {type(settings).__name__}")
    if metric == "accuracy":
        _refuse_bad_gold(asked, judge)
    return AnswerSuite(settings.name, asked, metric, judge, sampling, settings.samples_per_prompt)


def questions(examples: Iterable[Example]) -> list[Question]:
    """Prompts of rows of any kind; a demonstration asks for its last answer, a comparison wants its winner."""
    return [question(example) for example in examples]


def question(example: Example) -> Question:
    """One row as a question.

    Raises:
        RowError: a conversation in which the assistant never answers.
    """
    match example:
        case Task(prompt=prompt, answer=answer):
            return Question(prompt, answer, example.row, example.tools)
        case Feedback(prompt=prompt):
            return Question(prompt, None, example.row, example.tools)
        case Comparison(prompt=prompt):
            return Question(prompt, example.responses[example.winner][-1].content, example.row, example.tools)
        case Demonstration(messages=messages):
            last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=None)
            if last is None:
                raise RowError(
                    "the conversation has no answer",
                    reason="no_assistant",
                    where=example.row,
                    expected="a turn of the assistant",
                    remedy="write the prompt as `prompt`, or add the wanted answer",
                )
            return Question(messages[:last], messages[last].content, example.row, example.tools)


def _refuse_bad_gold(asked: Iterable[Question], judge: Judge) -> None:
    """A judge must accept a row's own answer, or no model can be right."""
    for one in asked:
        if one.answer is None or judge(one.answer, one) != 1:
            number = judge is last_number_equals
            raise RowError(
                "the row has no answer to compare with" if one.answer is None else "the row's answer holds no number",
                reason="bad_label",
                where=one.row,
                found=repr(one.answer),
                expected="an `answer` with a number" if number else "an `answer`",
                remedy="add the answer, or use a suite of kind `match`, which needs none",
            )


# ---------------------------------------------------------------- judges


def matches(pattern: str, *, ignore_case: bool = False) -> Judge:
    """1 where the regular expression occurs anywhere in the answer."""
    compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)

    def judge(answer: str, asked: Question) -> float:
        return float(compiled.search(answer) is not None)

    return judge


def equals(answer: str, asked: Question) -> float:
    """1 where the answer is the row's, blanks at both ends aside."""
    return float(asked.answer is not None and answer.strip() == asked.answer.strip())


def last_number_equals(answer: str, asked: Question) -> float:
    """1 where the answer's last number has the value of the last number in the row's answer."""
    wanted = last_number(asked.answer or "")
    return float(wanted is not None and last_number(answer) == wanted)
