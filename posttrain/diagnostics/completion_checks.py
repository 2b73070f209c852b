"""What the alarms look for in the texts of sampled completions: all alike, cut, malformed, refusing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain.diagnostics.detection import Detection
from posttrain.diagnostics.history import Change, History, change, mean

ROLLOUTS = "the metrics of a rollout"


@dataclass(frozen=True, slots=True)
class Duplicates:
    """The completions of a prompt are nearly all the same: a group teaches as much as one of them.

    All n of a group alike is a share of (n - 1) / n, so the share is taken of the largest one that is possible.
    """

    name: ClassVar[str] = "duplicates"
    metrics: ClassVar[tuple[str, ...]] = ("duplicate_share", "groups", "completions")
    needs: ClassVar[tuple[str, ...]] = metrics
    absent: ClassVar[str] = ROLLOUTS

    window: int = 10
    share: float = 0.9
    """Of the duplicates that are possible."""

    def look(self, history: History) -> Detection | None:
        columns = [history.recent(name, self.window) for name in self.metrics]
        if min(map(len, columns)) < self.window:
            return None
        duplicates, groups, completions = map(mean, columns)
        # Groups of one have no duplicates at all: a share of nothing possible is not judged.
        possible = 1 - groups / completions
        if possible <= 0 or duplicates / possible < self.share:
            return None
        size, different = completions / groups, completions * (1 - duplicates) / groups
        return Detection(
            severity="warning",
            message=f"of {size:.3g} completions of a prompt, {different:.2g} differ (mean of {self.window} steps): a "
            "group teaches little more than one completion",
            evidence={"duplicate_share": duplicates, "of_possible": duplicates / possible, "different": different},
            remedy="stop here if the score is good; else raise sampling.temperature (above 0.7), lower the learning "
            "rate, take harder tasks, or keep the entropy up (`entropy_weight`, a `clip_high` above `clip_low`)",
            since=history.step_before("duplicate_share", self.window),
        )


@dataclass(frozen=True, slots=True)
class Truncated:
    """Many completions are cut at `max_new_tokens`, or more and more are: what is cut cannot state its answer.

    Where their rewards are all the same besides, NoRewardSignal says it.
    """

    name: ClassVar[str] = "truncated"
    metrics: ClassVar[tuple[str, ...]] = ("truncated_share", "reward_deviation")
    needs: ClassVar[tuple[str, ...]] = ("truncated_share",)
    absent: ClassVar[str] = ROLLOUTS

    window: int = 10
    share: float = 0.5
    """Of all completions."""
    rise: float = 0.25
    """Since the first ten steps, absolute."""
    sigmas: float = 4.0

    def look(self, history: History) -> Detection | None:
        found = _high(history, "truncated_share", self.window, self.share, self.rise, self.sigmas)
        if found is None or max(history.recent("reward_deviation", self.window), default=1.0) == 0:
            return None
        now, evidence, grew = found
        return Detection(
            severity="warning",
            message=f"{now:.0%} of the completions are cut at the limit (mean of {self.window} steps{grew}): they "
            "state no answer, and their reward says little",
            evidence=evidence,
            remedy="raise sampling.max_new_tokens; where answers grow into the limit, `choices: {shaping: "
            "soft_overlong}` or `dr_grpo`, which does not favour long wrong answers",
            since=history.step_before("truncated_share", self.window),
        )


@dataclass(frozen=True, slots=True)
class Malformed:
    """Completions that end by themselves leave thoughts, a code fence or a box open, more than at the start."""

    name: ClassVar[str] = "malformed"
    metrics: ClassVar[tuple[str, ...]] = ("malformed_share",)
    needs: ClassVar[tuple[str, ...]] = metrics
    absent: ClassVar[str] = ROLLOUTS

    window: int = 10
    share: float = 0.5
    """Of all completions; those that were cut at the limit are open by that and do not count."""
    rise: float = 0.1
    """Since the first ten steps, absolute."""
    sigmas: float = 4.0

    def look(self, history: History) -> Detection | None:
        found = _high(history, "malformed_share", self.window, self.share, self.rise, self.sigmas)
        if found is None:
            return None
        now, evidence, grew = found
        return Detection(
            severity="warning",
            message=f"{now:.0%} of the completions break their form (mean of {self.window} steps{grew}): thoughts, a "
            "code fence or a \\boxed{ are left open",
            evidence=evidence,
            remedy="read some in rollouts.jsonl; reward the form (`kind: format` or `think_tags`), or train it first "
            "(sft); a verifier that needs no closing bracket pays for the broken form",
            since=history.step_before("malformed_share", self.window),
        )


@dataclass(frozen=True, slots=True)
class Refusals:
    """The policy declines more often than at the start: to say no is the safest answer that the reward knows.

    A share that was high from the start may be what the tasks ask for; only its rise is judged.
    """

    name: ClassVar[str] = "refusals"
    metrics: ClassVar[tuple[str, ...]] = ("refusal_share",)
    needs: ClassVar[tuple[str, ...]] = metrics
    absent: ClassVar[str] = ROLLOUTS

    window: int = 10
    rise: float = 0.1
    """Since the first ten steps, absolute."""
    sigmas: float = 4.0

    def look(self, history: History) -> Detection | None:
        # Infinity, so that no level rings, only a rise: some tasks are there to be refused.
        found = _high(history, "refusal_share", self.window, float("inf"), self.rise, self.sigmas)
        if found is None:
            return None
        now, evidence, grew = found
        return Detection(
            severity="warning",
            message=f"{now:.0%} of the completions refuse to answer (mean of {self.window} steps{grew})",
            evidence=evidence,
            remedy="read some in rollouts.jsonl; if the tasks do not call for it, punish it (`kind: refusal`), and "
            "look whether the reward is kinder to a refusal than to a wrong answer",
            since=history.step_before("refusal_share", self.window),
        )


def _high(
    history: History, name: str, window: int, share: float, rise: float, sigmas: float
) -> tuple[float, dict[str, Any], str] | None:
    """(the share now, evidence, what it was) where a share is high for a whole window, or rose beyond noise."""
    recent = history.recent(name, window)
    if len(recent) < window:
        return None
    now, moved = mean(recent), change(history, name, window)
    # A level that was high from the start is a fault of the set-up, a rise one of the training: either rings.
    if now < share and (moved is None or not moved.rises(rise, sigmas)):
        return None
    before = _before(moved)
    return now, {name: now, **before}, f", {before['at_start']:.0%} at the start" if before else ""


def _before(moved: Change | None) -> dict[str, float]:
    return {} if moved is None else {"at_start": moved.before}
