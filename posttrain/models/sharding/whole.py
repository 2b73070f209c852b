"""Weights of a sharded model outside of its forward pass: read whole one at a time, and as a plain copy.

    for name, tensor in whole_tensors(policy.model): ...     # an export, a fingerprint, a weight sync
    plain = gathered_copy(policy.model, torch.bfloat16)      # for sampling and merging

Both are collective: every rank has to walk through them, in the same order. For a plain model they are what they say
without any exchange.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.models.sharding.copies import twin
from posttrain.models.sharding.shards import whole
from posttrain.models.sharding.wrap import reshard


@torch.no_grad()
def whole_tensors(model: nn.Module, *, duplicates: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and persistent buffer by its name, whole, in the order of `model.state_dict()`.

    One whole tensor exists at a time, unless the caller keeps it; a plain one is the model's own, without a copy.

    Args:
        duplicates: False gives a tied tensor once, under the first of its names.
    """
    reshard(model)
    seen: set[int] = set()
    # `keep_vars`: tied tensors are told by being one object. Their addresses do not tell, since a rank that has no
    # row of a tensor has it at address 0, and ranks that skip other tensors than the rest would wait for ever.
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not duplicates and id(tensor) in seen:
            continue
        seen.add(id(tensor))
        yield name, whole(tensor)


@torch.no_grad()
def gathered_copy(model: nn.Module, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Any:
    """A plain copy of the model and its adapter that computes without the other ranks: whole in each process.

    Args:
        dtype: of floating-point weights and buffers; None: their own.
        device: None: where the model is.
    """
    reshard(model)

    def gathered(parameter: Tensor) -> Tensor:
        tensor = whole(parameter)
        # `whole` of a plain one is its own memory, which must not be the copy's.
        return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None, copy=True)

    copy = twin(model, gathered)
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
    if dtype is not None or device is not None:
        for module in copy.modules():
            for name, buffer in module._buffers.items():
                # Buffers keep their dtype: in 16 bits the angles of a rotary embedding would be others.
                if buffer is not None:
                    module._buffers[name] = buffer.to(device=device)
    return copy.eval()
