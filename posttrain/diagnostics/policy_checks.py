"""What the alarms look for in a policy that trains on its own completions: entropy, KL, clips, and the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from posttrain.diagnostics.detection import Detection
from posttrain.diagnostics.history import RECENT, History, change, mean, noise

REFERENCE = "a KL: `choices: {kl: reverse}`, with `kl_beta: 0` to measure it only"
ROLLOUTS = "the metrics of a rollout"


@dataclass(frozen=True, slots=True)
class EntropyCollapse:
    """The policy has all but stopped to choose: nothing new is sampled, so nothing new can be learned.

    Entropy falls in every run that learns; gains stop where it is spent (Cui et al. 2025, arXiv:2505.22617).
    """

    name: ClassVar[str] = "entropy_collapse"
    metrics: ClassVar[tuple[str, ...]] = ("entropy_sampled",)
    needs: ClassVar[tuple[str, ...]] = metrics
    absent: ClassVar[str] = ROLLOUTS

    window: int = 10
    share: float = 0.1
    """Of the entropy of the first ten steps: what is left when the alarm rings."""
    least: float = 0.005
    """Nats per token, whatever the start was: one token in a thousand is not the likeliest one."""
    sigmas: float = 4.0

    def look(self, history: History) -> Detection | None:
        recent = history.recent("entropy_sampled", self.window)
        if len(recent) < self.window:
            return None
        now, moved = mean(recent), change(history, "entropy_sampled", self.window)
        # A share of the start and no level: tasks with few possible answers start low, and are healthy there.
        spent = moved is not None and now < self.share * moved.before and moved.falls(0.0, self.sigmas)
        # The level rings alone too: a policy that began without entropy has none to lose.
        if not spent and now >= self.least:
            return None
        before = {} if moved is None else {"entropy_at_start": moved.before}
        was = "" if moved is None else f", {moved.before:.3g} at the start"
        return Detection(
            severity="warning",
            message=f"the entropy is {now:.2g} nats per token (mean of {self.window} steps{was}): the policy says one "
            "thing only",
            evidence={"entropy_sampled": now, **before},
            remedy="lower the learning rate, make fewer updates per rollout, set `clip_high` above `clip_low` (as "
            "`dapo` does), or give `entropy_weight` a small value; sampling.temperature below 1 speeds it up",
            since=history.step_before("entropy_sampled", self.window),
        )


@dataclass(frozen=True, slots=True)
class EntropyBlowup:
    """The policy forgets how to speak: its entropy grows to a multiple of what it was."""

    name: ClassVar[str] = "entropy_blowup"
    metrics: ClassVar[tuple[str, ...]] = ("entropy_sampled",)
    needs: ClassVar[tuple[str, ...]] = metrics
    absent: ClassVar[str] = ROLLOUTS

    window: int = 10
    factor: float = 2.0
    """Times the mean of the first ten steps."""
    least_rise: float = 0.3
    """Nats per token: tasks of another kind move a low entropy by less."""
    sigmas: float = 4.0

    def look(self, history: History) -> Detection | None:
        moved = change(history, "entropy_sampled", self.window)
        # Factor and size: from 0.02 to 0.05 nats is a doubling that nobody would notice in a completion.
        if moved is None or moved.now < self.factor * moved.before or not moved.rises(self.least_rise, self.sigmas):
            return None
        return Detection(
            severity="warning",
            message=f"the entropy grew from {moved.before:.3g} to {moved.now:.3g} nats per token (mean of "
            f"{self.window} steps): the policy dissolves into noise",
            evidence={"entropy_at_start": moved.before, "entropy_sampled": moved.now},
            remedy="read the newest completions; lower the learning rate or `entropy_weight`, add a KL, and look "
            "whether engine and trainer agree (`sampler_kl`)",
            since=history.step_before("entropy_sampled", self.window),
        )


KL_KINDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "kl_sequence_reference": ("most_per_response", "nats per response, sampled (k1 of whole responses)"),
        "kl_k1_reference": ("most_per_token", "nats per token, sampled (k1)"),
        "kl_k3_reference": ("most_k3_per_token", "nats per token, sampled (k3)"),
        "kl_exact_reverse": ("most_per_token", "nats per token, exact"),
    }
)
"""Metric -> (the bound that it has, its unit and kind)."""


@dataclass(frozen=True, slots=True)
class KLBounds:
    """The policy is far from its start: what the start knew, and the reward was trained on, is out of sight.

    Gao et al. 2022, arXiv:2210.10760, figure 1: gold rewards of gamed reward models peak at some tens of nats per
    response and fall beyond. Each kind of KL has a bound of its own.
    """

    name: ClassVar[str] = "kl_bounds"
    metrics: ClassVar[tuple[str, ...]] = tuple(KL_KINDS)
    needs: ClassVar[tuple[str, ...]] = ("kl_sequence_reference",)
    absent: ClassVar[str] = REFERENCE

    window: int = 5
    most_per_response: float = 60.0
    """Nats per response, of `kl_sequence_reference`."""
    most_per_token: float = 0.5
    """Nats per token, of k1 and of the exact KL: each token is drawn from another distribution."""
    most_k3_per_token: float = 2.0
    """Nats per token, of k3, which a few lost tokens drive up (it grows as 1 / ratio)."""

    def look(self, history: History) -> Detection | None:
        bounds = {
            "most_per_response": self.most_per_response,
            "most_per_token": self.most_per_token,
            "most_k3_per_token": self.most_k3_per_token,
        }
        # One finding at a time, the sequence's first: it is the KL that papers plot and that `kl_target` follows.
        for metric, (bound, unit) in KL_KINDS.items():
            recent = history.recent(metric, self.window)
            if len(recent) == self.window and mean(recent) > bounds[bound]:
                return self._finding(history, metric, unit, mean(recent), bounds[bound])
        return None

    def _finding(self, history: History, metric: str, unit: str, now: float, bound: float) -> Detection:
        return Detection(
            severity="warning",
            message=f"the KL to the start is {now:.3g} {unit}, above {bound:g} (mean of {self.window} steps)",
            evidence={"metric": metric, "kl": now, "bound": bound},
            remedy="raise `kl_beta`, set `kl_target`, lower the learning rate, or end there (`stop: {kl_above: ...}`); "
            "if the held-out score still rises, raise this bound",
            since=history.step_before(metric, self.window),
        )


@dataclass(frozen=True, slots=True)
class NegativeKL:
    """A sampled KL whose mean is below 0 by more than its noise: a KL cannot be, so its log-probs are wrong.

    k1 is unbiased on tokens that its first distribution sampled. Where the mean is negative they were not: the engine
    sampled from something else than the trainer's policy (temperature, stale weights, precision), or the reference is
    not the start. After updates within a step, k1 to the reference is no KL; with `kl_k1_old` added it is that of
    the policy that sampled. Steps that train on a selection of their groups are not judged: a selection is biased.
    """

    name: ClassVar[str] = "negative_kl"
    metrics: ClassVar[tuple[str, ...]] = (
        "kl_k1_reference",
        "kl_k1_old",
        "groups",
        "groups_trained",
        "staleness",
        "sampler_kl_k1",
    )
    needs: ClassVar[tuple[str, ...]] = ("kl_k1_reference",)
    absent: ClassVar[str] = REFERENCE

    window: int = 10
    least: float = 0.005
    """Nats per token below 0."""
    sigmas: float = 4.0
    all_groups: float = 0.999
    """Share of the groups that must train."""

    def look(self, history: History) -> Detection | None:
        reference, old = history.recent("kl_k1_reference", RECENT), history.recent("kl_k1_old", RECENT)
        if len(reference) < self.window:
            return None
        if sum(history.recent("groups_trained", RECENT)) < self.all_groups * sum(history.recent("groups", RECENT)):
            return None
        moved = old if len(old) == len(reference) else [0.0] * len(reference)
        # E log(now / reference) under the policy that sampled is below 0 once updates have moved the policy; adding
        # log(old / now) turns it into log(old / reference), a KL again.
        values = [one + other for one, other in zip(reference, moved, strict=True)]
        if any(history.recent("staleness", RECENT)):
            # So it is where sampling ran ahead: log(engine / old), with older weights on the engine's side.
            drifted = history.recent("sampler_kl_k1", RECENT)[-len(values) :]
            if len(drifted) < self.window:
                return None
            values = [one + other for one, other in zip(values[-len(drifted) :], drifted, strict=True)]
        now, error = mean(values[-self.window :]), noise(values, self.window)
        if -now <= max(self.least, self.sigmas * error):
            return None
        return Detection(
            severity="warning",
            message=f"the sampled KL to the start is {now:.3g} nats per token (k1, mean of {self.window} steps, "
            f"standard error {error:.2g}), and no KL is below 0: its log-probs are not of the policy that sampled, or "
            "the reference is not the start",
            evidence={"kl": now, "standard_error": error},
            remedy="compare engine and trainer (`sampler_kl`, `sync_gap`): temperature, precision, weights that were "
            "not synced; then look whether the reference is the model that the stage began with",
            since=history.step_before("kl_k1_reference", self.window),
        )


@dataclass(frozen=True, slots=True)
class ClipShare:
    """The clip cuts off the gradient of many tokens: the updates of a rollout go further than the clip allows."""

    name: ClassVar[str] = "clip_share"
    metrics: ClassVar[tuple[str, ...]] = ("clip_share_low", "clip_share_high")
    needs: ClassVar[tuple[str, ...]] = ("clip_share_high",)
    absent: ClassVar[str] = "a surrogate that clips (docs/online.md)"

    window: int = 10
    share: float = 0.3
    """Of the trained tokens, both sides together. `gspo` clips about 0.15 by design (arXiv:2507.18071)."""

    def look(self, history: History) -> Detection | None:
        low, high = (history.recent(name, self.window) for name in self.metrics)
        if len(low) < self.window or len(high) < self.window:
            return None
        below, above = mean(low), mean(high)
        if below + above <= self.share:
            return None
        return Detection(
            severity="warning",
            message=f"{below + above:.0%} of the tokens are clipped (mean of {self.window} steps; {below:.0%} below, "
            f"{above:.0%} above): they teach nothing",
            evidence={"clip_share_low": below, "clip_share_high": above},
            remedy="lower the learning rate or `updates_per_rollout`, or widen the clip",
            since=history.step_before("clip_share_high", self.window),
        )


@dataclass(frozen=True, slots=True)
class SamplerMismatch:
    """Engine and trainer give the sampled tokens different probabilities: what trains is not what sampled.

    The KL between the two is the measure, since a mean ratio is 1 even between strangers. In fp32 on one machine it is
    0 to seven digits; the bounds leave room for kernels that round differently in bf16 (Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training", says what comes of it). Where sampling runs
    ahead, old tokens differ as they should, and only those of the newest weights are judged (`StaleRatios` has the
    others).
    """

    name: ClassVar[str] = "sampler_mismatch"
    metrics: ClassVar[tuple[str, ...]] = (
        "sampler_kl",
        "sampler_ratio_mean",
        "sampler_effective_size",
        "staleness",
        "sampler_kl_stale_0",
        "sampler_effective_size_stale_0",
    )
    needs: ClassVar[tuple[str, ...]] = ("sampler_kl",)
    absent: ClassVar[str] = "log-probs of the engine beside the trainer's (a row of docs/online.md)"

    window: int = 3
    """Steps: two programs that disagree do so at once, and every step taken on it is wrong."""
    kl: float = 0.01
    """Nats per token, of `sampler_kl`."""
    ratio: float = 0.1
    """How far the mean ratio may be from 1."""
    effective: float = 0.9
    """Least `sampler_effective_size`."""
    critical_kl: float = 0.1
    """Nats per token from which on it is critical."""

    def look(self, history: History) -> Detection | None:
        ahead = any(history.recent("staleness", self.window))
        measured = ("sampler_kl_stale_0", "sampler_effective_size_stale_0") if ahead else self.metrics[:3]
        columns = [history.recent(name, self.window) for name in measured]
        if min(map(len, columns)) < self.window:
            return None
        # Three measures, for each is blind to something: the ratio to differences that cancel, the KL to a few extreme
        # tokens, which the effective size sees.
        kl, *middle, effective = map(mean, columns)
        ratio = middle[0] if middle else 1.0
        if kl <= self.kl and abs(ratio - 1) <= self.ratio and effective >= self.effective:
            return None
        return Detection(
            severity="critical" if kl > self.critical_kl else "warning",
            message=f"engine and trainer disagree about the sampled tokens: a KL of {kl:.2g} nats per token, mean "
            f"ratio {ratio:.3g}, effective sample {effective:.0%} (mean of {self.window} steps)",
            evidence={"sampler_kl": kl, "sampler_ratio_mean": ratio, "sampler_effective_size": effective},
            remedy="the same temperature, precision and weights on both sides (`sync_gap`); `choices: {correction: "
            "truncated}` makes up for a small gap",
            since=history.step_before(measured[0], self.window),
        )


@dataclass(frozen=True, slots=True)
class StaleRatios:
    """The completions are of policies so far from the trainer's that little of a step still counts.

    Two signs: the importance weights of a few tokens outweigh all others (Kish's effective sample), or the masks of the
    corrections take most tokens out. Either way a step costs a whole rollout and learns from a part of it. How old
    completions may be before that depends on the learning rate: it is drift that hurts, not age.
    """

    name: ClassVar[str] = "stale_ratios"
    metrics: ClassVar[tuple[str, ...]] = ("sampler_effective_size", "masked_share", "staleness")
    needs: ClassVar[tuple[str, ...]] = ("sampler_effective_size",)
    absent: ClassVar[str] = "log-probs of the engine beside the trainer's (a row of docs/online.md)"

    window: int = 5
    effective: float = 0.5
    """Least `sampler_effective_size` where sampling runs ahead; of the same weights `sampler_mismatch` has its own."""
    masked: float = 0.5
    """Largest share of the tokens that the masks may take out."""
    critical_masked: float = 0.9
    """From here on it is critical: next to nothing is left."""

    def look(self, history: History) -> Detection | None:
        sizes, masks = (history.recent(name, self.window) for name in self.metrics[:2])
        staleness = history.recent("staleness", self.window)
        ahead = bool(staleness) and mean(staleness) > 0
        effective = mean(sizes) if ahead and len(sizes) == self.window else 1.0
        masked = mean(masks) if len(masks) == self.window else 0.0
        if effective >= self.effective and masked <= self.masked:
            return None
        # What is masked is named first: it is what the recipe chose, and can be widened there.
        by_masks = masked > self.masked
        age = f", completions {mean(staleness):.2g} steps old on average" if ahead else ""
        what = (
            f"the masks take {masked:.0%} of the tokens out"
            if by_masks
            else f"the importance weights leave an effective sample of {effective:.0%} of the tokens"
        )
        return Detection(
            severity="critical" if masked > self.critical_masked else "warning",
            message=f"{what} (mean of {self.window} steps{age}): most of a rollout teaches nothing",
            evidence={"masked_share": masked, "sampler_effective_size": effective, "steps_old": mean(staleness or [0])},
            remedy=("lower `max_staleness` or the learning rate" if ahead else "look at `sampler_kl` and `sync_gap`")
            + (
                ", or widen the band of the mask that `masked_by_...` names (`choices: {parameters: ...}`)"
                if by_masks
                else ", or mask what is far off (`choices: {correction: truncated, token_mask: ratio}`)"
            ),
            since=history.step_before("masked_share" if by_masks else "sampler_effective_size", self.window),
        )
