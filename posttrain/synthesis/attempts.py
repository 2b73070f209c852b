"""The policy's own answers to each prompt, several of them, each with its score or the reason why it makes no row.

    solutions = draw_attempts(asked, tasks, AttemptSettings(samples=8), scorer)
    attempts_of(solutions[0], scorer, special)     # [Attempt(Node(...), score=1.0), ...]

A draw depends on the seed, its prompt and its number alone: a stage that was killed draws the same answers again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from re import Pattern
from typing import Any

from posttrain.config.attempts import AttemptSettings
from posttrain.config.strategies.base import LogProbScorer, ScorerSettings, Spending
from posttrain.inference.asked import Asked
from posttrain.inference.rows import WITHOUT, unfit
from posttrain.inference.run import side_by_side
from posttrain.inference.scorers import ABSTAINED, label_of
from posttrain.inference.solution import Node, Solution
from posttrain.inference.solving import Solving, first_best
from posttrain.rewards.scorer import run_async
from posttrain.sampling import SamplingDistribution
from posttrain.types import Task

TEMPERATURE = "temperature"
"""Among a node's facts: at which step of the ladder it was drawn."""
REASONS = {key: WITHOUT[key] for key in ("cut", "special_tokens", "bad_character", "not_judged")} | {
    "empty": "the model answered nothing"
}
"""Why an answer makes no row, whatever the others say."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer to a prompt: Attempt(Node(3, ...), score=1.0, reason=None)."""

    node: Node
    score: float | None = None
    """None where nobody was asked, or could judge it."""
    reason: str | None = None
    """A key of REASONS: it makes no row. None: it may."""

    @property
    def text(self) -> str:
        return self.node.answer

    def is_right(self, least_score: float) -> bool:
        """One that makes no row is not right either: who reads a cut answer reads no answer."""
        return self.reason is None and self.score is not None and self.score >= least_score


def draw_attempts(
    asked: Asked,
    tasks: Sequence[Task],
    drawing: AttemptSettings,
    scorer: ScorerSettings | None,
    *,
    label: str = "attempts",
    on_solution: Callable[[int, Solution], None] = lambda index, solution: None,
) -> list[Solution]:
    """The answers to each task, scored, in the order of their draws; the chosen one is that of the highest score.

    Args:
        scorer: who scores the answers that could make a row; None: nobody.
        label: what the solutions call their strategy.
        on_solution: called as each is finished, with its index.

    Raises:
        PosttrainError: what a scorer raises.
    """
    if scorer is not None:
        asked.scorers.grader(scorer)  # one that cannot be made is refused before anything is drawn

    async def attempt(index: int, occurrence: int) -> Solution:
        solving = Solving(
            asked,
            tasks[index],
            SamplingDistribution(**drawing.sampling.model_dump()),
            Spending(),
            label,
            occurrence=occurrence,
            raw_logprobs=isinstance(scorer, LogProbScorer),
        )
        solution = await _attempted(solving, drawing, scorer)
        on_solution(index, solution)
        return solution

    drawn: list[Solution] = run_async(side_by_side(asked, tasks, attempt))
    return drawn


async def _attempted(solving: Solving, drawing: AttemptSettings, scorer: ScorerSettings | None) -> Solution:
    answers: list[Node] = []
    for temperature, count in drawing.ladder:
        drawn = await solving.sample(count, temperature=temperature)
        for node in drawn:
            node.facts[TEMPERATURE] = temperature
        answers += drawn
    # A verifier may find the right number in an answer that was cut on its way to another one.
    whole = [node for node in answers if node.ended and node.answer.strip()]
    if scorer is None or not whole:
        return solving.solution(next(iter(whole), None))
    return solving.solution(first_best(whole, await solving.score(whole, scorer)))


def attempts_of(
    solution: Solution, scorer: ScorerSettings | None, special: Pattern[str] | None = None
) -> list[Attempt]:
    """The answers of a solution with their scores, in the order of their draws.

    Args:
        special: what names a special token (`encoder.tokens.special_pattern(...)`): an answer with one makes no row.
    """
    return [_attempt(node, None if scorer is None else label_of(scorer), special) for node in solution.answers]


def _attempt(node: Node, label: str | None, special: Pattern[str] | None) -> Attempt:
    if not node.answer.strip():
        return Attempt(node, reason="empty")
    if not node.ended:
        return Attempt(node, reason="cut")
    score = None if label is None else node.scores.get(label)
    score = None if score == ABSTAINED else score
    reason = unfit(node.answer, special)
    if reason is None and label is not None and score is None:
        reason = "not_judged"
    return Attempt(node, score, reason)


def sampled_as(drawing: AttemptSettings, attempt: Attempt) -> dict[str, Any]:
    """How an answer was drawn, for its origin: what is not at its default, and always the temperature."""
    settings = drawing.sampling
    changed = {
        name: value
        for name, value in settings.model_dump().items()
        if value != type(settings).model_fields[name].default
    }
    return {
        **changed,
        "temperature": attempt.node.facts[TEMPERATURE],
        "max_new_tokens": settings.max_new_tokens,
    }
