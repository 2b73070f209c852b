"""How large an adapter of low rank will be, from the layers that it sits on, before any of it is allocated.

`peft` makes whatever rank it is told: at rank 1,000,000 the machine would run out of memory in the middle of a layer,
and a process that the kernel ends says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers.pytorch_utils import Conv1D

from posttrain.config.adapters import AdaLoRA, AdapterSettings, LowRank
from posttrain.errors import ConfigError, MemoryLimitError
from posttrain.models.adapters.configs import ALL_LINEAR, matching_modules
from posttrain.models.devices import available_bytes

BYTES = 4
"""Of a parameter of the adapter, its gradient or one of its two moments: all are fp32."""


FEW = 16
"""Outputs below which a layer is a router or a head; the default rank of an adapter."""


def require_size(model: nn.Module, adapter: AdapterSettings) -> None:
    """Refuse a rank that a layer cannot have, and an adapter that cannot be trained in the memory that is free.

    Raises:
        ConfigError: the rank is above the smaller side of a layer, whose weight has no more; names the layer.
        MemoryLimitError: the adapter, its gradients and its moments take more than is free.
    """
    if not isinstance(adapter, LowRank):
        return
    rank, key = (adapter.initial_rank, "initial_rank") if isinstance(adapter, AdaLoRA) else (adapter.rank, "rank")
    sides = {name: _sides(module) for name, module in matching_modules(model, adapter.targets).items()}
    if not sides:  # a model without a linear layer, which `peft` refuses
        return
    # `all-linear` takes along the few outputs of a router and the head of a reward model, which trains whole: nobody
    # named them, and their rank is no limit for the others.
    if adapter.targets == ALL_LINEAR:
        sides = {name: both for name, both in sides.items() if min(both) >= FEW} or sides
    narrowest = min(sides, key=lambda name: min(sides[name]))
    highest = min(sides[narrowest])
    # A product of an [out, rank] and a [rank, in] matrix has no higher rank than the weight it is added to.
    if rank > highest:
        raise ConfigError(
            "the adapter's rank is higher than the rank that a layer can have",
            where=f"adapter.{key}",
            found=f"{key}: {rank}; {narrowest} is {sides[narrowest][0]} x {sides[narrowest][1]}",
            expected=f"at most {highest} on these targets",
            remedy=f"write `{key}: {min(highest, 16)}`, or leave that layer out of `adapter.targets`",
        )
    require_room(sides, rank, available_bytes(next(model.parameters()).device))


def require_room(sides: Mapping[str, tuple[int, int]], rank: int, available: int) -> None:
    """Refuse an adapter of this rank on layers of these sizes where it and its optimizer do not fit.

    Raises:
        MemoryLimitError: with the parts, in the order of their size.
    """
    parameters = sum(rank * (rows + columns) for rows, columns in sides.values())
    parts = {"Adam moments": 2 * BYTES, "adapter": BYTES, "gradients": BYTES}
    total = parameters * sum(parts.values())
    if total <= available:
        return
    table = "\n".join(f"  {name:<16} {parameters * each / 1e6:>10,.0f} MB" for name, each in parts.items())
    raise MemoryLimitError(
        "the free memory does not hold the adapter and its optimizer",
        where="adapter.rank",
        found=f"{total / 1e9:.1f} GB for {parameters:,} parameters at rank {rank} on {len(sides)} layers\n{table}",
        expected=f"at most {available / 1e9:.1f} GB, which are free",
        remedy=f"write `rank: {max(1, rank * available // (2 * total))}` or lower, or name fewer `adapter.targets`",
    )


def _sides(module: nn.Module) -> tuple[int, int]:
    """Rows and columns of a layer's weight; a quantised weight is packed, so its own shape says something else."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.nf)
    assert isinstance(module, nn.Linear)  # the kinds of `configs.ADAPTABLE`
    return module.out_features, module.in_features
