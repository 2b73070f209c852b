"""Merges of one model into its base, entry by entry. Neither has a paper; both are as mergekit has them.

nearswap       θ = θ_0 + min(1, t / |δ|) δ: differences up to t are taken over, larger ones are cut to t
                                               alchemonaut 2024, the card of QuartetAnemoi-70B-t0.0001
arcee_fusion   δ is taken over where its importance |δ| KL(softmax(θ) || softmax(θ_0)), the softmax over a row, is not
               below median + 1.5 (q_75 - q_25) of the tensor's importances       Arcee AI 2024

Deviations
 1. nearswap: mergekit raises |δ| to 1e-6 first, so that with a t below that smaller differences are cut, too.
 2. arcee_fusion: mergekit estimates the quantiles of tensors over a million entries on a random million; here they are
    exact, so that a merge can be repeated.
"""

from __future__ import annotations

from torch import Tensor

from posttrain.models.merging.methods.parts import Parts

SOFTMAX_FLOOR = 1e-8
"""Added to both distributions, as in mergekit: a logarithm of 0 would make the importance infinite."""


def nearswap(parts: Parts) -> Tensor:
    (delta,) = parts.deltas
    most = parts.number("t")
    return parts.over_base(delta.clamp(-most, most))


def arcee_fusion(parts: Parts) -> Tensor:
    base, (tensor,), (delta,) = parts.base, parts.tensors, parts.deltas
    assert base is not None
    ours = tensor.softmax(dim=-1) + SOFTMAX_FLOOR
    theirs = base.softmax(dim=-1) + SOFTMAX_FLOOR
    divergence = (ours * (ours / theirs).log()).sum(dim=-1, keepdim=True)
    importance = delta.abs() * divergence
    low, median, high = (_quantile(importance, share) for share in (0.25, 0.5, 0.75))
    return base + delta * (importance >= median + 1.5 * (high - low))


def _quantile(values: Tensor, share: float) -> Tensor:
    """The value at that place of the sorted ones, rounded down: no interpolation."""
    flat = values.flatten()
    return flat.kthvalue(int(share * (flat.numel() - 1)) + 1).values
