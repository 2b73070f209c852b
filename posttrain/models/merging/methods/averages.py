"""Merges of the weights themselves, without a base.

linear          θ = Σ_i w_i θ_i / Σ_i w_i            Wortsman et al. 2022, arXiv:2203.05482 (the uniform soup: w_i = 1)
passthrough     θ = scale θ_1

`normalize: false` leaves the division out, so that weights that do not sum to 1 scale the model. mergekit computes both
in the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.models.merging.methods.parts import Parts


def linear(parts: Parts) -> Tensor:
    """The weighted mean, or with `normalize: false` the weighted sum.

    Raises:
        ConfigError: the weights of this tensor sum to 0 and are to be shares.
    """
    total = torch.zeros_like(parts.tensors[0])
    for weight, tensor in zip(parts.weights, parts.tensors, strict=True):
        total += weight * tensor
    return total / sum_of_weights(parts) if parts.options["normalize"] else total


def passthrough(parts: Parts) -> Tensor:
    return parts.per_model[0]["scale"] * parts.tensors[0]


def sum_of_weights(parts: Parts) -> float:
    """The sum that shares are taken of.

    Raises:
        ConfigError: it is 0. Weights written as one number each were refused before; these differ between layers.
    """
    total = sum(parts.weights)
    if abs(total) < 1e-8:
        raise ConfigError(
            "the weights of this tensor sum to 0, and the result is divided by their sum",
            where=parts.name,
            found=", ".join(f"{weight:g}" for weight in parts.weights),
            remedy="write weights whose sum is not 0 at any layer",
        )
    return total
