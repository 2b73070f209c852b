"""Accuracy against what is spent: the curves of a pool of answers, and points of strategies that were run.

    curves = pool_curves(table, ns=(1, 2, 4, 8))      # oracle, majority, best and weighted by each scorer
    values_at(curves[1], tokens=800.0)                # [P], between the points of n = 4 and n = 8

Every value is kept by prompt, so that any two methods are compared over the same prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from posttrain.evaluate.budget.selection import best_of, majority, subsets, weighted
from posttrain.evaluate.pass_at_k import estimates
from posttrain.intervals import average
from posttrain.runs.records.budget import BudgetCurve, BudgetPoint
from posttrain.runs.records.evaluation import Figure


class CurveKind(StrEnum):
    """How a curve came about."""

    ORACLE = "oracle"
    """The chance that any of n answers is right: what no choice among them can exceed."""
    MAJORITY = "majority"
    BEST = "best"
    WEIGHTED = "weighted"
    STRATEGY = "strategy"
    """Run as it is."""


@dataclass(frozen=True, slots=True)
class ScorerTable:
    """What one scorer said of a pool, and what it cost."""

    scores_PN: np.ndarray
    """-inf where it abstained."""
    weights_PN: np.ndarray
    """The scores as numbers of 0 or more."""
    scored: float = 0.0
    """Tokens that reward models read for one answer."""
    sampled: float = 0.0
    """Tokens that the model itself sampled to score one answer."""
    seconds: float = 0.0
    """For one answer."""


@dataclass(frozen=True, slots=True)
class PoolTable:
    """A pool as numbers: who is right, what is said, how it is scored."""

    right_PN: np.ndarray
    """float: 0 or 1."""
    classes: Sequence[Sequence[int | None]]
    """[P][N]: the class of equal answers, None of what says nothing."""
    scorers: Mapping[str, ScorerTable]
    tokens: float
    """Of one answer, a mean over prompts."""
    seconds: float
    """Of one answer, while all prompts are drawn side by side."""

    @property
    def samples(self) -> int:
        return int(self.right_PN.shape[1])

    @property
    def prompts(self) -> int:
        return int(self.right_PN.shape[0])

    def first(self, count: int) -> PoolTable:
        """The pool of each prompt's first `count` answers."""
        return replace(
            self,
            right_PN=self.right_PN[:, :count],
            classes=[own[:count] for own in self.classes],
            scorers={
                name: replace(one, scores_PN=one.scores_PN[:, :count], weights_PN=one.weights_PN[:, :count])
                for name, one in self.scorers.items()
            },
        )


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of a curve, by prompt."""

    label: str
    n: int | None
    values_P: np.ndarray
    tokens: float
    """Sampled for one prompt, a mean over prompts."""
    scored: float
    seconds: float
    stopped: Mapping[str, int] | None = None

    @property
    def value(self) -> float:
        return float(self.values_P.mean())

    def record(self) -> BudgetPoint:
        figure = Figure.of(average(self.values_P))
        return BudgetPoint(self.label, self.n, figure, self.tokens, self.scored, self.seconds, self.stopped)


@dataclass(frozen=True, slots=True)
class Curve:
    """A method at several prices, the cheapest first."""

    name: str
    kind: CurveKind
    points: Sequence[CurvePoint]
    scorer: str | None = None

    @property
    def chooses(self) -> bool:
        """Whether it is a way to an answer; the oracle is none."""
        return self.kind is not CurveKind.ORACLE

    @property
    def of_pool(self) -> bool:
        """Whether it was computed from the pool, so that its points have their n."""
        return self.kind is not CurveKind.STRATEGY

    def at_n(self, n: int) -> CurvePoint:
        return next(point for point in self.points if point.n == n)

    def record(self) -> BudgetCurve:
        return BudgetCurve(self.name, str(self.kind), self.scorer, tuple(point.record() for point in self.points))


def pool_curves(table: PoolTable, ns: Sequence[int]) -> list[Curve]:
    """The oracle, majority, and best and weighted by each scorer, at every n of `ns`."""
    counts_P = table.right_PN.sum(axis=1).astype(int)
    oracle_PK = estimates(table.samples, counts_P, list(ns))
    majority_PK = np.zeros((table.prompts, len(ns)))
    weighted_PK = {name: np.zeros((table.prompts, len(ns))) for name in table.scorers}
    for place, n in enumerate(ns):
        chosen = subsets(table.samples, n)
        for prompt, classes in enumerate(table.classes):
            right = table.right_PN[prompt]
            majority_PK[prompt, place] = majority(classes, right, chosen)
            for name, scorer in table.scorers.items():
                weighted_PK[name][prompt, place] = weighted(
                    classes, scorer.scores_PN[prompt], scorer.weights_PN[prompt], right, chosen
                )
    free = ScorerTable(np.empty(0), np.empty(0))
    curves = [
        _pool_curve("oracle", CurveKind.ORACLE, None, table, free, ns, oracle_PK),
        _pool_curve("majority", CurveKind.MAJORITY, None, table, free, ns, majority_PK),
    ]
    for name, scorer in table.scorers.items():
        best_PK = np.array(
            [best_of(scorer.scores_PN[prompt], table.right_PN[prompt], ns) for prompt in range(table.prompts)]
        )
        curves.append(_pool_curve(f"best of n by {name}", CurveKind.BEST, name, table, scorer, ns, best_PK))
        curves.append(
            _pool_curve(f"weighted by {name}", CurveKind.WEIGHTED, name, table, scorer, ns, weighted_PK[name])
        )
    return curves


def _pool_curve(
    name: str,
    kind: CurveKind,
    scorer_name: str | None,
    table: PoolTable,
    scorer: ScorerTable,
    ns: Sequence[int],
    values_PK: np.ndarray,
) -> Curve:
    # Two methods that choose alike differ in the last digits of their sums, and would be called best and second.
    values_PK = values_PK.round(12)
    points = [
        CurvePoint(
            f"n = {n}",
            n,
            values_PK[:, place],
            tokens=n * (table.tokens + scorer.sampled),
            scored=n * scorer.scored,
            seconds=n * (table.seconds + scorer.seconds),
        )
        for place, n in enumerate(ns)
    ]
    return Curve(name, kind, points, scorer_name)


def values_at(curve: Curve, tokens: float) -> tuple[np.ndarray, float]:
    """[P] of a pool's curve at a price between its points, and the number of answers that this price pays for.

    Linear in the logarithm of the price, prompt by prompt; beyond the ends it is the end.
    """
    points = curve.points
    if tokens <= points[0].tokens:
        return points[0].values_P, float(points[0].n or 1)
    if tokens >= points[-1].tokens:
        return points[-1].values_P, float(points[-1].n or 1)
    place = next(index for index, point in enumerate(points) if point.tokens > tokens)
    low, high = points[place - 1], points[place]
    share = math.log(tokens / low.tokens) / math.log(high.tokens / low.tokens)
    assert low.n is not None and high.n is not None  # a pool's points have their n
    return (1 - share) * low.values_P + share * high.values_P, low.n * (high.n / low.n) ** share
