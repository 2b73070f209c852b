"""What a check gets to look at, and what several checks ask of it.

`run.py` builds one `Subject` per audit; each check of `checks.py` is a function from it to findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from posttrain.auditing.corpus import Corpus, Sides
from posttrain.auditing.origin_counts import Origins
from posttrain.auditing.statistics import sign_test
from posttrain.types import RowRef

FEWEST_PAIRS = 50
"""Below this many pairs no share has an interval that says anything."""
NOTABLE_SHARE = 0.01
"""Below this share of the rows a mark or leftover is a note."""
PERVASIVE_SHARE = 0.9
"""A mark in this share of what is to be imitated is an error: the model learns to write it, whatever else the data
says."""
LARGEST_SAMPLE = 20_000
"""Pairs that predictors are fitted to: their accuracy is then known to 0.7 points, and more rows only cost time."""


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """EvaluationSet("heldout_facts", fields=("Which place has plays?", "theatre"), item_of_field=(0, 0), items=1)"""

    name: str
    fields: tuple[str, ...]
    item_of_field: tuple[int, ...]
    items: int

    @classmethod
    def of(cls, name: str, items: Iterable[Iterable[str]]) -> EvaluationSet:
        fields: list[str] = []
        numbers: list[int] = []
        number = 0
        for number, texts in enumerate(items, 1):
            for text in dict.fromkeys(texts):
                if text.strip():
                    fields.append(text)
                    numbers.append(number - 1)
        return cls(name, tuple(fields), tuple(numbers), number)


@dataclass(frozen=True, slots=True)
class PairMeasurements:
    """One entry a pair, in the order of `row_P`; sums over the trained tokens, in nats.

    PairMeasurements(row_P=[0, 1], logprob_C=[-12.1, ...], logprob_R=..., tokens_C=[9, ...], tokens_R=...,
             surprise_C=[0.1, ...], surprise_R=[2.3, ...], ches_P=[-31.0, ...], alike_P=[0.62, ...])
    """

    row_P: np.ndarray
    logprob_C: np.ndarray
    logprob_R: np.ndarray
    tokens_C: np.ndarray
    tokens_R: np.ndarray
    surprise_C: np.ndarray
    """Mean of -log p - entropy per token: 0, on average, for what the policy itself would sample."""
    surprise_R: np.ndarray
    ches_P: np.ndarray
    """Length-normalised CHES, Razin et al. 2024, arXiv:2410.08847, definition 2 and section 6."""
    alike_P: np.ndarray
    """1 + CHES / |mean hidden state of the chosen side|^2: the same order without the model's scale."""

    def __len__(self) -> int:
        return len(self.row_P)


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
    origins: Origins | None = None
    """Which models made the rows, by their own column; None where nobody asks."""
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
