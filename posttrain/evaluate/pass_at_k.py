"""pass@k: the chance that at least one of k sampled answers to a prompt is right.

Of n answers to each prompt c are right. The estimate of Chen et al. 2021 (arXiv:2107.03374, Eq. 1) is the share of all
subsets of k answers that hold a right one; it is unbiased for k <= n, where 1 - (1 - c/n)^k is not:

    pass@k = mean over prompts of  1 - C(n-c, k) / C(n, k)  =  1 - Π_{i=n-c+1..n} (1 - k/i)

    counts = PassCounts("sums", samples=64, rows=(...), prompts=(...), correct=(0, 12, 64))
    curve(counts)            # [(1, Score(0.40, ...)), (2, ...), (4, ...), ..., (64, ...)]

The curve says what is within reach of a policy: a method that only makes likely what the policy could do already lifts
its left end and not its right one (Yue et al. 2025, arXiv:2504.13837); see `pass_at_k_change`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from posttrain.errors import ConfigError, EmptyDatasetError
from posttrain.intervals import Score, average
from posttrain.runs.files import read_json, write_json
from posttrain.runs.records.evaluation import PassAtKCounts, PassAtKEstimate


@dataclass(frozen=True, slots=True)
class PassCounts:
    """PassCounts("sums", 64, ("sums.jsonl, row 1",), ("2 + 2?",), correct=(12,)): 12 of 64 answers are right."""

    suite: str
    samples: int
    """Answers to each prompt: n."""
    rows: tuple[str, ...]
    prompts: tuple[str, ...]
    correct: tuple[int, ...]
    """Of each prompt: c."""

    def __post_init__(self) -> None:
        if not self.correct:
            raise EmptyDatasetError(
                "there is no prompt, so there is no pass@k",
                where=self.suite,
                remedy="give the suite a file with at least one task",
            )
        bad = next((count for count in self.correct if not 0 <= count <= self.samples), None)
        if self.samples < 1 or bad is not None:
            raise ConfigError(
                "more answers are right than were sampled" if bad is not None else "no answer was sampled",
                where=self.suite,
                found=f"{bad} of {self.samples}" if bad is not None else f"samples: {self.samples}",
                expected=f"0 to {self.samples} right answers of each prompt",
                remedy="count the right answers among the samples of the same prompt",
            )


def estimates(samples: int, correct: Sequence[int] | np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """pass@k of each prompt: estimates(4, [1, 2], [1, 2]) -> [[1/4, 1/2], [1/2, 5/6]], prompts x ks, float64.

    Exact where it is 0 or 1. Elsewhere it adds up logarithms: the binomials overflow, and small chances drown in
    1 - (1 - small).

    Raises:
        ConfigError: a k below 1 or above `samples`, for which there is no unbiased estimate.
    """
    for k in ks:
        if not 1 <= k <= samples:
            raise ConfigError(
                f"pass@{k} cannot be estimated from {samples} answers to each prompt",
                found=f"k: {k}, samples: {samples}",
                expected="1 <= k <= samples",
                remedy=f"write `samples: {k}`, or a smaller k" if k > samples else "write a k of 1 or more",
            )
    # log_misses[c] = log C(n-c, k) / C(n, k); a row for each possible c, so that equal prompts are computed once
    columns = []
    for k in ks:
        places = np.arange(samples, k, -1, dtype=float)  # i = n, n-1, ..., k+1: the factors that are above 0
        log_misses = np.concatenate([[0.0], np.cumsum(np.log1p(-k / places))])
        chances = np.concatenate([-np.expm1(log_misses), np.ones(k)])  # fewer than k wrong answers: every k hits
        columns.append(np.abs(chances)[np.asarray(correct, dtype=int)])
    return np.stack(columns, axis=-1)


def powers_to(samples: int) -> list[int]:
    """1, 2, 4, ... and `samples` itself: the ks at which a curve is drawn."""
    ks = [1 << power for power in range(samples.bit_length())]
    return sorted({*ks, samples})


def curve(counts: PassCounts, ks: Sequence[int] | None = None) -> list[tuple[int, Score]]:
    """pass@k with its 95 % interval over prompts, at `ks` (1, 2, 4, ... if None)."""
    ks = powers_to(counts.samples) if ks is None else list(ks)
    values_PK = estimates(counts.samples, counts.correct, ks)
    return [(k, average(values_PK[:, place])) for place, k in enumerate(ks)]


# ---------------------------------------------------------------- the file


def counts_path(folder: Path, suite: str) -> Path:
    return folder / "evaluations" / f"{suite}.counts.json"


def write_counts(folder: Path, counts: PassCounts) -> None:
    """evaluations/<suite>.counts.json: the counts and the curve, for the report."""
    points = tuple(PassAtKEstimate.of(k, score) for k, score in curve(counts))
    record = PassAtKCounts(counts.suite, counts.samples, counts.rows, counts.prompts, counts.correct, points)
    write_json(counts_path(folder, counts.suite), record.to_json())


def read_counts(folder: Path, suite: str) -> PassCounts | None:
    """The counts of a suite that was asked; None if it was not."""
    path = counts_path(folder, suite)
    if not path.exists():
        return None
    record = PassAtKCounts.from_json(read_json(path))
    return PassCounts(record.suite, record.samples or 0, record.rows, record.prompts, record.correct)
