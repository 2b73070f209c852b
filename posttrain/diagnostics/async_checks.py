"""What the alarms look for where sampling goes on beside training: one of the two waits, or samples in vain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.diagnostics.detection import Detection
from posttrain.diagnostics.history import History, mean


@dataclass(frozen=True, slots=True)
class AsyncStarved:
    """Much of what is sampled is too old before it trains, or the trainer hardly does anything but wait.

    Either way an asynchronous run has lost what it is for. The trainer of a healthy one waits too, where sampling takes
    longer than training; beyond `waiting` it is within a fifth of a run in turns.
    """

    name: ClassVar[str] = "async_starved"
    metrics: ClassVar[tuple[str, ...]] = (
        "groups_dropped_stale",
        "groups",
        "waiting_share",
        "queue_depth",
        "engine_utilisation",
    )

    window: int = 10
    dropped: float = 0.2
    """Share of the prompts that were sampled: what is thrown away is biased, too, for those that take long are."""
    waiting: float = 0.8
    """Share of the step's time."""
    idle: float = 0.5
    """`engine_utilisation` below which the engine is not what the trainer waits for."""

    def look(self, history: History) -> Detection | None:
        dropped, groups = (history.recent(name, self.window) for name in ("groups_dropped_stale", "groups"))
        if len(dropped) == self.window and sum(dropped) > self.dropped * (sum(dropped) + sum(groups[-self.window :])):
            return self._wasted(history, sum(dropped), sum(groups))
        waiting, depth = (history.recent(name, self.window) for name in ("waiting_share", "queue_depth"))
        # With groups that wait, what is slow is this process itself.
        if len(waiting) == self.window and mean(waiting) > self.waiting and mean(depth) < 1:
            return self._waits(history, mean(waiting), mean(depth))
        return None

    def _wasted(self, history: History, dropped: float, groups: float) -> Detection:
        share = dropped / (dropped + groups)
        return Detection(
            severity="warning",
            message=f"{share:.0%} of the prompts that were sampled were dropped, since their completions were too old "
            f"for every step (mean of {self.window} steps): what takes long never trains",
            evidence={"groups_dropped_stale": dropped, "groups": groups, "dropped_share": share},
            remedy="raise `rollout.max_staleness`, write `rollout: {late: wait}`, lower `sampling.max_new_tokens`, or "
            "sample fewer prompts at a time (`rollout.in_flight`), each of them faster",
            since=history.step_before("groups_dropped_stale", self.window),
        )

    def _waits(self, history: History, waiting: float, depth: float) -> Detection:
        evidence = {"waiting_share": waiting, "queue_depth": depth}
        loads = history.recent("engine_utilisation", self.window)
        if loads and mean(loads) < self.idle:
            evidence["engine_utilisation"] = mean(loads)
            remedy = (
                "the engine is not full: raise `rollout.in_flight` or `max_staleness`; or the rewards are slow: raise "
                "`rollout.scored_at_once`"
            )
        else:
            remedy = "the engine is full: give it more cards or servers, and the trainer fewer"
        return Detection(
            severity="warning",
            message=f"the trainer waits for {waiting:.0%} of its time with an empty queue (mean of {self.window} "
            "steps): sampling beside training gains little",
            evidence=evidence,
            remedy=remedy,
            since=history.step_before("waiting_share", self.window),
        )
