"""A model's layers as FSDP2 groups, under a root that holds the rest.

    parked = park(model, sharding)             # each parameter is this rank's rows of it; nothing computes yet
    shard_model(tree_model, layers, sharding)  # FSDP2: gathered before a layer computes, freed after it

Each layer is a group of its own; the root (`TreeModel`, the one door) has what is outside of layers: the embedding, the
last norm, the head, an adapter's virtual tokens. Gradients are sums over ranks, never means: a loss here is divided by
the whole step's count already, and a mean would make the gradient depend on the number of ranks. The root stays whole
from a forward to its backward pass, since the chunked projection reads the head's weight in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from posttrain.errors import ModelError
from posttrain.models.sharding.lockstep import without_views
from posttrain.models.sharding.mesh import Sharding
from posttrain.models.sharding.shards import cut, mesh_of


def sharding_in(model: nn.Module) -> Sharding | None:
    """Of a model whose parameters are parked; None where they are plain.

    Raises:
        ModelError: there are several replicas of it, and how they meet was not said.
    """
    mesh = mesh_of(model.parameters())
    if mesh is not None and mesh.size() != dist.get_world_size():
        raise ModelError(
            "the model is one of several replicas, and nothing says how these meet",
            found=f"a mesh of {mesh.size()} of {dist.get_world_size()} ranks",
            remedy="pass `sharding=loaded.sharding`",
        )
    return None if mesh is None else Sharding(mesh)


@torch.no_grad()
def park(model: nn.Module, sharding: Sharding) -> None:
    """Keep of each parameter this rank's rows alone, in place; tied ones stay tied.

    Every rank has to hold the same values. Nothing computes with a parked model until it is sharded; it can be given
    an adapter and be copied, as a plain one.
    """
    made: dict[int, nn.Parameter] = {}
    for module, name, parameter in parameter_slots(model):
        if parameter.ndim and not isinstance(parameter, DTensor):
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(cut(parameter, sharding), requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]


def shard_model(root: nn.Module, layers: Sequence[nn.Module], sharding: Sharding) -> None:
    """Make FSDP2 groups of the layers and of the root, in place.

    Args:
        root: whose call is the only way to the layers; its parameters are plain and the same on all ranks, or parked.
        layers: none inside another. One that shares a parameter with something outside of it goes to the root.

    Raises:
        ModelError: a scalar parameter trains.
    """
    scalars = _frozen_scalars(root)
    parked = _unpark(root)
    policy: OffloadPolicy = CPUOffloadPolicy() if sharding.offload else OffloadPolicy()
    # Casting is autocast's business, as in one process: FSDP's own would narrow the residual stream as well.
    as_kept = MixedPrecisionPolicy(cast_forward_inputs=False)
    narrow = as_kept
    if sharding.gather is not None:
        narrow = MixedPrecisionPolicy(sharding.gather, torch.float32, cast_forward_inputs=False)
    shard = partial(fully_shard, mesh=sharding.mesh, offload_policy=policy, ignored_params=scalars)
    chosen = own_layers(root, layers)
    for layer in chosen:
        # Autocast leaves what is multiplied entry by entry as it is kept: a norm in bf16 would have other weights.
        if narrow is not as_kept and (entrywise := _entrywise(layer)):
            shard(entrywise, mp_policy=as_kept)
        layer.register_forward_hook(_returns_no_view)
        shard(layer, mp_policy=narrow)
    root.register_forward_hook(_returns_no_view)
    shard(root, mp_policy=as_kept, reshard_after_forward=False)
    for group in _groups(root):
        group.set_gradient_divide_factor(1.0)
        # Its default multiplies before it adds, which gloo does not know.
        group.set_force_sum_reduction_for_comms(True)
    for layer in chosen:
        # An expert that no token of this rank reached takes part in the sum, or the ranks would add unlike tensors. One
        # that no token of any rank reached then has a gradient of zero; in one process it has none.
        if isinstance(layer, FSDPModule) and any(isinstance(part, nn.ModuleList) for part in layer.modules()):
            layer.set_reduce_scatter_unused_params(True)
    _fill(root, parked, sharding)


def reshard(model: nn.Module) -> None:
    """Free what is gathered, so that every parameter is its shard again: what an optimizer, a checkpoint and a copy
    have to see. Nothing happens to a plain model."""
    for group in _groups(model):
        group.reshard()


def _returns_no_view(module: nn.Module, inputs: Any, output: Any) -> Any:
    return without_views(output)


def _entrywise(layer: nn.Module) -> list[nn.Module]:
    """Modules that hold vectors and nothing else, such as norms; a linear layer's bias stands beside a matrix."""
    found = []
    for module in layer.modules():
        held = list(module.parameters())
        owns = any(True for _ in module.parameters(recurse=False))
        # A `ParameterDict` is never called, so that nothing would gather what lies in it.
        called = not isinstance(module, nn.ParameterDict | nn.ParameterList)
        if owns and called and all(parameter.ndim < 2 for parameter in held):
            found.append(module)
    return found


