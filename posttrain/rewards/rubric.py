"""Several rewards as one: a weighted sum whose parts stay visible, and the check that verifiers accept what is right.

rubric = Rubric([Scorer("math", verify, 1.0), Scorer("short", short, 0.1)])
rubric.score(items)    # [Scored(total=1.05, parts={"math": 1.0, "short": 0.5}), ...]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from posttrain.arguments import checked_instance, checked_list
from posttrain.errors import ConfigError, DataError, RewardError
from posttrain.rewards.scorer import Sampled, Scorer
from posttrain.rewards.sharing import score_shared
from posttrain.rollout.engine import FinishReason
from posttrain.types import RowRef, Task

GOLD_BATCH = 256
ANY_ANSWER = "0"
"""What a verifier is asked where the row has no answer: one that can judge the row says something of it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Scored(total=1.05, parts={"math": 1.0, "short": 0.5, "judge": None}); None: the reward abstained."""

    total: float | None
    """Weighted sum of the parts; None where every part abstained, so that nobody judged the response."""
    parts: dict[str, float | None] = field(default_factory=dict)
    """As the rewards gave them, before their weights."""


class Rubric:
    """Weighted rewards.

    Raises:
        ConfigError: no reward, or two of one name.
    """

    def __init__(self, scorers: Sequence[Scorer]):
        example = 'Rubric([resolve({"kind": "math"})])'
        scorers = checked_list("scorers", scorers, of="rewards", example=example)
        for scorer in scorers:
            checked_instance("scorers", scorer, Scorer, expected="what `resolve` gives", remedy=f"write `{example}`")
        names = [scorer.name for scorer in scorers]
        double = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if not names or double:
            raise ConfigError(
                f"two rewards are named `{double}`" if double else "there is no reward",
                remedy="give one of them a `name`" if double else "list at least one under `rewards`",
            )
        self.scorers = tuple(scorers)

    def score(self, items: Sequence[Sampled]) -> list[Scored]:
        """Each response's total and parts, in the order of the responses.

        Raises:
            RewardError: a reward failed; names it and the row.
        """
        columns = {scorer.name: score_shared(scorer, items) for scorer in self.scorers}
        return [self._weighted_sum({name: values[i] for name, values in columns.items()}) for i in range(len(items))]

    def _weighted_sum(self, parts: dict[str, float | None]) -> Scored:
        # An abstention leaves the sum; as 0 it would punish the response for what the reward could not judge.
        judged = [(scorer.weight, part) for scorer in self.scorers if (part := parts[scorer.name]) is not None]
        return Scored(sum(weight * part for weight, part in judged) if judged else None, parts)

    def close(self) -> None:
        for scorer in self.scorers:
            if scorer.close is not None:
                scorer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class GoldFailure:
    """A row whose own answer a verifier does not accept: no model can be right there.

    GoldFailure(RowRef("sums.jsonl", 3), "math", 0.0, "\\\\boxed{1/0}", "")
    """

    row: RowRef
    reward: str
    score: float | None
    gold: str
    """The response that was built from the row's answer."""
    why: str = ""

    def __str__(self) -> str:
        given = "abstains from" if self.score is None else f"gives {self.score:g} to"
        if self.why:
            given = f"fails on ({self.why})"
        return f"{self.row}: the reward `{self.reward}` {given} the row's own answer {self.gold[:80]!r}"


def gold_check(tasks: Iterable[Task], scorers: Iterable[Scorer]) -> list[GoldFailure]:
    """The rows whose own answer a verifier does not give 1, in the rows' order; empty if all is well.

    Rewards that are no verifiers, and tasks without an answer, are passed over.
    """
    rows = list(tasks)
    # A reshaping reward (cosine) never gives 1 by itself, so the verifier inside it is asked.
    failures = [failure for scorer in scorers for failure in _of_one(rows, scorer.inner or scorer)]
    # By identity: rows of two files may be equal in every field.
    order = {id(task.row): index for index, task in enumerate(rows)}
    return sorted(failures, key=lambda failure: order[id(failure.row)])


def unjudged(tasks: Iterable[Task], scorers: Iterable[Scorer]) -> list[Task]:
    """The tasks that no verifier judges, whatever a model answers: rows without an answer, mostly.

    A verifier that raises is taken to judge: its error is shown when it is asked for good.
    """
    left = list(tasks)
    for scorer in scorers:
        asked = scorer.inner or scorer
        if asked.gold is None:
            continue
        without = [task for task in left if asked.gold(task) is None]
        items = [
            Sampled(task.prompt, ANY_ANSWER, task, FinishReason.STOP_TOKEN, 1, group)
            for group, task in enumerate(without)
        ]
        silent = [item.task for item, outcome in zip(items, _tried(asked, items), strict=True) if outcome == (None, "")]
        left = silent
    return left


def _of_one(tasks: Sequence[Task], scorer: Scorer) -> list[GoldFailure]:
    if scorer.gold is None:
        return []
    failures = []
    known = [(task, gold) for task in tasks if (gold := scorer.gold(task)) is not None]
    for start in range(0, len(known), GOLD_BATCH):
        window = known[start : start + GOLD_BATCH]
        items = [
            Sampled(task.prompt, gold, task, FinishReason.STOP_TOKEN, len(gold), group)
            for group, (task, gold) in enumerate(window)
        ]
        for item, (value, why) in zip(items, _tried(scorer, items), strict=True):
            if value is None or value < 1:
                failures.append(GoldFailure(item.task.row, scorer.name, value, item.completion, why))
    return failures


def _tried(scorer: Scorer, items: Sequence[Sampled]) -> list[tuple[float | None, str]]:
    """The scores; where one row breaks the reward, row by row, so that the others are still checked."""
    try:
        return [(value, "") for value in scorer.score(items)]
    # Of the row, both; a model or a package that is not there is no matter of any row, and ends the check.
    except (RewardError, DataError) as error:
        if len(items) == 1:
            return [(None, error.problem)]
        return [outcome for item in items for outcome in _tried(scorer, [item])]
