"""A model's forward in fp32 for as long as a proof lasts, whatever it trains in.

bf16 differs from itself by up to 0.3 nats between two paths of the same model, and a recurrent state that leaks from
one row into the next moves weakly initialised hybrids (Falcon-H1, Zamba) by 0.04: in bf16 a leak looks like rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from posttrain.models.adapters.quantised import is_quantised
from posttrain.models.devices import available_bytes
from posttrain.models.tree.provable import ProvableModel

HALF = (torch.bfloat16, torch.float16)
SETTINGS = ("autocast", "dropout", "unfused", "backend")
"""Of a `ProvableModel`: what a proof sets, and gives back."""
SHARE_FOR_COPIES = 0.5
"""Of the free memory that fp32 copies of 16-bit weights may take while a proof lasts."""


@contextmanager
def exact(model: ProvableModel) -> Iterator[bool]:
    """Autocast, dropout and TF32 off, 16-bit weights as fp32 copies; gives whether the arithmetic is fp32 or wider.

    It is not for weights that are quantised, for sharded ones that are kept or gathered in 16 bits, and for 16-bit
    weights whose copies the free memory does not hold: these are proven in the precision that they have, with its wide
    tolerance.
    """
    wide, half = can_be_exact(model), (model.autocast or model.dtype) in HALF
    before = {name: getattr(model, name) for name in SETTINGS}
    # Tensors of a proof are none of the step's: without hooks of its own they would be counted as activations.
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with ExitStack() as stack:
        stack.enter_context(hooks)
        stack.callback(_restore, model, before)
        model.dropout = False
        if wide:
            model.unfused |= model.autocast is not None
            model.autocast = None
            if half and model.device.type == "cuda":
                # FlexAttention is tiled for 16 bits; in fp32 wide heads may not fit a block's memory. What it computes
                # in 16 bits is compared as well (`paths.examined`), and `probe_backend` holds it to `segments`.
                model.backend = "segments"
            stack.enter_context(torch.autocast(model.device.type, enabled=False))
            stack.enter_context(_without_tf32())
            stack.enter_context(_wide_weights(model))
            stack.enter_context(_without_flash(model.model))
        yield wide


def _restore(model: ProvableModel, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        setattr(model, name, value)


def can_be_exact(model: ProvableModel) -> bool:
    """Whether there is a way to compute this model in fp32 here."""
    if is_quantised(model.transformer):
        return False
    sharding = model.sharding
    # FSDP2 fixes what it gathers in at its first pass. Nor is the free memory asked: it differs from rank to rank.
    if sharding is not None:
        return sharding.gather is None and not _half_tensors(model)
    needed = sum(tensor.numel() * 4 for tensor in _half_tensors(model))
    return needed <= SHARE_FOR_COPIES * available_bytes(model.device)


def _half_tensors(model: nn.Module) -> list[torch.Tensor]:
    return [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dtype in HALF]


@contextmanager
def _wide_weights(model: nn.Module) -> Iterator[None]:
    """16-bit weights and buffers as fp32 copies; afterwards each has its own storage back, bit for bit."""
    before = [(tensor, tensor.data) for tensor in _half_tensors(model)]
    try:
        for tensor, data in before:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in before:
            tensor.data = data


@contextmanager
def _without_tf32() -> Iterator[None]:
    """TF32 keeps ten bits of a product: as few as fp16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _without_flash(model: nn.Module) -> Iterator[None]:
    """Flash attention computes in 16 bits only; torch's own takes its place for the proof."""
    configs: list[Any] = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
    before = [(config, getattr(config, "_attn_implementation_internal", None)) for config in configs]
    changed = [(config, name) for config, name in before if isinstance(name, str) and "flash" in name]
    try:
        for config, _ in changed:
            config._attn_implementation_internal = "sdpa"
        yield
    finally:
        for config, name in changed:
            config._attn_implementation_internal = name
