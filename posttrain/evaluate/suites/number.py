"""`number`: the share of answers whose last number is the row's answer."""

from __future__ import annotations

from fractions import Fraction

from posttrain.config.suites import NumberSuite
from posttrain.data.questions import Question, questions
from posttrain.evaluate.questions import require_gold
from posttrain.evaluate.suites.answers import AnswerSuite
from posttrain.rewards.answers import final_value
from posttrain.rewards.numbers import last_number
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example

NEEDS = "an `answer` with a number"


def load(settings: NumberSuite, examples: list[Example], sampling: SamplingDistribution) -> AnswerSuite:
    """Raises RowError for a row whose answer holds no number."""
    asked = questions(examples)
    require_gold(asked, last_number_equals, NEEDS)
    return AnswerSuite(settings.name, asked, "accuracy", last_number_equals, sampling, settings.samples_per_prompt)


def last_number_equals(answer: str, asked: Question) -> float:
    """1 where the answer ends on the number that the row's answer ends on: see `final_value`.

    Compared exactly: 0.1 + 0.2 is no float here, and 1/2 is no 2. "5 or 6" ends on none.
    """
    gold = asked.answer or ""
    wanted = final_value(gold)
    if wanted is None and (last := last_number(gold)) is not None:
        wanted = Fraction(last)  # a row's own sentence may name several things; the last one was meant
    return float(wanted is not None and (answer.strip() == gold.strip() or final_value(answer) == wanted))
