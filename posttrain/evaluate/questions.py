"""The rows of a suite, and what a judge of answers needs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from posttrain.config.suites import PromptSuite
from posttrain.data import read
from posttrain.data.questions import Question
from posttrain.errors import EmptyDatasetError, RowError
from posttrain.rewards.gym import SOURCE as GYM
from posttrain.rewards.gym import tasks_of
from posttrain.types import Example

AnswerJudge = Callable[[str, Question], float]
"""(the answer's text, the question) -> 0 to 1."""


def examples_of(settings: PromptSuite) -> list[Example]:
    """The rows of a suite's file, or the tasks that its address makes.

    Raises:
        EmptyDatasetError: there is none.
    """
    if settings.prompts.startswith(GYM):
        examples: list[Example] = [*tasks_of(settings.prompts)[: settings.limit]]
    else:
        examples = [*read(settings.prompts, limit=settings.limit)]
    if not examples:
        raise EmptyDatasetError(
            f"the suite `{settings.name}` has no prompt to ask",
            where=settings.prompts,
            remedy="name a file with at least one row",
        )
    return examples


def require_gold(asked: Iterable[Question], judge: AnswerJudge, answer: str = "an `answer`") -> None:
    """Every row's own answer must satisfy the judge, or no model could ever be right on that row.

    Args:
        answer: what a row must have, for the error: "an `answer` with a number".

    Raises:
        RowError: the first row whose answer is missing or refused.
    """
    for question in asked:
        if question.answer is None or judge(question.answer, question) != 1:
            missing = question.answer is None
            raise RowError(
                "the row has no answer to compare with" if missing else "the row's answer holds no number",
                reason="bad_label",
                where=question.row,
                found=repr(question.answer),
                expected=answer,
                remedy="add the answer, or use a suite of kind `match`, which needs none",
            )
