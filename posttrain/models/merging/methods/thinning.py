"""What is left of a task vector: four ways to drop entries of a difference, and what makes up for them.

largest             the `density` of largest magnitude                      TIES, section 4, step 1
dropped             m ~ Bernoulli(density), δ m / density                   DARE, Eq. 2 (its p is 1 - density)
dropped_by_rank     m ~ Bernoulli(p_r), δ m / p_r, with p_r rising from density - ε to density + ε with the rank of the
                    magnitude in its row                                    DELLA, section 3.1 (MagPrune)
without_tails       the largest `gamma` and the smallest are dropped, `density` is left        Breadcrumbs, section 3

`rescale: l1` gives the result the sum of magnitudes that the difference had, which is what mergekit does by one ratio
for the whole tensor; `none` leaves the entries as they are.

Deviations
 1. A share of n entries is rounded down after rounding errors are taken off: 0.29 of 100 is 29, in mergekit 28. It is
    at least one entry, as TIES is in mergekit.
 2. Among equal magnitudes the first entries are kept, so that equal inputs give equal results on every machine.
 3. DELLA's ε is half the width of the range, as in mergekit; the paper's is twice it. Where the range would leave 0
    to 1 (densities that differ between layers), it is narrowed about the density, so that this share is still kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.models.merging.methods.parts import Parts


def largest(delta: Tensor, parts: Parts, index: int) -> Tensor:
    kept = _largest_mask(delta, _share(parts.per_model[index]["density"], delta.numel()))
    return _rescaled(delta, delta * kept, None, parts)


def without_tails(delta: Tensor, parts: Parts, index: int) -> Tensor:
    entries = delta.numel()
    kept = _share(parts.per_model[index]["density"], entries)
    # Outliers make way where the density leaves no room for both, as with a density of 1.
    outliers = min(int(parts.per_model[index]["gamma"] * entries + 1e-6), entries - kept)
    mask = _largest_mask(delta, kept + outliers) & ~_largest_mask(delta, outliers)
    return _rescaled(delta, delta * mask, None, parts)


def dropped(delta: Tensor, parts: Parts, index: int) -> Tensor:
    probability = torch.full_like(delta, parts.per_model[index]["density"])
    return _drawn(delta, probability, parts)


def dropped_by_rank(delta: Tensor, parts: Parts, index: int) -> Tensor:
    return _drawn(delta, rank_probabilities(delta, **_of(parts, index, "density", "epsilon")), parts)


def rank_probabilities(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """The probability to be kept of every entry: in each row from density - ε for the smallest to density + ε for the
    largest magnitude. A vector is one row; of a tensor with more dimensions, what belongs to one output is.

    Returns:
        In the shape of `delta`, between 0 and 1.
    """
    rows = delta.reshape(1, -1) if delta.dim() < 2 else delta.flatten(1)
    epsilon = min(epsilon, density, 1 - density)
    ranks = rows.abs().argsort(dim=1, stable=True).argsort(dim=1).to(delta.dtype)
    last = rows.shape[1] - 1
    # A row of one entry has no rank: it is kept with the density itself.
    centred = 2 * ranks / last - 1 if last > 0 else torch.zeros_like(ranks)
    return (density + epsilon * centred).clamp(0, 1).reshape(delta.shape)


def _drawn(delta: Tensor, probability: Tensor, parts: Parts) -> Tensor:
    # float32 whatever the weights are: a merge in float64 then drops the same entries.
    draws = torch.rand(delta.shape, generator=parts.generator, dtype=torch.float32)
    kept = draws.to(delta.device) < probability
    return _rescaled(delta, delta * kept, probability, parts)


def _rescaled(before: Tensor, after: Tensor, probability: Tensor | None, parts: Parts) -> Tensor:
    rescale = parts.options["rescale"]
    if rescale == "paper" and probability is not None:
        # Where the probability is 0 nothing is kept, so there is nothing to divide.
        return after / torch.where(probability == 0, 1.0, probability)
    if rescale == "l1":
        left = after.abs().sum(dtype=torch.float64)
        return after * (before.abs().sum(dtype=torch.float64) / left).to(after.dtype) if left > 0 else after
    return after


def _largest_mask(values: Tensor, count: int) -> Tensor:
    """True for the `count` entries of largest magnitude, the first ones among equals."""
    if count >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(values, dtype=torch.bool)
    sizes = values.abs().flatten()
    # The k-th value is found in linear time; a sort of an embedding matrix would take minutes.
    least = sizes.kthvalue(sizes.numel() - count + 1).values
    mask = sizes > least
    equal = (sizes == least).nonzero().flatten()
    mask[equal[: count - int(mask.sum())]] = True
    return mask.reshape(values.shape)


def _share(density: float, entries: int) -> int:
    return max(1, int(density * entries + 1e-6)) if density > 0 else 0


def _of(parts: Parts, index: int, *names: str) -> dict[str, float]:
    return {name: float(parts.per_model[index][name]) for name in names}
