"""Two models on the same prompts: the scores by prompt, where a figure is their mean and nothing else.

scores = paired_scores(start.answers["sums"], end.answers["sums"], Figure(0.3), Figure(0.5))
paired_difference(*scores)    # the change over the same prompts, with its interval
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from posttrain.runs.records.evaluation import AnswerLine, Figure

ByPrompt = dict[str, float]
"""The mean score of the answers to each prompt."""


def paired_scores(
    before: Sequence[AnswerLine], after: Sequence[AnswerLine], start: Figure, end: Figure
) -> tuple[list[float], list[float]] | None:
    """Scores of the same prompts in the same order; None where the two answered different prompts, where an answer has
    no score, or where the scores are not what the figures are the means of."""
    ones, twos = scores_by_prompt(before, start), scores_by_prompt(after, end)
    # Half of the prompts paired would be another measurement than the one in the table.
    if ones is None or twos is None or ones.keys() != twos.keys():
        return None
    return [ones[prompt] for prompt in ones], [twos[prompt] for prompt in ones]


def scores_by_prompt(answers: Sequence[AnswerLine], figure: Figure) -> ByPrompt | None:
    """Several answers to one prompt are one observation, so their scores stand together as their mean."""
    found: dict[str, list[float]] = {}
    for answer in answers:
        # Without that answer the mean is over other prompts than the figure's.
        if answer.score is None:
            return None
        found.setdefault(answer.prompt, []).append(answer.score)
    # A suite has several metrics and each answer one score: paired, the scores may judge only the metric that they
    # make.
    if not found or not _close(fmean(point for points in found.values() for point in points), figure.value):
        return None
    return {prompt: fmean(points) for prompt, points in found.items()}


def _close(first: float, second: float) -> bool:
    # The suite may have added the same scores up in another order.
    return abs(first - second) <= 1e-6 * max(1.0, abs(second))