def _groups(model: nn.Module) -> Iterator[FSDPModule]:
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def parameter_slots(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every place that holds a parameter; a tied one has several."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                yield module, name, parameter


def _frozen_scalars(root: nn.Module) -> set[nn.Parameter]:
    """Parameters without a dimension, which every rank keeps."""
    scalars = {parameter for parameter in root.parameters() if not parameter.ndim}
    trained = [name for name, parameter in root.named_parameters() if not parameter.ndim and parameter.requires_grad]
    if trained:
        raise ModelError(
            "a scalar that trains cannot be cut into rows",
            found=", ".join(trained[:5]),
            remedy="freeze it, train an adapter, or write `compute: {mesh: {shard: 1, replicate: N}}`",
        )
    return scalars


def own_layers(root: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers whose parameters nobody else holds: FSDP2 refuses a parameter that two groups gather."""
    holders: dict[int, set[int]] = {}
    inside = {id(part): index for index, layer in enumerate(layers) for part in layer.modules()}
    for module, _, parameter in parameter_slots(root):
        holders.setdefault(id(parameter), set()).add(inside.get(id(module), -1))
    return [layer for layer in layers if all(len(holders[id(p)]) == 1 for p in layer.parameters())]


def _unpark(root: nn.Module) -> dict[tuple[int, str], Tensor]:
    """Parked parameters become empty plain ones of their whole shape, as FSDP2 wants to find them; what they held, by
    its place."""
    shells: dict[int, nn.Parameter] = {}
    parked: dict[tuple[int, str], Tensor] = {}
    for module, name, parameter in parameter_slots(root):
        if isinstance(parameter, DTensor):
            if id(parameter) not in shells:
                shell = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
                shells[id(parameter)] = nn.Parameter(shell, requires_grad=parameter.requires_grad)
            module._parameters[name] = shells[id(parameter)]
            parked[id(module), name] = parameter
        elif not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()
    return parked


@torch.no_grad()
def _fill(root: nn.Module, parked: dict[tuple[int, str], Tensor], sharding: Sharding) -> None:
    """The shards that FSDP2 made of empty parameters get what was parked in their places."""
    filled: dict[int, nn.Parameter] = {}
    for module, name, parameter in parameter_slots(root):
        if (id(module), name) not in parked:
            continue
        if id(parameter) not in filled:
            rows = parked[id(module), name].detach()
            assert isinstance(rows, DTensor) and isinstance(parameter, DTensor)
            # The rows' own memory, so that frozen weights of a reference stay shared. Not by `from_local`, which would
            # take offloaded rows back to the card.
            kept = rows.to_local().cpu() if sharding.offload else rows.to_local()
            shard = DTensor(kept, parameter._spec, requires_grad=False)
            filled[id(parameter)] = nn.Parameter(shard, requires_grad=parameter.requires_grad)
        module._parameters[name] = filled[id(parameter)]
