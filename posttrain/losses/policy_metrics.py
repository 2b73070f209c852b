"""What an online loss says of a batch: how far the policy is from the one that sampled, from its reference, and from
what the sampler itself computed.

Tokens are sampled by the old policy. So `..._old` estimate KL(old || policy), and `..._reference` (and `..._teacher`)
estimate KL(policy || reference) at the first update of a rollout; by later updates the sample is off-policy: what they
say then is KL(old || reference) - KL(old || policy), too low, and below 0 where the policy runs away. So nothing is
steered by them: `kl_sequence_reference`, of the policy that sampled, is the rollout's (`Rollout.sequence_kl`). Every
name says its kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.losses.kl import k1, k2, k3
from posttrain.losses.reduce import branch_sums, branch_tokens, mean_or_zero
from posttrain.losses.surrogates import TokenLoss, bounded
from posttrain.outputs import Deviation, EffectiveSize, Maximum, Mean, Metric
from posttrain.types import Batch

USUAL_CAP = 2.0
"""Beyond which ratio of sampler and trainer tokens are counted where no correction has a cap of its own."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch as an online loss sees it, [N] each: Seen(batch, logprob_N, old_N, reference_N=None, ...)."""

    batch: Batch
    logprob_N: Tensor
    """log π, with its gradient."""
    old_N: Tensor | None
    """log of the policy that sampled, by the trainer."""
    reference_N: Tensor | None
    sampler_N: Tensor | None
    """log of the policy that sampled, by the engine."""
    advantage_N: Tensor
    log_ratio_N: Tensor
    """log π - log π_old, with its gradient."""
    teacher_N: Tensor | None = None
    """Of the model that is learned from, where there is one."""

    @property
    def gap_N(self) -> Tensor | None:
        """log π_old by the trainer minus by the engine: 0 but for arithmetic."""
        return None if self.sampler_N is None or self.old_N is None else self.old_N - self.sampler_N


def slope_of(term: Tensor, logprob_N: Tensor) -> Tensor | None:
    """d term / d log π of each token [N]; None where no gradient is recorded.

    Costs a pass over N numbers, and none through the model. Where it is 0 at every token, the term's gradient is
    exactly 0 whatever the model is; neither rounding nor the gradient of a KL or an entropy beside it can hide that.
    """
    if not (torch.is_grad_enabled() and logprob_N.requires_grad):
        return None
    if not term.requires_grad:  # no path from the log-probs to it at all
        return torch.zeros_like(logprob_N)
    (slope_N,) = torch.autograd.grad(term, logprob_N, retain_graph=True, allow_unused=True)
    return torch.zeros_like(logprob_N) if slope_N is None else slope_N.detach()


@torch.no_grad()
def policy_metrics(seen: Seen, ratio_N: Tensor, tokens: TokenLoss, cap: float | None) -> dict[str, Metric]:
    """The metrics of `docs/online.md` that need no more than a batch; each carries its own sum and count."""
    count = seen.batch.count
    advantage_N = seen.advantage_N
    metrics: dict[str, Metric] = {
        "advantage_mean": Mean(advantage_N.sum(), count.tokens),
        "advantage_std": _deviation(advantage_N),
        "advantage_magnitude": Mean(advantage_N.abs().sum(), count.tokens),
        "length_generated": Mean(count.tokens, count.branches),
    }
    if tokens.low_N is not None and tokens.high_N is not None:
        metrics["clip_share_low"] = Mean(tokens.low_N.sum(), count.tokens)
        metrics["clip_share_high"] = Mean(tokens.high_N.sum(), count.tokens)
    if seen.old_N is not None:
        metrics |= {"ratio_mean": Mean(ratio_N.sum(), count.tokens), "ratio_max": Maximum(_largest(ratio_N))}
        metrics |= _kl_metrics(seen.old_N, seen.logprob_N, "old", count.tokens)
    if seen.reference_N is not None:
        metrics |= _kl_metrics(seen.logprob_N, seen.reference_N, "reference", count.tokens)
    if seen.teacher_N is not None:
        metrics |= _kl_metrics(seen.logprob_N, seen.teacher_N, "teacher", count.tokens)
    if seen.gap_N is not None:
        metrics |= _sampler_metrics(seen.gap_N, USUAL_CAP if cap is None else cap)
    return metrics


