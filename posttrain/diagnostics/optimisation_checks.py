"""What the alarms look for in the optimisation itself, whatever the method: gradients, the loss, and runs that
learn nothing.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain.diagnostics.detection import Detection
from posttrain.diagnostics.history import RECENT, START, History, mean, noise


@dataclass(frozen=True, slots=True)
class GradientSpike:
    """One step's gradient norm is far above the running median of the steps before it.

    The median, since a mean would be moved by the spikes themselves. Gradients of preference losses fade as pairs are
    separated, and one hard pair then stands out without harm: a spike must also exceed what the run began with.
    """

    name: ClassVar[str] = "gradient_spike"
    metrics: ClassVar[tuple[str, ...]] = ("grad_norm",)

    factor: float = 10.0
    """Times the running median. Healthy norms vary by a factor of about 3 from step to step."""
    factor_of_start: float = 3.0
    """Times the median of the first steps."""
    least_steps: int = 10
    """Steps needed before one can be judged."""

    def look(self, history: History) -> Detection | None:
        before = history.recent("grad_norm", RECENT)
        if len(before) <= self.least_steps:
            return None
        # The newest is judged by those before it, and must not be in its own median. (`recent` gives a copy.)
        norm = before.pop()
        median = statistics.median(before)
        at_start = statistics.median(history.start("grad_norm", START))
        if norm <= self.factor * median or norm <= self.factor_of_start * at_start:
            return None
        # A median of 0 is possible: pairs that are all separated, groups that are all tied.
        times = f"{norm / median:.3g} times " if median > 0 else "far above "
        return Detection(
            severity="warning",
            message=f"the gradient norm is {norm:.3g}, {times}its running median of {median:.3g}",
            evidence={"grad_norm": norm, "running_median": median, "median_at_start": at_start},
            remedy="look at the rows of this step; lower the learning rate, lengthen the warm-up, or clip lower "
            "(optimizer.clip_norm)",
            since=history.step_before("grad_norm", 1),
        )


@dataclass(frozen=True, slots=True)
class LossDivergence:
    """The loss is well above where it started: training destroys what the model knew."""

    name: ClassVar[str] = "loss_divergence"
    metrics: ClassVar[tuple[str, ...]] = ("loss",)

    rise: float = 0.5
    """Share of the starting loss. A DPO loss of 1.04, against ln 2 at the start, ranks pairs worse than a coin."""
    least_rise: float = 0.1
    """Nats; for losses that start near 0."""
    start: int = 5
    window: int = 8
    sigmas: float = 4.0

    def look(self, history: History) -> Detection | None:
        if history.seen("loss") < self.start + self.window:
            return None
        first, recent = history.start("loss", self.start), history.recent("loss", self.window)
        at_start, now = mean(first), mean(recent)
        standard_error = noise(history.recent("loss", RECENT), self.start, self.window)
        # Of |loss|: with an entropy bonus or a policy gradient it may start at or below 0.
        needed = max(self.rise * abs(at_start), self.least_rise, self.sigmas * standard_error)
        if now - at_start <= needed:
            return None
        return Detection(
            severity="critical",
            message=f"the loss rose from {at_start:.3g} to {now:.3g} (mean of {self.window} steps): training diverges",
            evidence={"loss_at_start": at_start, "loss": now, "steps": float(self.window)},
            remedy="go back to the last good checkpoint with a lower learning rate (a third is a good try) or a longer "
            "warm-up",
            since=history.step_before("loss", self.window),
        )


@dataclass(frozen=True, slots=True)
class DeadLearning:
    """Steps pass and nothing moves: no gradient, a learning rate of zero, or weights that are never updated.

    A gradient of exactly 0 is no noise: the loss does not depend on what trains, or none of it does. One such step is
    enough to know, and every further one is wasted, so the run ends there, whatever `alarms.on_critical` says. It does
    so too where the policy term alone has none (`policy_slope`), while a KL, an entropy or an auxiliary loss keeps the
    gradient's norm above 0. Not judged are steps that have nothing to learn from: advantages that are all 0 (the
    rewards' business, `no_reward_signal`), pairs that are all separated, a loss of 0, no supervised token, or none that
    the masks left (`stale_ratios`).
    """

    name: ClassVar[str] = "dead_learning"
    metrics: ClassVar[tuple[str, ...]] = (
        "grad_norm",
        "policy_slope",
        "learning_rate",
        "logprob_chosen_change",
        "logprob_rejected_change",
        "reward_accuracy",
        "advantage_magnitude",
        "supervised_tokens",
        "masked_share",
        "loss",
    )

    window: int = 20
    least_change: float = 1e-4
    """Nats per response. Twenty steps at a useful learning rate move it a hundred times as far; rounding, less."""

    def look(self, history: History) -> Detection | None:
        # Exactness first: one step is proof, the windows below are for what is small and not 0.
        if (now := self._at_once(history)) is not None:
            return now
        if self._all_zero(history, "learning_rate"):
            message = f"the learning rate has been zero for {self.window} steps"
            return self._finding(history, "learning_rate", message, {"learning_rate": 0.0})
        if self._all_zero(history, "grad_norm") and not self._all_separated(history):
            message = f"the gradient has been zero for {self.window} steps"
            return self._finding(history, "grad_norm", message, {"grad_norm": 0.0})
        chosen = history.recent("logprob_chosen_change", self.window)
        rejected = history.recent("logprob_rejected_change", self.window)
        if len(chosen) < self.window or len(rejected) < self.window:
            return None
        # Both sides: a loss may by design leave one of them where it is.
        largest = max(map(abs, chosen + rejected))
        if largest >= self.least_change:
            return None
        message = f"the policy still equals its start after {history.seen('logprob_chosen_change')} steps"
        return self._finding(history, "logprob_chosen_change", message, {"largest_change": largest})

    def _at_once(self, history: History) -> Detection | None:
        """The newest step's gradient, or that of its policy term alone, where it is exactly 0 without a reason."""
        norm = history.newest("grad_norm")
        if norm is None:
            return None
        step, norm_then = norm
        then = {name: value for name in self.metrics if (value := history.at(name, step)) is not None}
        without_signal = then.get("advantage_magnitude") == 0
        # All taken out by the corrections' masks: `stale_ratios` says so when it lasts, and one such step is no defect.
        nothing_asked = then.get("supervised_tokens") == 0 or then.get("masked_share") == 1
        # A hinge past its margin, or every answer known by heart. In a stage that samples a loss of 0 is no sign of it:
        # there advantages add up to 0.
        done = then.get("reward_accuracy") == 1.0 or ("advantage_magnitude" not in then and then.get("loss") == 0)
        if without_signal or nothing_asked:
            return None
        if norm_then == 0 and not done:
            what = "the gradient is exactly 0"
        elif then.get("policy_slope") == 0:
            what = f"the policy term's gradient is exactly 0 (the whole loss has one, of norm {norm_then:.3g})"
        else:
            return None
        return Detection(
            severity="critical",
            message=f"{what}, although there is something to learn from: nothing of it is being learned",
            evidence={
                name: then[name] for name in ("grad_norm", "policy_slope", "advantage_magnitude") if name in then
            },
            remedy="look which columns the loss is made of (`choices`) and which parameters train (an adapter's "
            "targets, frozen layers); `alarms: {off: [dead_learning]}` trains in spite of it",
            # The step itself is the first bad one; `Alarms` ends a run only on a detection of the step just taken.
            since=step - 1,
            stops=True,
        )

    def _all_zero(self, history: History, name: str) -> bool:
        recent = history.recent(name, self.window)
        # Exactly 0, without a tolerance: a warm-up has small rates, and late in training gradients are small with good
        # reason.
        return len(recent) == self.window and not any(recent)

    def _all_separated(self, history: History) -> bool:
        """A hinge loss has no gradient left once every pair is separated: that is an end, not a fault."""
        accuracy = history.recent("reward_accuracy", self.window)
        return bool(accuracy) and min(accuracy) == 1.0

    def _finding(self, history: History, metric: str, message: str, evidence: dict[str, Any]) -> Detection:
        return Detection(
            severity="critical",
            message=f"{message}: nothing is being learned",
            evidence=evidence | {"steps": float(self.window)},
            remedy="check that parameters train (an adapter's targets, frozen layers), and the learning rate and its "
            "schedule",
            since=history.step_before(metric, self.window),
        )
