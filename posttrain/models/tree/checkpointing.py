"""Activation checkpointing that is called here, not by a layer's flag.

    with checkpointed_layers(layers, again):
        output = model(...)              # each layer's activations are computed again in the backward pass

`transformers` checkpoints a layer whose `training` flag is set. The same flag turns on the dropout that many decoders
call in their layers' own forward (OPT, XGLM, BioGPT, BART and its kin, Falcon, DBRX, Doge), so a policy that must not
be noisy cannot be checkpointed by it. Here the layer keeps its flag, and its forward is wrapped for one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from posttrain.errors import ModelError

CACHES = ("past_key_values", "layer_past")
"""What layers call a cache of keys and values; a recomputation would fill it a second time."""


def layers_to_checkpoint(model: nn.Module) -> tuple[nn.Module, ...]:
    """The layers that `transformers` makes for it; of one inside another only the outer, which covers both.

    Raises:
        ModelError: the model has none.
    """
    layers = layers_of(model)
    if not layers:
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        raise ModelError(
            f"activation checkpointing is not available for {type(plain).__name__}",
            remedy="set compute.activation_checkpointing to false",
        )
    return layers


def layers_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The layers of `transformers`, none inside another; empty for a model whose code has others."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    # Nested, a layer would be computed again within the recomputation of the one around it.
    inner = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    return tuple(layer for layer in layers if id(layer) not in inner)


@contextmanager
def checkpointed_layers(
    layers: Sequence[nn.Module], again: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Within this context `layers` keep their inputs alone, where gradients are recorded.

    again: the context in which a layer's recomputation runs, inside the backward pass, long after this one was left.
    """
    if not (layers and torch.is_grad_enabled()):
        yield
        return
    # On the instance: another model of the same class, such as the reference, keeps its layers as they are.
    changed: list[tuple[Any, Any]] = []
    try:
        for layer in layers:
            own = vars(layer).get("forward")  # somebody's replacement of the class's, to be put back
            layer.forward = partial(_checkpointed, layer.forward, again)
            changed.append((layer, own))
        yield
    finally:
        for layer, own in changed:
            del layer.forward
            if own is not None:
                layer.forward = own


def _checkpointed(
    forward: Callable[..., Any], again: Callable[[], AbstractContextManager[None]], *args: Any, **kwargs: Any
) -> Any:
    for name in CACHES:
        kwargs |= {name: None} if name in kwargs and _may_be_dropped(kwargs[name]) else {}
    run = partial(forward, **kwargs)
    # Not reentrant: keyword arguments and layers whose inputs need no gradient (a frozen embedding) then work.
    return checkpoint(run, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again()))


def _may_be_dropped(cache: Any) -> bool:
    """True of no cache and of an empty one. What lies in a full one, a trained prefix, is part of the model's input."""
    if cache is not None and cache.get_seq_length() > 0:
        raise ModelError(
            "a prefix lies in the cache of keys and values, which a recomputation would fill twice",
            remedy="set compute.activation_checkpointing to false, or choose another adapter",
        )
    return True
