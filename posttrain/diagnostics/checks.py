"""What the alarms look for: one frozen record of named thresholds per check, each a pure function of the history.

A check never fires on noise alone: a change has to exceed both a size that matters and `sigmas` standard errors of
what it is measured on, since batches differ and an alarm that cries at noise is switched off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from posttrain.diagnostics.async_checks import AsyncStarved
from posttrain.diagnostics.completion_checks import Duplicates, Malformed, Refusals, Truncated
from posttrain.diagnostics.detection import AlarmCheck, Detection, OnlineAlarmCheck
from posttrain.diagnostics.history import RECENT, START, History, mean, noise
from posttrain.diagnostics.online_checks import LengthHacking, NoRewards, NoRewardSignal, RewardHacking
from posttrain.diagnostics.optimisation_checks import DeadLearning, GradientSpike, LossDivergence
from posttrain.diagnostics.policy_checks import (
    ClipShare,
    EntropyBlowup,
    EntropyCollapse,
    KLBounds,
    NegativeKL,
    SamplerMismatch,
    StaleRatios,
)
from posttrain.diagnostics.reward_checks import RewardCollapse, RewardOverconfidence

# ---------------------------------------------------------------- preferences


@dataclass(frozen=True, slots=True)
class LikelihoodDisplacement:
    """The margin rises while the chosen responses become less likely than at the start.

    A pairwise loss sees only the difference of the two sides: it also falls when both fall and the rejected side
    falls faster. The probability then goes to responses that nobody has chosen, at worst to their opposite
    (Razin et al. 2024, "Unintentional Unalignment", arXiv:2410.08847; Pal et al. 2024, "Smaug", arXiv:2402.13228).

    With a reference the start is exact: `logprob_chosen_change` is 0 and the margin is 0. Without one (simpo, orpo,
    cpo) the first ten steps stand for it, with their noise.
    """

    name: ClassVar[str] = "likelihood_displacement"
    metrics: ClassVar[tuple[str, ...]] = (
        "logprob_chosen_change",
        "logprob_per_token_chosen",
        "length_chosen",
        "reward_margin",
        "reward_accuracy",
    )

    window: int = 8
    fall_per_sequence: float = 1.0
    """Nats: the chosen response is 1/e as likely as it was. Smaller falls change no sampled answer."""
    fall_per_token: float = 0.02
    """Nats per token, about 2 % of each token's probability: a long response loses a nat without any harm."""
    critical_fall_per_token: float = 1.0
    """Nats per token: the perplexity of the chosen responses has grown e-fold."""
    sigmas: float = 3.0
    window_without_reference: int = 20
    sigmas_without_reference: float = 5.0
    """Log-probs of different texts scatter much more than changes of the same text."""

    def look(self, history: History) -> Detection | None:
        if history.seen("logprob_chosen_change"):
            fall, window = self._fall_since_start(history), self.window
        else:
            fall, window = self._fall_since_first_steps(history), self.window_without_reference
        return None if fall is None else self._finding(history, fall, window)

    def _fall_since_start(self, history: History) -> float | None:
        """Nats per token that the chosen responses lost against the reference while the sides part; None if not."""
        change = history.recent("logprob_chosen_change", RECENT)
        if len(change) < self.window:
            return None
        # Against the reference, whose log-probs are the start's: the change at step 0 is exactly 0, so that no first
        # steps are needed to compare with.
        fall = -mean(change[-self.window :])
        lengths = history.recent("length_chosen", self.window)
        # Without lengths the whole fall counts as one token's: rather an alarm too many than a displacement unseen.
        per_token = fall / mean(lengths) if lengths else fall
        falls = fall > self.fall_per_sequence + self.sigmas * noise(change, self.window)
        # Accuracy too, for objectives without a margin. Where neither rises both sides fall alike: the run forgets, and
        # the pairs are not the reason.
        parts = self._rises(history, "reward_margin", 0.0) or self._rises(history, "reward_accuracy", 0.5)
        return per_token if falls and parts and per_token > self.fall_per_token else None

    def _rises(self, history: History, name: str, at_start: float) -> bool:
        values = history.recent(name, RECENT)
        rise = self.sigmas * noise(values, self.window)
        # The start is known (0, or a coin's 0.5), so only the window's own noise counts.
        return len(values) >= self.window and mean(values[-self.window :]) - at_start > rise

    def _fall_since_first_steps(self, history: History) -> float | None:
        """The same without a reference: the first ten steps against the last `window_without_reference`."""
        falls = self._beyond_noise(history, "logprob_per_token_chosen")
        rises = self._beyond_noise(history, "reward_margin") or self._beyond_noise(history, "reward_accuracy")
        if not (falls and rises and falls < -self.fall_per_token and rises > 0):
            return None
        return -falls

    def _beyond_noise(self, history: History, name: str) -> float | None:
        """Change of a metric since the first steps; None if it is noise, or too early to say."""
        window = self.window_without_reference
        # While the window overlaps the first steps, a value would be in both means and cancel itself.
        if history.seen(name) < START + window:
            return None
        values = history.recent(name, RECENT)
        change = mean(values[-window:]) - mean(history.start(name, START))
        return change if abs(change) > self.sigmas_without_reference * noise(values, START, window) else None

    def _finding(self, history: History, per_token: float, window: int) -> Detection:
        # All of it over the steps that the fall is a mean of: a shorter window would begin inside the trouble, and so
        # name a checkpoint that has it in its weights.
        evidence = {"fall_per_token": per_token}
        for name in ("logprob_chosen_change", "reward_margin", "reward_accuracy"):
            if history.seen(name):
                evidence[name] = mean(history.recent(name, window))
        sides = ", ".join(f"{name} {value:.3g}" for name, value in evidence.items() if name.startswith("reward"))
        watched = "logprob_chosen_change" if "logprob_chosen_change" in evidence else "logprob_per_token_chosen"
        return Detection(
            severity="critical" if per_token >= self.critical_fall_per_token else "warning",
            message=f"the chosen responses lose probability ({per_token:.3g} nats per token since the start) while the "
            f"two sides part ({sides}): likelihood displacement",
            evidence=evidence,
            remedy="anchor the chosen response (method dpo_nll with nll_weight 0.2 to 1, or dpop), raise beta, lower "
            "the learning rate, or train on pairs whose two sides differ more",
            since=history.step_before(watched, window),
        )


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class NothingSupervised:
    """A step trained on no token: its loss is 0 and means nothing."""

    name: ClassVar[str] = "nothing_supervised"
    metrics: ClassVar[tuple[str, ...]] = ("supervised_tokens",)

    def look(self, history: History) -> Detection | None:
        # One such step is enough: chance does not empty a whole batch of its answers.
        if history.recent("supervised_tokens", 1) != [0.0]:
            return None
        return Detection(
            severity="critical",
            message="this step had no token to train on; its loss of 0 is no success",
            evidence={"supervised_tokens": 0.0},
            remedy="look at the decoded rows of the preflight: the chat template, `encoding.train_on` or the "
            "truncation removes every answer",
            since=history.step_before("supervised_tokens", 1),
        )


