"""Whether weights are numbers at all: a NaN in one of them is in every answer, and makes a checkpoint worthless.

Asked by the checks before a stage, by the loop where a step went wrong, and before a checkpoint is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from posttrain.models.sharding.shards import anywhere, local, mesh_of


def is_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite, of a sharded tensor none of this rank's; without a second tensor of its
    size, as `isfinite().all()` would make."""
    tensor = local(tensor.detach())
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)  # a NaN anywhere makes both NaN
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def non_finite_tensors(named: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of those that hold a NaN or an infinity, in their order.

    Collective for sharded tensors, each rank looking through its part: all get the same names.
    """
    pairs = list(named.items() if isinstance(named, Mapping) else named)
    bad = anywhere([not is_finite(local(tensor)) for _, tensor in pairs], mesh_of(tensor for _, tensor in pairs))
    return [name for (name, _), is_bad in zip(pairs, bad, strict=True) if is_bad]


def non_finite_weights(model: nn.Module) -> list[str]:
    """Parameters with a NaN or an infinity, and buffers with a NaN: an infinity is what some masks are made of."""
    buffers = [name for name, b in model.named_buffers() if b.is_floating_point() and bool(torch.isnan(b).any())]
    return non_finite_tensors(model.named_parameters()) + buffers
