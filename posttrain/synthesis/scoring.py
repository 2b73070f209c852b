"""Scores of answers that came as texts: the scorers of strategies, where no search is at hand.

with Scorers(folder) as scorers:
    score_texts(scorers, settings, [(task, [Written("4", tokens=2)])])      # [[1.0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.config.strategies.base import ScorerSettings
from posttrain.inference.scorers import ABSTAINED, Scorers
from posttrain.inference.solution import Node
from posttrain.rewards.scorer import run_async
from posttrain.rollout.engine import FinishReason
from posttrain.types import Message, Task


@dataclass(frozen=True, slots=True)
class Written:
    """An answer to be scored: Written("4", tokens=2, ended=True)."""

    text: str
    tokens: int = 0
    ended: bool = True


class _Answered:
    """What a grader needs of a prompt whose answers are there: `posttrain.inference.scorers.Solved`."""

    def __init__(self, task: Task, nodes: list[Node]):
        self.task, self.nodes = task, nodes

    async def ask(
        self, messages: Sequence[Message], count: int = 1, *, kind: str, about: Sequence[Node] = (), **sampling: Any
    ) -> list[Node]:
        raise AssertionError("the settings refuse scorers that ask the model that answered")

    def count_scored(self, tokens: int) -> None:
        """What reward models read is no part of what a teacher costs."""


def score_texts(
    scorers: Scorers, settings: ScorerSettings, asked: Sequence[tuple[Task, Sequence[Written]]]
) -> list[list[float | None]]:
    """A number per answer of each prompt, judged side by side; None where the scorer cannot judge one.

    Raises:
        ModelError: a reward model that cannot be loaded.
        PosttrainError: what the scorer raises.
    """
    # The graders' own Protocol is of searches: what they call of it is in `_Answered`.
    given = []
    for task, answers in asked:
        nodes = [_node(task, number, answer) for number, answer in enumerate(answers)]
        given.append((_Answered(task, nodes), nodes))
    scores: list[list[float]] = run_async(scorers.score_each(given, settings))
    return [[None if score == ABSTAINED else score for score in own] for own in scores]


def _node(task: Task, number: int, answer: Written) -> Node:
    return Node(
        number,
        "answer",
        (),
        task.prompt,
        (),
        (),
        # Graders count the ids and never read them: rewards of length are of the tokens that the teacher counted.
        (0,) * answer.tokens,
        (),
        FinishReason.STOP_TOKEN if answer.ended else FinishReason.LENGTH,
        answer.text,
        answer.text,
        ended=answer.ended,
    )
