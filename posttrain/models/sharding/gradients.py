"""Gradients of a few numbers in parameters, sharded or not, that leave the step's own gradients as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.models.sharding.shards import anywhere, local, mesh_of


def gradients_of(
    outputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    slopes: Sequence[Tensor] | None = None,
    *,
    retain_graph: bool = False,
) -> list[Tensor | None]:
    """d (sum of slopes x outputs) / d parameter for each of them; None where nothing leads there.

    Of sharded parameters the sum over ranks, each rank's rows of it; every rank has to ask, and for all that train:
    the others would keep what this adds to their gradients.

    Args:
        slopes: of each output; None where each is one number.
    """
    if mesh_of(parameters) is None:
        found = torch.autograd.grad(
            list(outputs), list(parameters), slopes, allow_unused=True, retain_graph=retain_graph
        )
        return list(found)
    # FSDP2 computes with whole tensors of its own, which autograd does not know to come from the shards:
    # `torch.autograd.grad` of these finds no way and says zero. What a backward pass leaves in `.grad` is right.
    kept = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        torch.autograd.backward(list(outputs), slopes, retain_graph=retain_graph)
        return [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def nonzero(gradients: Sequence[Tensor | None]) -> list[bool]:
    """Of each gradient, whether an entry of it is not zero, on whichever rank it lies."""
    own = [gradient is not None and bool(local(gradient).any()) for gradient in gradients]
    return anywhere(own, mesh_of(gradient for gradient in gradients if gradient is not None))
