"""`exact`: the share of answers that are the row's answer."""

from __future__ import annotations

from posttrain.config.suites import ExactSuite
from posttrain.data.questions import Question, questions
from posttrain.evaluate.questions import require_gold
from posttrain.evaluate.suites.answers import AnswerSuite
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example


def load(settings: ExactSuite, examples: list[Example], sampling: SamplingDistribution) -> AnswerSuite:
    """Raises RowError for a row without an answer."""
    asked = questions(examples)
    require_gold(asked, equals)
    return AnswerSuite(settings.name, asked, "accuracy", equals, sampling, settings.samples_per_prompt)


def equals(answer: str, asked: Question) -> float:
    """1 where the answer is the row's, blanks at both ends aside."""
    return float(asked.answer is not None and answer.strip() == asked.answer.strip())
