"""Rotary embeddings whose angles depend on how long the longest row of the batch is.

`transformers` computes two kinds anew in each forward pass: `dynamic` (NTK scaling, bloc97 2023) from the longest
position seen so far, and `longrope` (Ding et al. 2024, section 3.3), which has one set of factors for short batches and
one for long ones. Up to the model's original length both are fixed; beyond it a row's log-probs would depend on its
neighbours in the micro-batch, and with `dynamic` on those of earlier batches too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def static_positions(config: Any) -> int | None:
    """Tokens up to which a row's angles depend on nothing but the position; None: at any length.

    Args:
        config: a model's text config. Phi-3's, with `longrope` and original_max_position_embeddings 4096, gives 4096.
    """
    limits = []
    for rope in _rope_settings(config):
        kind = str(rope.get("rope_type") or rope.get("type"))
        if "dynamic" in kind:
            limits.append(config.max_position_embeddings)
        elif kind == "longrope":
            limits.append(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    return min(limits, default=None)


def _rope_settings(config: Any) -> Iterator[dict[str, Any]]:
    """The model's rotary settings: one record, or one for each type of layer."""
    for name in ("rope_parameters", "rope_scaling"):  # the second is what models with code of their own may still have
        found = getattr(config, name, None) or {}
        nested = [value for value in found.values() if isinstance(value, dict)]
        yield from nested or [found]


def forget_lengths(model: nn.Module) -> None:
    """Undo what `dynamic` modules remember of longer rows, so that the next row's angles are its own."""
    for module in model.modules():
        buffers = dict(module.named_buffers(recurse=False))
        for name, original in buffers.items():
            if not name.endswith("original_inv_freq"):
                continue
            prefix = name.removesuffix("original_inv_freq")
            seen = f"{prefix}max_seq_len_cached"
            # Only where something longer was seen; the buffer is else the model's own already.
            if seen in vars(module) and vars(module)[seen] != module.original_max_seq_len:
                module.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
                setattr(module, seen, module.original_max_seq_len)