def _kl_metrics(sampling_N: Tensor, other_N: Tensor, against: str, count: int) -> dict[str, Metric]:
    """k1, k2 and k3 for KL(sampling || other)."""
    sampling_N = torch.maximum(sampling_N, other_N - 80)  # k3 grows as e^-r; 80 nats stay representable in fp32
    return {
        f"kl_{name}_{against}": Mean(estimate(sampling_N, other_N).sum(), count)
        for name, estimate in (("k1", k1), ("k2", k2), ("k3", k3))
    }


def _sampler_metrics(gap_N: Tensor, cap: float) -> dict[str, Metric]:
    """The raw importance ratios between engine and trainer, before any correction."""
    weight_N, count = bounded(gap_N).exp(), gap_N.shape[0]
    return {
        "sampler_ratio_mean": Mean(weight_N.sum(), count),
        "sampler_ratio_max": Maximum(_largest(weight_N)),
        "sampler_kl": Mean((torch.expm1(bounded(gap_N)) - gap_N).sum(), count),  # k3 of KL(engine || trainer)
        "sampler_gap_max": Maximum(_largest(gap_N.abs())),
        "sampler_clipped_share": Mean((weight_N > cap).sum(), count),
        "sampler_effective_size": EffectiveSize(weight_N.sum(), weight_N.square().sum(), count),
    }


@torch.no_grad()
def per_branch(seen: Seen, ratio_N: Tensor) -> dict[str, Tensor]:
    """One number for each response: its log-prob in nats, mean advantage and ratio, and its length in tokens."""
    tokens_B = branch_tokens(seen.batch, ratio_N)
    return {
        "logprob": branch_sums(seen.logprob_N.detach(), seen.batch),
        "advantage": mean_or_zero(branch_sums(seen.advantage_N, seen.batch), tokens_B),
        "ratio": mean_or_zero(branch_sums(ratio_N, seen.batch), tokens_B),
        "length": tokens_B,
    }


def explain_zero_loss(values: Mapping[str, float], *, grouped: bool = True) -> str | None:
    """A sentence for a step whose loss is about 0 while it learns; None where there is nothing to explain.

    Nor is there where the step learns nothing: a gradient of exactly 0 is the business of an alarm (`dead_learning`),
    and no reason to watch the reward in peace.

    values: a step's metrics by name; `policy_loss`, `advantage_magnitude` and, if known, `policy_slope` and `grad_norm`
        are read.
    grouped: whether advantages compare the completions of a prompt; PPO's come from its value model.
    """
    loss, pull = values.get("policy_loss", float("nan")), values.get("advantage_magnitude", float("nan"))
    norm = values.get("grad_norm")
    if not abs(loss) < 0.05 * pull or norm == 0 or values.get("policy_slope") == 0:
        return None
    whose = "a group" if grouped else "all tokens of the step"
    seen = "" if norm is None else f", and the gradient's norm is {norm:.3g}"
    return (
        f"the policy loss is {loss:.2g} because the advantages of {whose} add up to 0 while every ratio is near 1; "
        f"the pull on a token is {pull:.3g} (mean |advantage|){seen}. Watch the reward, not the loss."
    )


def _deviation(values_N: Tensor) -> Deviation:
    # The mean of nothing is NaN, and merging would carry it into the whole step's deviation.
    mean = values_N.mean() if values_N.numel() else values_N.sum()
    return Deviation(values_N.numel(), mean, (values_N - mean).square().sum())


def _largest(values_N: Tensor) -> Tensor:
    # -inf: an empty micro-batch must not set the largest ratio.
    return values_N.amax() if values_N.numel() else values_N.new_tensor(-torch.inf)
