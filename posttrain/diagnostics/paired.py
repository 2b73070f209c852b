"""Two models on the same items: what changed, with the interval and the p of the paired tests.

    paired_change("accuracy", start.answers["sums"], end.answers["sums"], Figure(0.3), Figure(0.5))
    # Paired(Difference(0.2, 0.05, 0.35, 60), p=0.01, smallest=0.19)

A figure that is a mean of its lines is compared by their scores; one that is a function of sums (BLEU, a perplexity) by
the sums that each line kept (`posttrain.diagnostics.corpus_figures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from posttrain.diagnostics.corpus_figures import Formula, corpus_change, exchanged, formula_of
from posttrain.intervals import Difference, paired_difference, sign_flip, smallest_change, smallest_of_interval, spread
from posttrain.runs.records.evaluation import AnswerLine, Figure

if TYPE_CHECKING:  # a page without comparisons is made without numpy
    import numpy as np

ByPrompt = dict[str, float]
"""The mean score of the answers to each prompt."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Paired(Difference(0.2, 0.05, 0.35, 60), p=0.01, smallest=0.19)"""

    difference: Difference
    p: float
    """Two-sided: how often chance alone moves the figure as far."""
    smallest: float
    """The smallest true change that these items show with 80 % power at 5 %, by how far their changes spread."""

    @property
    def clear(self) -> bool:
        """Chance explains it by neither test: the interval leaves out 0, and p is at most 0.05."""
        return self.difference.clear and self.p <= 0.05


def paired_change(
    metric: str, before: Sequence[AnswerLine], after: Sequence[AnswerLine], start: Figure, end: Figure
) -> Paired | None:
    """What a figure of the same suite became; None where the two cannot be paired (see `paired_scores`)."""
    import numpy as np

    if (formula := formula_of(metric)) is not None:
        sums = _paired_sums(metric, formula, before, after, start, end)
        if sums is None:
            return None
        found = corpus_change(metric, *sums)
        return Paired(found, exchanged(metric, *sums), smallest_of_interval(found))
    scores = paired_scores(before, after, start, end, metric)
    if scores is None:
        return None
    moved = np.asarray(scores[1]) - np.asarray(scores[0])
    smallest = smallest_change(spread(moved), len(moved))
    return Paired(paired_difference(*scores), sign_flip(moved), smallest)


def paired_scores(
    before: Sequence[AnswerLine], after: Sequence[AnswerLine], start: Figure, end: Figure, metric: str = ""
) -> tuple[list[float], list[float]] | None:
    """Scores of the same prompts in the same order; None where the two answered different prompts, where an answer has
    no score, or where the scores are not what the figures are the means of."""
    ones, twos = scores_by_prompt(before, start, metric), scores_by_prompt(after, end, metric)
    # Half of the prompts paired would be another measurement than the one in the table.
    if ones is None or twos is None or ones.keys() != twos.keys():
        return None
    return [ones[prompt] for prompt in ones], [twos[prompt] for prompt in ones]


def scores_by_prompt(answers: Sequence[AnswerLine], figure: Figure, metric: str = "") -> ByPrompt | None:
    """Several answers to one prompt are one observation, so their scores stand together as their mean.

    Args:
        metric: whose scores are taken, where the lines keep some by metric; else each line's one score.
    """
    found: dict[str, list[float]] = {}
    kept = any(answer.by_metric is not None and metric in answer.by_metric for answer in answers)
    for answer in answers:
        score = answer.score
        if kept:
            own = (answer.by_metric or {}).get(metric)
            if own is None:  # a line of another part of the suite, whose figures are others
                continue
            (score,) = own if len(own) == 1 else (None,)
        # Without that answer the mean is over other prompts than the figure's.
        if score is None:
            return None
        found.setdefault(answer.prompt, []).append(score)
    # A suite has several metrics and each answer one score: paired, the scores may judge only the metric that they
    # make.
    if not found or not _close(fmean(point for points in found.values() for point in points), figure.value):
        return None
    return {prompt: fmean(points) for prompt, points in found.items()}


def _paired_sums(
    metric: str, formula: Formula, before: Sequence[AnswerLine], after: Sequence[AnswerLine], start: Figure, end: Figure
) -> tuple[np.ndarray, np.ndarray] | None:
    """What each prompt adds to the figure, [prompts, sums], of both models in the same order."""
    import numpy as np

    ones, twos = _sums_by_prompt(metric, formula, before, start), _sums_by_prompt(metric, formula, after, end)
    if ones is None or twos is None or ones.keys() != twos.keys():
        return None
    return np.stack(list(ones.values())), np.stack([twos[prompt] for prompt in ones])


def _sums_by_prompt(
    metric: str, formula: Formula, answers: Sequence[AnswerLine], figure: Figure
) -> dict[str, np.ndarray] | None:
    import numpy as np

    found: dict[str, np.ndarray] = {}
    for answer in answers:
        own = (answer.by_metric or {}).get(metric)
        if own is None:
            continue
        found[answer.prompt] = found.get(answer.prompt, 0) + np.asarray(own, dtype=float)
    if not found or not _close(float(formula(sum(found.values(), np.zeros(1)))), figure.value):
        return None
    return found


def _close(first: float, second: float) -> bool:
    # The suite may have added the same scores up in another order.
    return abs(first - second) <= 1e-6 * max(1.0, abs(second))
