"""A plain copy of a model that ranks share, brought up to date when it is asked: what samples, and what servers get.

    mirror = Mirror(policy.model, kept=True)     # a rank that keeps none takes part all the same
    mirror.refresh()                             # collective: the weights as they are now, one whole tensor at a time
    mirror.model                                 # computes without the other ranks

Sampling asks a model a thousand times between two updates. Gathering its layers for every token would send the whole
model over the wire a thousand times; a copy is sent once, and costs the memory of the whole model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posttrain.models.sharding.copies import twin
from posttrain.models.sharding.shards import local
from posttrain.models.sharding.whole import whole_tensors


class Mirror:
    """
    Args:
        model: its parameters in parts, as every rank has them; also an adapter's.
        kept: whether this rank has the copy; the others only help to gather it.
    """

    def __init__(self, model: nn.Module, *, kept: bool):
        self.shared = model
        self.model: Any = _plain(model) if kept else None

    def refresh(self) -> None:
        """The model's weights and persistent buffers into the copy; collective."""
        own = {} if self.model is None else self.model.state_dict(keep_vars=True)
        with torch.no_grad():
            # A tied tensor once: in the copy it is tied as well.
            for name, tensor in whole_tensors(self.shared, duplicates=False):
                if own:
                    own[name].copy_(tensor)


def _plain(model: nn.Module) -> Any:
    """The model's structure with room for whole weights; nothing is gathered yet."""
    copy = twin(model, _room)
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
    return copy.eval()


def _room(parameter: Tensor) -> Tensor:
    # A DTensor's shape is that of the whole; where it would lie is where its rows lie.
    return torch.empty(parameter.shape, dtype=parameter.dtype, device=local(parameter.detach()).device)
