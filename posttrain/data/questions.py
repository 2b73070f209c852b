"""Rows of any kind as what a model is asked, and the answers that are to be had from them.

questions(read("sums.jsonl"))[0]     # Question((Message("user", "2 + 2?"),), answer="4", row=...)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.errors import RowError
from posttrain.types import Comparison, Demonstration, Example, Feedback, Message, RowRef, StepwiseFeedback, Task


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


def questions(examples: Iterable[Example]) -> list[Question]:
    """Prompts of rows of any kind; a demonstration asks for its last answer, a comparison wants its winner."""
    return [question(example) for example in examples]


def question(example: Example) -> Question:
    """One row as a question.

    Raises:
        RowError: a conversation in which the assistant never answers; bare text.
    """
    match example:
        case Task(prompt=prompt, answer=answer):
            return Question(prompt, answer, example.row, example.tools)
        case Feedback(prompt=prompt) | StepwiseFeedback(prompt=prompt):
            return Question(prompt, None, example.row, example.tools)
        case Comparison(prompt=prompt):
            return Question(prompt, example.responses[example.winner][-1].content, example.row, example.tools)
        case Demonstration(is_text=True):
            raise bare_text_asks_nothing(example)
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


def bare_text_asks_nothing(example: Example) -> RowError:
    """The error for a row of bare text where a question is needed."""
    return RowError(
        "the row is bare text, which asks nothing",
        reason="no_prompt",
        where=example.row,
        found="a row of the format 'text'",
        expected="a prompt, or a conversation with an answer",
        example='{"prompt": "2 + 2?", "completion": "4"}',
        remedy="train on bare text with `method: sft` and `encoding: {template: raw}`; elsewhere, give rows with a "
        "prompt",
    )


def as_task(example: Example) -> Task:
    """A row as what a reward is given: itself, or its question without further columns."""
    if isinstance(example, Task):
        return example
    asked = question(example)
    return Task(asked.prompt, asked.answer, asked.row, {}, asked.tools)
