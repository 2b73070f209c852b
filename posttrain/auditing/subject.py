"""What a check gets to look at, and what several checks ask of it.

`run.py` builds one `Subject` per audit; each check of `checks.py` is a function from it to findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from posttrain.auditing.corpus import Corpus, Sides
from posttrain.auditing.statistics import sign_test
from posttrain.types import RowRef

if TYPE_CHECKING:
    from posttrain.auditing.contamination import EvaluationSet
    from posttrain.auditing.policy import PairMeasurements

FEWEST_PAIRS = 50
"""Below this many pairs no share has an interval that says anything."""
NOTABLE_SHARE = 0.01
"""Below this share of the rows a mark or leftover is a note."""
PERVASIVE_SHARE = 0.9
"""A mark in this share of what is to be imitated is an error: the model learns to write it, whatever else the data
says."""
LARGEST_SAMPLE = 20_000
"""Pairs that predictors are fitted to: their accuracy is then known to 0.7 points, and more rows only cost time."""


@dataclass
class Subject:
    """A data set, and what it is compared with."""

    corpus: Corpus
    held_out: Corpus | None = None
    """Rows that are measured on and must not be trained on."""
    against: Sequence[EvaluationSet] = ()
    refused: Mapping[str, tuple[RowRef, ...]] = field(default_factory=dict)
    """Reason -> the rows that reading refused."""
    annotator_R: Sequence[str] | None = None
    """The judge of each row, by a column of the file."""
    category_R: Sequence[str] | None = None
    """The category of each row, by a column of the file; "" for a row without one."""
    measured: PairMeasurements | None = None
    """Log-probs and hidden similarities under a model; only with `audit(model=...)`."""
    seed: int = 0

    @cached_property
    def sample(self) -> Sides:
        """The pairs that predictors are fitted to."""
        return self.corpus.sides.sample(LARGEST_SAMPLE, self.seed)

    @property
    def has_enough_pairs(self) -> bool:
        return len(self.corpus.sides) >= FEWEST_PAIRS

    @cached_property
    def is_paired(self) -> bool:
        """Whether the two sides answer the same prompt; for feedback they are drawn at random."""
        return len(self.corpus.sides) == len(self.corpus)


@dataclass(frozen=True, slots=True)
class OneSided:
    """How a mark is spread over the two sides: OneSided(chosen=0.02, rejected=0.31, z=-17.2)."""

    chosen: float
    rejected: float
    z: float
    """McNemar's, over the pairs where one side alone has it; positive where the chosen side does."""

    @property
    def is_one_sided(self) -> bool:
        """Beyond chance (p < 0.001) and by a share that training can see."""
        return abs(self.z) > 3.29 and abs(self.chosen - self.rejected) >= 0.02

    def evidence(self) -> dict[str, float]:
        return {"chosen_share": self.chosen, "rejected_share": self.rejected, "z": self.z}


def compare_sides(sides: Sides, mark_S: np.ndarray) -> OneSided:
    """A mark of single responses, over both sides of all pairs."""
    if not len(sides):  # demonstrations and tasks: no side is favoured
        return OneSided(0.0, 0.0, 0.0)
    # The pairs are matched, so only those in which one side alone has the mark say anything (McNemar 1947). A test on
    # the two shares would count a long file in which both sides always have it as evidence.
    chosen, rejected = mark_S[sides.chosen_P], mark_S[sides.rejected_P]
    z = sign_test(int((chosen & ~rejected).sum()), int((rejected & ~chosen).sum()))
    return OneSided(float(chosen.mean()), float(rejected.mean()), z)
