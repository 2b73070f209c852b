"""Merges that weigh differences by how models agree: SCE, Model Stock, and RAM for models of reinforcement learning.

sce           of each entry whose variance over the models is among the largest `select_topk` of the tensor:
              θ = θ_0 + Σ_i η_i δ_i s_i / Σ_i η_i s_i, η_i = mean(δ_i²) / Σ_j mean(δ_j²),
              s_i = 1 where δ_i has the sign of Σ_j δ_j               Wan et al. 2024 (FuseChat), arXiv:2408.07990
model_stock   θ = t mean(θ_i) + (1-t) θ_0, t = N c / (1 + (N-1) c), c the cosine between the differences
                                                                      Jang et al. 2024, arXiv:2403.19522
ram           an entry that several models changed is their mean, one that a single model changed stays whole
                                                                      arXiv:2601.13572
ramplus_tl    the same, and what model i alone changed times λ_i = 1 + r min(ρ_i, alpha), ρ_i = entries it shares /
              entries of its own, in this tensor                      the same

Deviations
 1. Model Stock's paper derives t for one angle between all differences. Of more than two models c is the mean of the
    pairwise cosines, as in mergekit.
 2. Where c is below 0, t is 0 and the result the base: the formula would lead away from the models, without a bound
    near its pole at c = -1/(N-1). mergekit follows it, but at the pole itself.
 3. RAM+ is local to a tensor, as in mergekit: the paper takes ρ_i over the whole model, which no streamed merge has at
    hand. Hence its name, `ramplus_tl`.

Where mergekit differs
 4. SCE: it takes equal weights where Σ_j mean(δ_j²) is below 1e-6, which most fine-tuned models are; here only where it
    is 0. And its divisor is at least 1e-6. Where Σ_j δ_j is exactly 0, it takes the positive side; here the entry stays
    the base's.
 5. Model Stock: it raises |δ_i| |δ_j| to 1e-6, so small tensors that changed little count as if they were at right
    angles; here only where one of them is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.models.merging.methods.parts import Parts


def sce(parts: Parts) -> Tensor:
    deltas = parts.deltas
    share = parts.number("select_topk")
    if share < 1:
        selected = _most_varied(deltas, share)
        deltas = [delta * selected for delta in deltas]
    # Weighed after the selection: a model counts by what it changes where they differ.
    squares = [float(delta.square().mean(dtype=torch.float64)) for delta in deltas]
    total = sum(squares)
    weights = [square / total for square in squares] if total > 0 else [1 / len(deltas)] * len(deltas)
    zeros = torch.zeros_like(deltas[0])
    elected = sum(deltas, start=zeros).sign()
    merged, divisor = zeros.clone(), zeros.clone()
    for weight, delta in zip(weights, deltas, strict=True):
        agrees = (delta.sign() == elected).to(delta.dtype)
        merged += weight * delta * agrees
        divisor += weight * agrees
    return parts.over_base(merged / torch.where(divisor == 0, 1.0, divisor))


def _most_varied(deltas: list[Tensor], share: float) -> Tensor:
    """True for the entries with the largest variance over the models, a share of those that vary at all."""
    variance = torch.stack(deltas).var(dim=0, correction=0).flatten()
    count = int(int(variance.count_nonzero()) * share + 1e-6)
    mask = torch.zeros_like(variance, dtype=torch.bool)
    mask[variance.topk(count).indices] = True
    return mask.reshape(deltas[0].shape)


def model_stock(parts: Parts) -> Tensor:
    base = parts.base
    assert base is not None
    # A row of a matrix is what one neuron reads; a vector is one row.
    by_row = bool(parts.options["filter_wise"]) and base.dim() > 1
    deltas = [delta.flatten(1) if by_row else delta.reshape(1, -1) for delta in parts.deltas]
    lengths = [torch.linalg.vector_norm(delta, dim=1, keepdim=True, dtype=torch.float64) for delta in deltas]
    cosines = []
    for i in range(len(deltas)):
        for j in range(i + 1, len(deltas)):
            product = lengths[i] * lengths[j]
            dot = (deltas[i] * deltas[j]).sum(dim=1, keepdim=True, dtype=torch.float64)
            cosines.append(dot / torch.where(product == 0, 1.0, product))
    count = len(deltas)
    cosine = torch.stack(cosines).mean(dim=0).clamp(0, 1)
    t = (count * cosine / (1 + (count - 1) * cosine)).to(base.dtype)
    mean = sum(deltas, start=torch.zeros_like(deltas[0])) / count
    return base + (t * mean).reshape(base.shape)


def ram(parts: Parts) -> Tensor:
    return _reinforced(parts, [1.0] * len(parts.tensors))


def ramplus_tl(parts: Parts) -> Tensor:
    changed, counts = _changes(parts)
    growths = []
    for mask in changed:
        shared, own = int((mask & (counts > 1)).sum()), int((mask & (counts == 1)).sum())
        ratio = shared / own if own > 0 else 0.0  # without entries of its own there is nothing that could grow
        growths.append(1 + parts.number("r") * min(ratio, parts.number("alpha")))
    return _reinforced(parts, growths)


def _reinforced(parts: Parts, growths: list[float]) -> Tensor:
    """Shared entries averaged, those of one model alone times its growth."""
    changed, counts = _changes(parts)
    merged = torch.zeros_like(parts.tensors[0])
    for growth, mask, delta in zip(growths, changed, parts.deltas, strict=True):
        factor = torch.where(counts == 1, torch.full_like(delta, growth), 1 / counts.clamp(min=1).to(delta.dtype))
        merged += delta * mask * factor
    return parts.over_base(merged)


def _changes(parts: Parts) -> tuple[list[Tensor], Tensor]:
    """Which entries each model changed, and how many models changed each entry."""
    changed = [delta.abs() > parts.number("threshold") for delta in parts.deltas]
    return changed, torch.stack(changed).sum(dim=0)