@dataclass(frozen=True, slots=True)
class LengthDrift:
    """Responses grow or shrink against the first steps.

    Of generated responses it is the commonest sign of a reward that is won by length (Singhal et al. 2023,
    arXiv:2310.03716). Lengths of data do not depend on the policy: if they drift, the rows come sorted by length,
    and the last batches train something else than the first. Lengths are compared by their logarithm, since they
    scatter by factors.
    """

    name: ClassVar[str] = "length_drift"
    metrics: ClassVar[tuple[str, ...]] = (
        "length_generated",
        "length",
        "length_chosen",
        "length_rejected",
        "held_out/score",
    )

    factor: float = 1.5
    window: int = 20
    sigmas: float = 5.0

    def look(self, history: History) -> Detection | None:
        # The last one is the held-out score, which is no length; it only excuses generated answers that grew.
        for name in self.metrics[:-1]:
            if history.seen(name) < START + self.window or (name == "length_generated" and _better(history)):
                continue
            start = [math.log(max(length, 1.0)) for length in history.start(name, START)]
            recent = [math.log(max(length, 1.0)) for length in history.recent(name, RECENT)]
            at_start, now = mean(start), mean(recent[-self.window :])
            # Of the logs: batches of lengths that scatter by factors have a symmetrical noise only there.
            standard_error = noise(recent, START, self.window)
            if abs(now - at_start) > max(math.log(self.factor), self.sigmas * standard_error):
                return self._finding(history, name, math.exp(at_start), math.exp(now))
        return None

    def _finding(self, history: History, name: str, before: float, now: float) -> Detection:
        generated = name == "length_generated"
        remedy = (
            "read the samples; penalise length in the reward, normalise it, or lower the learning rate"
            if generated
            else "shuffle the rows: they come in order of length, so the last steps train on other data than the first"
        )
        return Detection(
            severity="warning",
            message=f"{'generated' if generated else 'training'} responses went from {before:.0f} to {now:.0f} tokens "
            f"({name}, mean of {self.window} steps)",
            evidence={"metric": name, "at_start": before, "now": now, "ratio": now / before},
            remedy=remedy,
            since=history.step_before(name, self.window),
        )


