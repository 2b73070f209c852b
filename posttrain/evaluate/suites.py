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
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from posttrain.config.rewards import RewardSettings
from posttrain.config.suites import (
    ExactSuite,
    MatchSuite,
    NumberSuite,
    SuiteSettings,
)
from posttrain.config.suites import PassAtKSuite as PassAtKSettings
from posttrain.config.suites import PerplexitySuite as PerplexitySettings
from posttrain.config.suites import WinRateSuite as WinRateSettings
from posttrain.data import read
from posttrain.errors import EmptyDatasetError, RowError
from posttrain.rewards import gold_check, rubric_of
from posttrain.rewards.answers import final_value
from posttrain.rewards.gym import SOURCE as GYM
from posttrain.rewards.gym import tasks_of
from posttrain.rewards.numbers import last_number
from posttrain.sampling import SamplingDistribution
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef, StepwiseFeedback, Task

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


@dataclass(frozen=True, slots=True)
class PassAtKSuite:
    """Tasks of which each is answered many times, and how many of the answers are right: see `pass_at_k`.

    PassAtKSuite("sums", tasks, SamplingDistribution(temperature=1.0), samples=64, ks=(1, 8, 64))
    """

    name: str
    tasks: Sequence[Task]
    sampling: SamplingDistribution
    samples: int = 64
    ks: tuple[int, ...] = (1,)
    """The k whose figures stand in evaluation.json."""
    rewards: tuple[RewardSettings, ...] = ()
    """Their sum says whether an answer is right; none: its last number is the task's answer."""
    right_from: float = 1.0
    modules: Path | None = None
    """Where reward functions are looked for first."""


Suite = AnswerSuite | PerplexitySuite | WinRateSuite | PassAtKSuite


# ---------------------------------------------------------------- from recipes and files


def load_suite(settings: SuiteSettings) -> Suite:
    """A recipe's suite with its questions read.

    Raises:
        DataError: the file cannot be read, or a row lacks the answer that the suite's kind compares with.
    """
    examples = _examples(settings)
    sampling = SamplingDistribution(**settings.sampling.model_dump())
    if isinstance(settings, PassAtKSettings):
        return _pass_at_k(settings, examples, sampling)
    asked = questions(examples)
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


def _examples(settings: SuiteSettings) -> list[Example]:
    """The rows of a file, or the tasks that an address makes.

    Raises:
        EmptyDatasetError: there is none.
    """
    if settings.prompts.startswith(GYM):
        made: list[Example] = [*tasks_of(settings.prompts)[: settings.limit]]
    else:
        made = [*read(settings.prompts, limit=settings.limit)]
    if not made:
        raise EmptyDatasetError(
            f"the suite `{settings.name}` has no prompt to ask",
            where=settings.prompts,
            remedy="name a file with at least one row",
        )
    return made


def _pass_at_k(settings: PassAtKSettings, examples: Iterable[Example], sampling: SamplingDistribution) -> PassAtKSuite:
    """Raises RowError where the suite would not accept a row's own answer."""
    tasks = [example if isinstance(example, Task) else _task(question(example)) for example in examples]
    modules = None if settings.modules is None else Path(settings.modules)
    if not settings.rewards:
        _refuse_bad_gold([question(task) for task in tasks], last_number_equals)
    else:
        with rubric_of(settings.rewards, folder=modules) as rubric:
            failures = gold_check(tasks, rubric.scorers)
        if failures:
            raise RowError(
                f"the suite `{settings.name}` would not accept the own answers of {len(failures)} of {len(tasks)} rows",
                reason="bad_label",
                where=failures[0].row,
                found=str(failures[0]),
                remedy="correct the answers of these rows or remove them, or choose another reward",
            )
    return PassAtKSuite(
        settings.name,
        tasks,
        sampling,
        settings.samples,
        settings.k,
        settings.rewards,
        settings.right_from,
        modules,
    )


def _task(asked: Question) -> Task:
    return Task(asked.prompt, asked.answer, asked.row, {}, asked.tools)


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
        case Feedback(prompt=prompt) | StepwiseFeedback(prompt=prompt):
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
    """1 where the answer ends on the number that the row's answer ends on: see `final_value`.

    Compared exactly: 0.1 + 0.2 is no float here, and 1/2 is no 2. "5 or 6" ends on none.
    """
    gold = asked.answer or ""
    wanted = final_value(gold)
    if wanted is None and (last := last_number(gold)) is not None:
        wanted = Fraction(last)  # a row's own sentence may name several things; the last one was meant
    return float(wanted is not None and (answer.strip() == gold.strip() or final_value(answer) == wanted))
