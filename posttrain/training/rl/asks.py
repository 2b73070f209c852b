"""What an asynchronous rollout asks, and in which order: the stage's tasks one by one, each under its own seed.

    asks = AskOrder(order, prompts, seed)
    asks.next()                              # Ask(number=0, block=0, round=0, place=0, task=12, occurrence=0)
    asks.more(3, 1, 2, used=[12, 40])        # two others for step 3, in the place of groups that taught nothing

A block is what a step asks where sampling and training take turns, and an ask has the seed that it has there. So the
same task is answered the same by the same weights, and with a staleness of 0 every step asks exactly its own block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from posttrain.training.order import stream_seed
from posttrain.training.rl.rollouts import Prompt


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt that was asked: Ask(number=41, block=5, round=0, place=1, task=12, occurrence=0)."""

    number: int
    """How many were asked before it in this run, over all attempts."""
    block: int
    """The step whose tasks it is one of."""
    round: int
    """0: one of the block's own; above: asked in the place of a group without a signal."""
    place: int
    """Within its block and round."""
    task: int
    """Index among the stage's tasks."""
    occurrence: int
    """How many of its block and round before it have equal prompts."""

    @property
    def key(self) -> str:
        """Its name on disk; no two asks of a run share it."""
        return f"{self.block:08d}-{self.round}-{self.place:05d}"

    def seed(self, run_seed: int) -> int:
        """That its completions are drawn from."""
        return stream_seed(run_seed, "sampling", self.block, self.round)

    def to_json(self) -> list[int]:
        return [self.number, self.block, self.round, self.place, self.task, self.occurrence]


class StepTasks(Protocol):
    """`TaskOrder` or `Curriculum`: which tasks a step asks."""

    def at(self, step: int) -> list[int]: ...

    def more(self, step: int, round_number: int, count: int, used: Sequence[int]) -> list[int]: ...


class AskOrder:
    """See the module's docstring.

    Args:
        order: the tasks of each step; of a curriculum, drawn when the block's first task is asked.
        prompts: the stage's tasks.
    """

    def __init__(self, order: StepTasks, prompts: Sequence[Prompt]):
        self._order, self._prompts = order, prompts
        self._number = 0
        self._block = -1
        self._left: list[Ask] = []
        """Of the block that is being asked; numbered when they are."""

    def next(self) -> Ask:
        if not self._left:
            self._block += 1
            self._left = self._asks(self._block, 0, self._order.at(self._block))
        return self._numbered(self._left.pop(0))

    def more(self, step: int, round_number: int, count: int, used: Sequence[int]) -> list[Ask]:
        """`count` others for a step; none of them in `used` while there are others."""
        tasks = self._order.more(step, round_number, count, used)
        return [self._numbered(ask) for ask in self._asks(step, round_number, tasks)]

    def state_dict(self) -> dict[str, Any]:
        return {"number": self._number, "block": self._block, "left": [ask.to_json() for ask in self._left]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._number, self._block = int(state["number"]), int(state["block"])
        # The tasks themselves and not the draw: a curriculum has learned since it was made.
        self._left = [Ask(*map(int, ask)) for ask in state["left"]]

    def _asks(self, block: int, round_number: int, tasks: Sequence[int]) -> list[Ask]:
        seen: Counter[tuple[int, ...]] = Counter()
        asks = []
        for place, task in enumerate(tasks):
            ids = tuple(self._prompts[task].ids)
            asks.append(Ask(0, block, round_number, place, task, seen[ids]))
            seen[ids] += 1
        return asks

    def _numbered(self, ask: Ask) -> Ask:
        self._number += 1
        return Ask(self._number - 1, ask.block, ask.round, ask.place, ask.task, ask.occurrence)
