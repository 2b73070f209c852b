"""What a metric of texts is: what one answer adds to each figure, and one score for the file of samples.

    metric = SquadF1()
    metric.parts("the cat", ("A cat.", "dog"))      # {"f1": (1.0,), "exact_match": (1.0,)}
    figures_of_parts([[metric.parts(...)], ...])    # {"f1": Score(...), "exact_match": Score(...)}

A part of one number is averaged; parts of several are added up over the rows, and a formula of
`posttrain.diagnostics.corpus_figures` makes the figure of the sums: BLEU is no mean of sentence BLEUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from posttrain.diagnostics.corpus_figures import FORMULAS, corpus_score
from posttrain.intervals import Score, mean

Parts = Mapping[str, tuple[float, ...]]
"""{metric: what this answer adds to it}."""


class TextMetric(Protocol):
    """Compares one answer with its references."""

    def parts(self, answer: str, references: Sequence[str]) -> Parts:
        """What the answer adds to each figure, the one first that the suite is asked for."""
        ...

    def score(self, answer: str, references: Sequence[str]) -> float:
        """One number for this answer alone, as the file of samples shows it."""
        ...


def figures_of_parts(parts_by_prompt: Sequence[Sequence[Parts]]) -> dict[str, Score]:
    """Every figure with its interval over prompts; several answers to one prompt are one observation."""
    figures: dict[str, Score] = {}
    for metric in parts_by_prompt[0][0]:
        own = [[parts[metric] for parts in group] for group in parts_by_prompt]
        if metric in FORMULAS:
            figures[metric] = corpus_score(metric, np.array([np.sum(group, axis=0) for group in own], dtype=float))
        else:
            figures[metric] = mean([[value for (value,) in group] for group in own])
    return figures
