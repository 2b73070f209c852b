"""Merges of task vectors: the models' differences to their base, thinned out, weighted, and added to it.

    δ_i = θ_i - θ_0        δ'_i = thin(δ_i)        θ = θ_0 + λ merge_i(w_i δ'_i)

                    thin                     merge
task_arithmetic     -                        Σ w_i δ_i
ties                largest `density`        signs elected, mean of those that agree
dare_linear         random, over density     Σ w_i δ'_i
dare_ties           random, over density     as ties
della               random by rank, over p   as ties
della_linear        random by rank, over p   Σ w_i δ'_i
breadcrumbs         both tails cut           Σ w_i δ'_i
breadcrumbs_ties    both tails cut           signs elected, sum of those that agree

Task arithmetic: Ilharco et al. 2023, arXiv:2212.04089. TIES: Yadav et al. 2023, arXiv:2306.01708, section 4. DARE: Yu
et al. 2023, arXiv:2311.03099. DELLA: Deep et al. 2024, arXiv:2406.11617. Breadcrumbs: Davari and Belilovsky 2023,
arXiv:2312.06795.

A negative weight takes away what a model learnt (unlearning, Ilharco et al., section 4).

Deviations from the papers
 1. TIES trims the whole task vector at once; here, as in mergekit, each tensor by itself, so that no model has to be in
    memory. Where tensors changed by unlike amounts, each keeps its share.
 2. Signs are elected on the weighted differences (mergekit too): for equal weights the paper's rule.
 3. Where they balance exactly, no sign is elected and the entry stays the base's (sgn 0 = 0). The authors' code takes
    the majority of all entries there, mergekit the positive side: both add a direction that no majority has.
 4. After DARE the authors' TIES trims once more; here the draw is the only thinning, as in mergekit.

Where mergekit differs
 5. `normalize` divides by Σ |w|, in mergekit by Σ w: with negative weights that would turn the direction around, so
    that what was to be unlearnt is learnt. For weights of one sign both are the same.
 6. Its DARE and DELLA scale to the same sum of magnitudes; that is `rescale: l1`, the paper's division the default.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from posttrain.models.merging.methods import thinning
from posttrain.models.merging.methods.parts import Parts

Thin = Callable[[Tensor, Parts, int], Tensor]
"""A difference, the parts, and the model's place: what is left of the difference."""


def _merged(parts: Parts, thin: Thin | None, *, elect: bool) -> Tensor:
    # One after the other: with all differences at once, an embedding matrix takes twice the memory.
    weighted = []
    for index, (weight, tensor) in enumerate(zip(parts.weights, parts.tensors, strict=True)):
        delta = tensor if parts.base is None else tensor - parts.base
        weighted.append(weight * (delta if thin is None else thin(delta, parts, index)))
    total, divisor = torch.zeros_like(weighted[0]), torch.zeros_like(weighted[0])
    elected = sum(weighted, start=total).sign() if elect else None
    for weight, delta in zip(parts.weights, weighted, strict=True):
        # An entry that was trimmed has sign 0 and agrees with nobody, so it does not dilute the mean (the disjoint mean
        # of TIES, Eq. 3).
        agrees = torch.ones_like(delta) if elected is None else delta.sign() == elected
        counts = agrees.to(delta.dtype)  # a bool times a Python number would be float32, whatever the merge is in
        total += delta * counts
        divisor += abs(weight) * counts
    if parts.options["normalize"]:
        total = total / torch.where(divisor == 0, 1.0, divisor)
    return parts.over_base(parts.number("lambda") * total)


def task_arithmetic(parts: Parts) -> Tensor:
    return _merged(parts, None, elect=False)


def ties(parts: Parts) -> Tensor:
    return _merged(parts, thinning.largest, elect=True)


def dare_linear(parts: Parts) -> Tensor:
    return _merged(parts, thinning.dropped, elect=False)


def dare_ties(parts: Parts) -> Tensor:
    return _merged(parts, thinning.dropped, elect=True)


def della(parts: Parts) -> Tensor:
    return _merged(parts, thinning.dropped_by_rank, elect=True)


def della_linear(parts: Parts) -> Tensor:
    return _merged(parts, thinning.dropped_by_rank, elect=False)


def breadcrumbs(parts: Parts) -> Tensor:
    return _merged(parts, thinning.without_tails, elect=False)


def breadcrumbs_ties(parts: Parts) -> Tensor:
    return _merged(parts, thinning.without_tails, elect=True)