def _better(history: History) -> bool:
    """Whether held-out answers got better on the way: then their length is no fault (LengthHacking judges it)."""
    # Longer answers that score higher are what reasoning looks like, and no drift.
    scores = [score for _, score in history.points("held_out/score")]
    return len(scores) > 1 and scores[-1] > scores[0]


@dataclass(frozen=True, slots=True)
class Overfitting:
    """What is trained on gets better while what is held out gets worse, evaluation after evaluation."""

    name: ClassVar[str] = "overfitting"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "held_out/loss", "held_out/reward_accuracy")

    evaluations: int = 3
    """In a row that must be worse than the best: one or two are noise of a small held-out set."""
    loss_rise: float = 0.1
    """Share of the best held-out loss."""
    accuracy_fall: float = 0.1
    """Below the best held-out accuracy, absolute."""

    def look(self, history: History) -> Detection | None:
        loss, accuracy = history.points("held_out/loss"), history.points("held_out/reward_accuracy")
        train_start, train_now = history.start("loss", 5), history.recent("loss", 5)
        # Held-out metrics that get worse together with the training loss are divergence, which another alarm says.
        if len(loss) <= self.evaluations or len(train_now) < 5 or mean(train_now) >= mean(train_start):
            return None
        best_step, best_loss = min(loss, key=lambda point: point[1])
        # Of |loss|: some losses are negative, and a share of a negative best would lie below it.
        worse = [value > best_loss + self.loss_rise * abs(best_loss) for _, value in loss[-self.evaluations :]]
        if all(worse):
            return self._finding("loss", best_loss, loss[-1][1], best_step, mean(train_start), mean(train_now))
        if len(accuracy) <= self.evaluations:
            return None
        best_step, best_accuracy = max(accuracy, key=lambda point: point[1])
        # Looked at apart: pairs with small margins can change their order while the loss hardly moves.
        worse = [value < best_accuracy - self.accuracy_fall for _, value in accuracy[-self.evaluations :]]
        if not all(worse):
            return None
        last = accuracy[-1][1]
        return self._finding("reward_accuracy", best_accuracy, last, best_step, mean(train_start), mean(train_now))

    def _finding(
        self, metric: str, best: float, last: float, best_step: int, train_start: float, train_now: float
    ) -> Detection:
        return Detection(
            severity="warning",
            message=f"the training loss falls while the held-out {metric.replace('_', ' ')} went from {best:.3g} at "
            f"step {best_step} to {last:.3g}: overfitting",
            evidence={
                "metric": metric,
                "best_held_out": best,
                "last_held_out": last,
                "best_step": best_step,
                "train_loss_at_start": train_start,
                "train_loss": train_now,
            },
            remedy="stop at the best step, train fewer epochs, use more distinct rows, or lower the learning rate",
            since=best_step,
        )


# Alarms of one step are returned in this order: first what makes the findings of the others meaningless.
_ONLINE: tuple[OnlineAlarmCheck, ...] = (
    NoRewards(),
    NoRewardSignal(),
    SamplerMismatch(),
    StaleRatios(),
    NegativeKL(),
    RewardHacking(),
    LengthHacking(),
    EntropyCollapse(),
    EntropyBlowup(),
    KLBounds(),
    ClipShare(),
    Duplicates(),
    Truncated(),
    Malformed(),
    Refusals(),
)
_OTHERS: tuple[AlarmCheck, ...] = (
    NothingSupervised(),
    LossDivergence(),
    DeadLearning(),
    RewardCollapse(),
    LikelihoodDisplacement(),
    RewardOverconfidence(),
    Overfitting(),
    GradientSpike(),
    LengthDrift(),
    AsyncStarved(),
)
ONLINE_CHECKS: Mapping[str, OnlineAlarmCheck] = MappingProxyType({check.name: check for check in _ONLINE})
"""Those of a stage that samples."""
CHECKS: Mapping[str, AlarmCheck] = MappingProxyType({check.name: check for check in (*_OTHERS, *_ONLINE)})
"""Every check with its default thresholds; several that ring at one step are said in this order."""
