"""What a score says of the rows, and why some have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Scored:
    """Scored(score_R=array([0.7, nan]), missing={1: "the row is longer than 2,048 tokens"}, notes=())."""

    score_R: np.ndarray
    """float64 [R]; NaN for rows that are out of play, and for those without a score."""
    missing: Mapping[int, str] = field(default_factory=dict)
    """Why a row has no score; many rows share one reason, so no number of a single row stands in it."""
    notes: tuple[str, ...] = ()
    """What a user should know of it, a line each."""

    def reasons(self) -> Counter[str]:
        """How many rows lack a score, by reason."""
        return Counter(self.missing.values())
