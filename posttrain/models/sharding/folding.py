"""An adapter folded into weights that ranks share, one layer at a time: no process ever holds the whole model.

    plain = folded_in_parts(policy.model, sharding)     # a parked model of `transformers`; the policy stays as it is

`peft` folds whole tensors only. So each adapted layer is gathered on every rank, folded there, and cut again.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from posttrain.models.adapters.folding import merge_in_place, untie_adapted_ends
from posttrain.models.sharding.copies import twin
from posttrain.models.sharding.mesh import Sharding
from posttrain.models.sharding.shards import cut, whole

Place = tuple[nn.Module, str]
"""A module and the name of its parameter."""


@torch.no_grad()
def folded_in_parts(model: PeftModel, sharding: Sharding) -> Any:
    """A model of `transformers` that computes what `model` does with its adapter, parked. Collective.

    Weights that the adapter does not change are shared with `model`.
    """
    shell = twin(model, lambda own: own)
    untie_adapted_ends(shell)
    # A tied weight has several places, and all of them have to see it change.
    places: dict[int, list[Place]] = {}
    for module in shell.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                places.setdefault(id(parameter), []).append((module, name))
    for layer in _outermost(shell):
        held = [places[id(own)] for own in _shards_in(layer)]
        for spots in held:
            _replace(spots, whole(_at(spots)))
        layer.merge()
        for spots in held:
            _replace(spots, cut(_at(spots), sharding))
            places[id(_at(spots))] = spots
    # Nothing is left to be computed: what is merged already is taken out of its wrappers.
    return merge_in_place(shell)


def _outermost(model: nn.Module) -> list[Any]:
    """Adapted layers that lie in no other: one folds what is inside of it by itself."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    inner = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    return [layer for layer in layers if id(layer) not in inner]


def _shards_in(layer: nn.Module) -> list[DTensor]:
    found = {id(own): own for own in layer.parameters() if isinstance(own, DTensor)}
    return list(found.values())


def _at(places: list[Place]) -> Tensor:
    module, name = places[0]
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


def _replace(places: list[Place], tensor: Tensor) -> None:
    """One new parameter in all of these places."""
    parameter = nn.Parameter(tensor, requires_grad=False)
    for module, name in places:
        module._parameters[name] = parameter
