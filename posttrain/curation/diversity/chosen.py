"""What a rule of diversity answers: which rows are kept, and of each other row why not and what it is most like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from posttrain.curation.diversity.vectors import nearest_of

OVER_BUDGET = "over_budget"
"""As the step `budget` calls it."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Removal(7, "semantic_duplicate", nearest=2, cosine=0.97)"""

    row: int
    reason: str
    nearest: int
    """The kept row that it is most like; -1 where rows were not compared, or none is kept."""
    cosine: float
    """To that one; NaN with -1."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a rule's function returns: Choice(kept_K=[5, 0], reasons={1: "semantic_duplicate"}, notes=())."""

    kept_K: np.ndarray
    """int64, in order of choice, the best first."""
    reasons: Mapping[int, str] = field(default_factory=dict)
    """Of rows that were removed for something else than `otherwise`."""
    otherwise: str = OVER_BUDGET
    """Why all others were removed."""
    notes: tuple[str, ...] = ()
    """What a user should know of it, a line each."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Chosen(kept=[5, 0], removed=[1, 2, 3, 4], reasons=["semantic_duplicate", "over_budget", ...],
    nearest=[0, 5, 5, 0], cosine=[0.97, 0.4, 0.3, 0.2], notes=())

    The arrays after `kept` have one entry for each removed row, in row order.
    """

    kept: np.ndarray
    """int64, in order of choice."""
    removed: np.ndarray
    reasons: tuple[str, ...]
    nearest: np.ndarray
    cosine: np.ndarray
    notes: tuple[str, ...] = ()

    def removals(self) -> Iterator[Removal]:
        values = zip(self.removed.tolist(), self.reasons, self.nearest.tolist(), self.cosine.tolist(), strict=True)
        return (Removal(*value) for value in values)


def completed(choice: Choice, features: np.ndarray | None, count: int) -> Chosen:
    """The choice with the removed rows, each with the kept row that it is nearest to."""
    kept = np.asarray(choice.kept_K, dtype=np.int64)
    is_removed = np.ones(count, dtype=bool)
    is_removed[kept] = False
    removed = np.flatnonzero(is_removed)
    reasons = tuple(choice.reasons.get(row, choice.otherwise) for row in removed.tolist())
    if features is None or not len(kept):
        nearest, cosine = np.full(len(removed), -1, np.int64), np.full(len(removed), np.nan, np.float32)
    else:
        nearest, cosine = nearest_of(features, removed, np.sort(kept))
    return Chosen(kept, removed, reasons, nearest, cosine, choice.notes)
