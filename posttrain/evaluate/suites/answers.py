"""A suite whose every answer is judged by a plain function of its text: what `match`, `exact` and `number` are made of.

    AnswerSuite("identity", questions(read("heldout.jsonl")), metric="match", judge=matches(r"\\bPia\\b"))

A judge returns 0 to 1; the figure is its mean over the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.questions import Question
from posttrain.evaluate.asking import Figures, SuiteRun, general_figures, write_answers
from posttrain.evaluate.questions import AnswerJudge
from posttrain.intervals import mean
from posttrain.sampling import SamplingDistribution

GREEDY = SamplingDistribution(temperature=0.0, max_new_tokens=128)


def questions_of(suite: Any) -> dict[str, int]:
    """How many questions a suite asks: its one figure is a mean over them."""
    return {"": len(suite.questions)}


@dataclass(frozen=True, slots=True)
class AnswerSuite:
    """Questions whose sampled answers a judge scores."""

    name: str
    questions: Sequence[Question]
    metric: str
    """Name of the mean of the judge's scores: "match" or "accuracy"."""
    judge: AnswerJudge
    sampling: SamplingDistribution = GREEDY
    """Stop ids and seed are the evaluation's own."""
    samples_per_prompt: int = 1

    def ask(self, asking: SuiteRun) -> Figures:
        groups, texts = asking.answers.to(self.name, self.questions, self.sampling, self.samples_per_prompt)
        scores = [
            [float(self.judge(text, question)) for text in answers]
            for question, answers in zip(self.questions, texts, strict=True)
        ]
        write_answers(asking.out, self.name, self.questions, groups, texts, scores)
        return {self.metric: mean(scores), **general_figures(groups, texts)}
