"""Copies of a model that may be sharded: `copy.deepcopy` refuses FSDP2's modules.

    reference = twin(policy.model, lambda p: p.detach().clone())     # as sharded as the model is, and parked

What is copied is the structure; what stands in a parameter's place is the caller's choice: itself, which shares it, a
copy of the shard, or the whole tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed.fsdp import FSDPModule

from posttrain.models.sharding.wrap import reshard


@torch.no_grad()
def twin(model: nn.Module, parameter: Callable[[Tensor], Tensor]) -> Any:
    """A copy of `model` without FSDP2 in it, whose parameters are `parameter(p)` of the model's own.

    A tensor that `parameter` gives back as it is stays shared, as the same object; others become new parameters with
    the same `requires_grad`. Tied ones stay tied.
    """
    reshard(model)
    # What lies in `deepcopy`'s memo counts as copied.
    memo: dict[int, Any] = {}
    for own in model.parameters():
        made = parameter(own)
        memo[id(own)] = made if made is own else nn.Parameter(made, requires_grad=own.requires_grad)
    with _without_fsdp(model):
        return copy.deepcopy(model, memo)


@contextmanager
def _without_fsdp(model: nn.Module) -> Iterator[None]:
    """The model as it was before `fully_shard`: the classes, without the hooks, without the states that they lead to.

    Its parameters are the shards all the while. Afterwards everything is as before.
    """
    before: list[tuple[nn.Module, type, dict[str, Any]]] = []
    # Whole, with their order: the hook that gathers weights has to run before any other.
    hooks: list[tuple[Any, list[Any]]] = []
    try:
        groups: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for module in groups:
            for handle in _handles(module):
                hooks += _take(handle)
            states = {key: vars(module).pop(key) for key in (STATE_KEY, REGISTRY_KEY) if key in vars(module)}
            before.append((module, type(module), states))
            module.__class__ = type(module).__mro__[2]  # FSDPX, FSDPModule, X
        yield
    finally:
        for module, wrapped, states in before:
            module.__class__ = wrapped
            vars(module).update(states)
        for taken, items in reversed(hooks):
            taken.clear()
            taken.update(items)


def _handles(module: FSDPModule) -> Iterator[Any]:
    """Of the hooks that `fully_shard` put on this module, and on those whose parameters it gathers."""
    state = module._get_fsdp_state()
    yield state._pre_forward_hook_handle
    yield state._post_forward_hook_handle
    for group in state._fsdp_param_groups:
        for parameter in group.fsdp_params:
            yield parameter._post_load_hook_handle


def _take(handle: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Takes the handle's hook away, and gives each dictionary that it lay in with what was in it before."""
    for reference in (handle.hooks_dict_ref, *handle.extra_dict_ref):
        hooks = reference()
        if hooks is not None and handle.id in hooks:
            items = list(hooks.items())
            del hooks[handle.id]
            yield hooks, items
