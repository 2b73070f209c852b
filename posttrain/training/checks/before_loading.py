"""What a stage's model will take, from the headers of its weight files: a model that cannot fit is never loaded."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from posttrain.config.adapters import AdapterSettings, QLoRA
from posttrain.errors import MemoryLimitError
from posttrain.models.devices import available_bytes
from posttrain.training.checks.memory import STEP_REMEDY, Item, MemoryPlan

BYTES = 4
"""Weights are kept in fp32 while they train."""


def parameters_in(folder: Path) -> int:
    """Elements of all tensors of a folder's safetensors files; 0 where there are none that open."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as weights:
                total += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
        except (SafetensorError, OSError):
            return 0  # torn: whoever loads it names the file
    return total


def plan_before_loading(parameters: int, adapter: AdapterSettings | None, device: torch.device) -> MemoryPlan:
    """Weights, and what trains of them; activations and an adapter are measured later, when there is a model."""
    if isinstance(adapter, QLoRA):
        return MemoryPlan((Item("weights", parameters * adapter.bits // 8),), available_bytes(device))
    items = [Item("weights", parameters * BYTES, f"{parameters:,} parameters in fp32")]
    if adapter is None:
        items.append(Item("gradients", parameters * BYTES, "all weights train"))
        items.append(Item("Adam moments", 2 * parameters * BYTES))
    return MemoryPlan(tuple(items), available_bytes(device))


def require_room(folder: Path, adapter: AdapterSettings | None, device: torch.device, ranks: int = 1) -> None:
    """Refuse a model whose weights, gradients and moments are more than the memory that is free.

    ranks: that share the model; each has a part.

    Raises:
        MemoryLimitError: with the parts of the plan.
    """
    memory = plan_before_loading(-(-parameters_in(folder) // ranks), adapter, device)
    if not memory.fits:
        smaller = "train a LoRA adapter instead of all weights, `adapter: {rank: 16}`"
        raise MemoryLimitError(
            "the machine's memory does not hold the model that is to be trained",
            where=folder,
            found=f"{memory.total_bytes / 1e9:.1f} GB before any activation\n{memory.table()}",
            expected=f"at most {memory.available_bytes / 1e9:.1f} GB, which are free",
            remedy=smaller if adapter is None else STEP_REMEDY,
        )
