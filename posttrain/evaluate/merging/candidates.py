"""Which merges a search tries: a greedy soup, or one number after the other; without a model.

    found = search(start=(1.0, 1.0), settings=WeightSearch(suite="sums"), names=("maths", "code"), measure=measure)
    found.values, found.candidates

`measure(values)` is the score of the merge with these numbers, on the prompts on which numbers are chosen.

Greedy soup, Wortsman et al. 2022, arXiv:2203.05482, recipe 1: models in the order of their own scores, each kept where
the soup does not lose. Deviations:
 1. A model keeps the weight that the recipe gives it; the paper's soup counts all alike, as `linear` does by default.
 2. Of all merges that were measured the best is taken, the recipe's own among them, not the soup as such: what the
    recipe says may be better than any model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from posttrain.config.merge_measures import WeightSearch
from posttrain.runs.records.merging import Candidate

Values = tuple[float, ...]
Measure = Callable[[Values], float]
OnCandidate = Callable[[tuple[Candidate, ...]], None]
"""Told of all candidates so far whenever one was measured."""
AS_WRITTEN = "as written"


@dataclass(slots=True)
class Tried:
    """The merges that were measured; none is measured twice, and none beyond the budget."""

    measure: Measure
    budget: int
    known: dict[Values, float] = field(default_factory=dict)
    """Scores of an earlier attempt, which cost nothing."""
    on_candidate: OnCandidate | None = None
    candidates: dict[Values, Candidate] = field(default_factory=dict)

    def score(self, values: Values, what: str) -> float | None:
        """None where the budget is spent."""
        if values in self.candidates:
            return self.candidates[values].score
        if len(self.candidates) >= self.budget:
            return None
        score = self.known[values] if values in self.known else self.measure(values)
        self.candidates[values] = Candidate(what, values, score)
        if self.on_candidate is not None:
            self.on_candidate(tuple(self.candidates.values()))
        return score

    @property
    def best(self) -> Candidate:
        """The first of the best: of equal merges the one that was tried before, the recipe's own before all."""
        return max(self.candidates.values(), key=lambda one: one.score if one.score is not None else float("-inf"))


def search(start: Values, settings: WeightSearch, names: Sequence[str], tried: Tried) -> Candidate:
    """Try merges until the budget is spent or nothing gets better; the best on the choosing prompts.

    Args:
        start: the numbers as the recipe has them.
        names: of the models, or of the one number that is searched.
    """
    tried.score(start, AS_WRITTEN)
    if settings.method == "greedy":
        _greedy(start, names, tried)
    else:
        _coordinate(start, settings.values, names, tried, may_be_zero=settings.over != "weights")
    return tried.best


def _greedy(start: Values, names: Sequence[str], tried: Tried) -> None:
    def of(members: Sequence[int]) -> Values:
        return tuple(weight if index in members else 0.0 for index, weight in enumerate(start))

    alone = {}
    for index, name in enumerate(names):
        if start[index] == 0:  # the recipe left it out already
            continue
        if (score := tried.score(of([index]), f"{name} alone")) is None:
            return
        alone[index] = score
    order = sorted(alone, key=lambda index: -alone[index])
    soup, best = order[:1], alone[order[0]]
    for index in order[1:]:
        score = tried.score(of([*soup, index]), f"{names[index]} added to {', '.join(names[i] for i in soup)}")
        if score is None:
            return
        if score >= best:
            soup, best = [*soup, index], score


def _coordinate(
    start: Values, values: Sequence[float], names: Sequence[str], tried: Tried, *, may_be_zero: bool
) -> None:
    at, best = start, tried.candidates[start].score or 0.0
    while True:
        before = at
        for index, name in enumerate(names):
            for value in values:
                other = (*at[:index], value, *at[index + 1 :])
                if not may_be_zero and not any(other):
                    continue  # no model at all; and no sum of weights to divide by
                score = tried.score(other, f"{name} {value:g}")
                if score is None:
                    return
                if score > best:
                    at, best = other, score
        if at == before:
            return
