"""`match`: the share of answers in which a pattern occurs."""

from __future__ import annotations

import re

from posttrain.config.suites import MatchSuite
from posttrain.data.questions import Question, questions
from posttrain.evaluate.questions import AnswerJudge
from posttrain.evaluate.suites.answers import AnswerSuite
from posttrain.sampling import SamplingDistribution
from posttrain.types import Example


def load(settings: MatchSuite, examples: list[Example], sampling: SamplingDistribution) -> AnswerSuite:
    judge = matches(settings.pattern, ignore_case=settings.ignore_case)
    metric = "match" if settings.wanted else "unwanted_match"
    return AnswerSuite(settings.name, questions(examples), metric, judge, sampling, settings.samples_per_prompt)


def matches(pattern: str, *, ignore_case: bool = False) -> AnswerJudge:
    """1 where the regular expression occurs anywhere in the answer."""
    compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)

    def judge(answer: str, asked: Question) -> float:
        return float(compiled.search(answer) is not None)

    return judge
