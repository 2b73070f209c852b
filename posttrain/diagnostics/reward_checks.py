"""What the alarms look for while a reward model trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from posttrain.diagnostics.detection import Detection
from posttrain.diagnostics.history import START, History, mean


@dataclass(frozen=True, slots=True)
class RewardCollapse:
    """All responses get nearly the same reward, and the pairs are ranked no better than by a coin.

    A new head may begin at zero, so the first steps are not judged. A small spread alone is no fault while the order
    is right: rewards can be scaled, but not where there is no order in them.
    """

    name: ClassVar[str] = "reward_collapse"
    metrics: ClassVar[tuple[str, ...]] = ("reward_std", "reward_accuracy")

    window: int = 20
    least_spread: float = 0.01
    """Standard deviation of a step's rewards; healthy heads have 0.3 to 5."""
    chance: float = 0.6
    """Accuracy below which the order is a coin's; 20 steps of 16 pairs that are guessed reach 0.56."""

    def look(self, history: History) -> Detection | None:
        if min(history.seen(name) for name in self.metrics) < START + self.window:  # labelled steps have no order
            return None
        spread, accuracy = (mean(history.recent(name, self.window)) for name in self.metrics)
        if spread >= self.least_spread or accuracy >= self.chance:
            return None
        return Detection(
            severity="critical",
            message=f"all responses get nearly the same reward (standard deviation {spread:.2g} over {self.window} "
            f"steps, accuracy {accuracy:.0%}): the reward model has collapsed",
            evidence={"reward_std": spread, "reward_accuracy": accuracy, "steps": float(self.window)},
            remedy="check that the head and the backbone train, that the pooled token is the response's last, and "
            "that the two sides of the rows differ; raise the learning rate",
            since=history.step_before("reward_std", self.window),
        )


@dataclass(frozen=True, slots=True)
class RewardOverconfidence:
    """On held-out pairs the model is much surer of its order than it is right.

    Its confidence in a pair is sigmoid(|margin|); for a calibrated model the mean confidence is the accuracy
    (Guo et al. 2017, arXiv:1706.04599). Reward models become overconfident when they see their pairs again and again.
    """

    name: ClassVar[str] = "reward_overconfidence"
    metrics: ClassVar[tuple[str, ...]] = ("held_out/reward_confidence", "held_out/reward_accuracy")

    gap: float = 0.15
    """Mean confidence minus accuracy, absolute; twice the standard error of an accuracy over 40 pairs."""
    evaluations: int = 2
    """In a row."""

    def look(self, history: History) -> Detection | None:
        sure, right = (history.points(name)[-self.evaluations :] for name in self.metrics)
        # Both are measured at the same steps; a step that lacks one of them is not judged.
        if len(sure) < self.evaluations or [step for step, _ in sure] != [step for step, _ in right]:
            return None
        # Only too sure is a fault: caution on held-out pairs costs a little scale and no order.
        gaps = [confidence - accuracy for (_, confidence), (_, accuracy) in zip(sure, right, strict=True)]
        if min(gaps) <= self.gap:
            return None
        confidence, accuracy = sure[-1][1], right[-1][1]
        return Detection(
            severity="warning",
            message=f"on held-out pairs the reward model is {confidence:.0%} sure and {accuracy:.0%} right: it is "
            "overconfident",
            evidence={"confidence": confidence, "accuracy": accuracy, "gap": gaps[-1]},
            remedy="train for fewer epochs or with a lower learning rate, or smooth the labels (label_smoothing 0.1)",
            since=history.step_before(self.metrics[0], self.evaluations),
        )
