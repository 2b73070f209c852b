"""Groups that were asked and have not trained: how many there may be, which are too old, and which train next.

    queue = GroupQueue(prompts_per_step=8, max_staleness=2, late="drop")
    queue.room(step=3, steps=100)      # how many more may be asked
    queue.ready(3, 8)                  # the eight groups that step 3 trains on; None while they are not there

The bound is `prompts_per_step * (max_staleness + 1)`, groups that are being sampled and those that wait together
(SkyRL's fully asynchronous trainer has the same). Asked in order and trained in order, a group with the queue full
before it trains `max_staleness` steps after the weights that began it: so none of them is ever too old, and what is
dropped for its age are those that others have overtaken, because they take longer than `max_staleness` steps. With a
larger bound the engine would sample what is thrown away; with a smaller one it would stand still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.training.rl.asks import Ask
from posttrain.training.rl.rollouts import Group, Prompt


@dataclass(slots=True, eq=False)
class LiveGroup:
    """A prompt that was asked and has not trained."""

    ask: Ask
    prompt: Prompt
    started: int | None = None
    """Version of the weights when its sampling began; None before that."""
    group: Group | None = None
    """With its rewards; None while it is sampled or scored."""
    task: asyncio.Task[Any] | None = None
    """What samples and scores it."""

    @property
    def oldest(self) -> int | None:
        """Version of the oldest weights that have a part in it; None where none have yet."""
        if self.group is None:
            return self.started
        return min(response.completion.versions.oldest for response in self.group.responses)


class GroupQueue:
    """See the module's docstring.

    Args:
        late: what becomes of a group that is not whole in the last step that may train on it.
    """

    def __init__(self, prompts_per_step: int, max_staleness: int, late: Literal["drop", "wait"]):
        self.prompts_per_step, self.max_staleness, self.late = prompts_per_step, max_staleness, late
        self._live: dict[int, LiveGroup] = {}

    def __len__(self) -> int:
        return len(self._live)

    @property
    def live(self) -> list[LiveGroup]:
        """In the order in which they were asked."""
        return [self._live[number] for number in sorted(self._live)]

    @property
    def whole(self) -> list[LiveGroup]:
        """Those that could train now, in the order in which they were asked."""
        return [one for one in self.live if one.group is not None]

    def add(self, one: LiveGroup) -> None:
        self._live[one.ask.number] = one

    def remove(self, one: LiveGroup) -> None:
        del self._live[one.ask.number]

    def room(self, step: int, steps: int) -> int:
        """How many more may be asked at the begin of `step`, of a run of `steps`: none that no step is left for."""
        most = self.prompts_per_step * min(self.max_staleness + 1, steps - step)
        return max(0, most - len(self._live))

    def stale(self, step: int) -> list[LiveGroup]:
        """Those that are too old for `step` and every later one."""
        return [one for one in self.live if self.is_stale(one, step)]

    def is_stale(self, one: LiveGroup, step: int) -> bool:
        return one.oldest is not None and step - one.oldest > self.max_staleness

    def ready(self, step: int, count: int) -> list[LiveGroup] | None:
        """What `step` trains on: of the groups that are whole, the first `count` in the order in which they were asked.

        One that is slow is passed over, so that it holds nobody back. Under `late: wait` those come first, whole or
        not, that are too old for the next step.

        Returns:
            None while they are not all whole.
        """
        whole = self.whole
        if self.late == "wait":
            last = [one for one in self.live if one.oldest is not None and step - one.oldest >= self.max_staleness]
            whole = [*last, *(one for one in whole if one not in last)]
        taken = sorted(whole[:count], key=lambda one: one.ask.number)
        return taken if len(taken) == count and all(one.group is not None for one in taken) else None


def age_shares(ages: Mapping[int, int], most: int) -> dict[str, float]:
    """{"staleness_0": 0.25, "staleness_1": 0.75}: the share of the completions at each age from 0 to `most`."""
    total = sum(ages.values())
    return {f"staleness_{age}": ages.get(age, 0) / total for age in range(most + 1)} if total else {}
