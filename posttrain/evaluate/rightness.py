"""When an answer is right, for suites that count right answers: by rewards of training, or by the row's number.

rule = Rightness("sums")                      # the last number is the row's answer
rule.require_gold(tasks)
rule.rewards_of([[Given("42", FinishReason.STOP_TOKEN, 3)]], tasks)    # [[1.0]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config.rewards import RewardSettings
from posttrain.data.questions import question
from posttrain.errors import RowError
from posttrain.evaluate.questions import require_gold
from posttrain.evaluate.suites.number import NEEDS, last_number_equals
from posttrain.rewards import Sampled, gold_check, rubric_of
from posttrain.rollout.engine import FinishReason
from posttrain.types import Task


@dataclass(frozen=True, slots=True)
class Given:
    """An answer to be judged: Given("42", FinishReason.STOP_TOKEN, tokens=3)."""

    text: str
    finish: FinishReason
    tokens: int
    """Sampled ids, the stop token included."""


@dataclass(frozen=True, slots=True)
class Rightness:
    """What makes an answer right: Rightness("sums", rewards=(MathReward(kind="math"),), right_from=1.0)."""

    suite: str
    rewards: tuple[RewardSettings, ...] = ()
    """Their sum says whether an answer is right; none: its last number is the task's answer."""
    right_from: float = 1.0
    modules: Path | None = None
    """Where reward functions are looked for first."""

    def require_gold(self, tasks: Sequence[Task]) -> None:
        """Raises RowError where a row's own answer would not be right."""
        if not self.rewards:
            require_gold([question(task) for task in tasks], last_number_equals, NEEDS)
            return
        with rubric_of(self.rewards, folder=self.modules) as rubric:
            # A row that no answer could satisfy lowers pass@k for every model, and hides how far a policy reaches.
            failures = gold_check(tasks, rubric.scorers)
        if failures:
            raise RowError(
                f"the suite `{self.suite}` would not accept the own answers of {len(failures)} of {len(tasks)} rows",
                reason="bad_label",
                where=failures[0].row,
                found=str(failures[0]),
                remedy="correct the answers of these rows or remove them, or choose another reward",
            )

    def rewards_of(self, answers: Sequence[Sequence[Given]], tasks: Sequence[Task]) -> list[list[float | None]]:
        """What each answer earns; None where nobody judged it.

        Raises:
            RewardError: a reward failed.
        """
        if not self.rewards:
            return [
                [last_number_equals(given.text, question(task)) for given in group]
                for task, group in zip(tasks, answers, strict=True)
            ]
        items: list[Sampled] = []
        places: list[tuple[int, int]] = []
        rewards: list[list[float | None]] = [[None] * len(group) for group in answers]
        for number, (task, group) in enumerate(zip(tasks, answers, strict=True)):
            for place, given in enumerate(group):
                # An aborted answer was cut by the engine, not by the model; it is not right and is never judged.
                if given.finish is not FinishReason.ABORTED:
                    items.append(Sampled(task.prompt, given.text, task, given.finish, given.tokens, number))
                    places.append((number, place))
        with rubric_of(self.rewards, folder=self.modules) as rubric:
            for (number, place), scored in zip(places, rubric.score(items), strict=True):
                rewards[number][place] = scored.total
        return rewards

    def is_right(self, reward: float | None) -> bool:
        return reward is not None and reward >= self.right_from
