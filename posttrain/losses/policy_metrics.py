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

from posttrain.losses.corrections import Corrected, Mismatch
from posttrain.losses.kl import k1, k2, k3
from posttrain.losses.reduce import branch_sums, branch_tokens, mean_or_zero
from posttrain.losses.surrogates import TokenLoss, bounded
from posttrain.outputs import Deviation, EffectiveSize, Maximum, Mean, Metric, Quantile
from posttrain.types import Batch

USUAL_CAP = 2.0
"""Beyond which ratio of sampler and trainer tokens are counted where no correction has a cap of its own."""
QUANTILES = (0.5, 0.99)
"""Of the sampler's gap: what a usual token has, and what the tail begins at, which a mean ratio of 1 hides."""
OLDEST = 4
"""Steps of staleness from which on tokens are measured together."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch as an online loss sees it, [N] each: Seen(batch, logprob_N, old_N, reference_N=None, ...)."""

    batch: Batch
    logprob_N: Tensor
    """log π, with its gradient."""
    old_N: Tensor | None
    """log π_prox, from which ratios start: the trainer's at the step's start, or the engine's."""
    reference_N: Tensor | None
    sampler_N: Tensor | None
    """log μ, of the policy that sampled, by the engine."""
    advantage_N: Tensor
    log_ratio_N: Tensor
    """log π - log π_old, with its gradient."""
    teacher_N: Tensor | None = None
    """Of the model that is learned from, where there is one."""

    staleness_N: Tensor | None = None
    """Steps between the weights that sampled a token and those at the step's start."""
    from_sampler: bool = False
    """Whether ratios start from the engine's policy."""

    @property
    def gap_N(self) -> Tensor | None:
        """log-prob by the trainer minus by the engine: 0 but for arithmetic where both have the same weights.

        The trainer's at the step's start; where ratios start from the engine, its own now, for there is no other.
        """
        if self.sampler_N is None or self.old_N is None:
            return None
        return (self.logprob_N.detach() if self.from_sampler else self.old_N) - self.sampler_N

    @property
    def mismatch(self) -> Mismatch | None:
        """What corrections are made from."""
        gap_N = self.gap_N
        if gap_N is None or self.sampler_N is None:
            return None
        change_N = self.logprob_N.detach().exp() - self.sampler_N.exp()
        return Mismatch(gap_N, change_N, self.advantage_N, self.batch)


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
        metrics |= _sampler_metrics(seen.gap_N, seen.batch, USUAL_CAP if cap is None else cap)
        if seen.staleness_N is not None:
            metrics |= _by_staleness(seen.gap_N, seen.staleness_N)
    return metrics


def _kl_metrics(sampling_N: Tensor, other_N: Tensor, against: str, count: int) -> dict[str, Metric]:
    """k1, k2 and k3 for KL(sampling || other)."""
    sampling_N = torch.maximum(sampling_N, other_N - 80)  # k3 grows as e^-r; 80 nats stay representable in fp32
    return {
        f"kl_{name}_{against}": Mean(estimate(sampling_N, other_N).sum(), count)
        for name, estimate in (("k1", k1), ("k2", k2), ("k3", k3))
    }


def _sampler_metrics(gap_N: Tensor, batch: Batch, cap: float) -> dict[str, Metric]:
    """The raw importance ratios between engine and trainer, before any correction."""
    weight_N, count = bounded(gap_N).exp(), gap_N.shape[0]
    # A response's product is what a sequence's weight rests on; branches without a token have no weight.
    weight_B = bounded(branch_sums(gap_N, batch)).exp()[branch_tokens(batch, gap_N) > 0]
    distance_N = gap_N.abs()
    return {
        "sampler_ratio_mean": Mean(weight_N.sum(), count),
        "sampler_ratio_max": Maximum(_largest(weight_N)),
        "sampler_kl": Mean(_sampler_kl(gap_N).sum(), count),
        "sampler_kl_k1": Mean(-gap_N.sum(), count),
        "sampler_gap_max": Maximum(_largest(distance_N)),
        **{f"sampler_gap_p{100 * share:.0f}": Quantile.of(distance_N, share) for share in QUANTILES},
        "sampler_clipped_share": Mean((weight_N > cap).sum(), count),
        "sampler_effective_size": EffectiveSize(weight_N.sum(), weight_N.square().sum(), count),
        "sampler_effective_responses": EffectiveSize(weight_B.sum(), weight_B.square().sum(), weight_B.shape[0]),
    }


def _sampler_kl(gap_N: Tensor) -> Tensor:
    """k3 of KL(engine || trainer) at tokens that the engine sampled."""
    return torch.expm1(bounded(gap_N)) - gap_N


def _by_staleness(gap_N: Tensor, staleness_N: Tensor) -> dict[str, Metric]:
    """KL and effective sample of the tokens of each staleness that the batch has: where drift begins to hurt."""
    metrics: dict[str, Metric] = {}
    for steps in range(OLDEST + 1):
        at_N = staleness_N >= OLDEST if steps == OLDEST else staleness_N == steps
        gap_K = gap_N[at_N]
        if gap_K.numel():
            weight_K, count = bounded(gap_K).exp(), gap_K.shape[0]
            metrics[f"sampler_kl_stale_{steps}"] = Mean(_sampler_kl(gap_K).sum(), count)
            size = EffectiveSize(weight_K.sum(), weight_K.square().sum(), count)
            metrics[f"sampler_effective_size_stale_{steps}"] = size
    return metrics


@torch.no_grad()
def mask_metrics(correction: Corrected, batch: Batch) -> dict[str, Metric]:
    """The share of tokens that each rule takes out, and all of them together, in tokens and in whole responses."""
    count, out_N = batch.count, correction.out_N
    out_B = branch_sums(out_N.to(correction.unknown_N), batch)
    tokens_B = branch_tokens(batch, correction.unknown_N)
    metrics: dict[str, Metric] = {
        "masked_share": Mean(out_N.sum(), count.tokens),
        "masked_responses": Mean(((out_B == tokens_B) & (tokens_B > 0)).sum(), count.branches),
    }
    for column, rejected_N in correction.rejected.items():
        metrics[f"masked_by_{column}"] = Mean(rejected_N.sum(), count.tokens)
    return metrics


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
