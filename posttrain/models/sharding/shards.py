"""Tensors in shards: which rows a rank has, and a question about all of them that every rank answers alike.

    local_rows(5, rank=1, ranks=2) -> slice(3, 5)      as `torch.chunk` cuts, the last ones may have none
    whole(parameter)               -> the whole tensor, gathered; a plain tensor is itself

All but `local_rows`, `cut` and `overwrite` are collective for a sharded tensor: every rank has to ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from posttrain.models.sharding.mesh import Sharding


def local_rows(rows: int, rank: int, ranks: int) -> slice:
    """The rows of a tensor that a rank has; those of torch's own `Shard(0)`."""
    chunk = -(-rows // ranks)
    return slice(min(rank * chunk, rows), min((rank + 1) * chunk, rows))


def cut(tensor: Tensor, sharding: Sharding) -> DTensor:
    """This rank's rows of a tensor that every rank has whole. A copy: the whole one may be freed."""
    rows = tensor.detach()[local_rows(tensor.shape[0], sharding.rank, sharding.ranks)]
    return placed(rows.clone(memory_format=torch.contiguous_format), tensor, sharding)


def placed(local: Tensor, like: Tensor, sharding: Sharding) -> DTensor:
    """A rank's rows as part of a tensor of the shape of `like`."""
    # Given, not asked of the others: rows need not be cut evenly, and one rank may have none.
    stride = torch.empty(like.shape, device="meta").stride()
    # On the ranks that share this model alone: whole replicas need not know of each other until they compute.
    return DTensor.from_local(local, sharding.shard_mesh, (Shard(0),), run_check=False, shape=like.shape, stride=stride)


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, without its gradient's history."""
    own = tensor.detach()
    if not isinstance(own, DTensor):
        return own
    by_rows = own.placements[-1] == Shard(0) and all(place.is_replicate() for place in own.placements[:-1])
    return _by_rows(own) if by_rows and own.to_local().device.type == "cpu" else own.full_tensor()


@torch.no_grad()
def _by_rows(own: DTensor) -> Tensor:
    """Each rank sends its rows into their place. gloo's gathering takes a second buffer as large as the whole tensor,
    which of an embedding is more memory than a layer."""
    mesh, last, rows = own.device_mesh, own.device_mesh.ndim - 1, own.to_local()
    out = torch.empty(own.shape, dtype=own.dtype)
    for rank in range(mesh.size(last)):
        part = out[local_rows(out.shape[0], rank, mesh.size(last))]
        if part.numel():
            if rank == mesh.get_local_rank(last):
                part.copy_(rows)
            # As bytes, since gloo does not know every dtype.
            dist.broadcast(part.view(-1).view(torch.uint8), group=mesh.get_group(last), group_src=rank)
    return out


@torch.no_grad()
def overwrite(own: Tensor, value: Tensor) -> None:
    """Put `value`, which every rank has whole, in the place of what `own` holds; of shards each rank its rows."""
    if isinstance(own, DTensor):
        mesh = own.device_mesh
        for dim, placement in enumerate(own.placements):
            if placement.is_shard():
                value = value[local_rows(value.shape[0], mesh.get_local_rank(dim), mesh.size(dim))]
    local(own).copy_(value)


def local(tensor: Tensor) -> Tensor:
    """What of it lies here."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def moved(tensor: Tensor, device: torch.device, *, copy: bool = False) -> Tensor:
    """On the device; a sharded one keeps its mesh, wherever its rows lie.

    Args:
        copy: also where it lies there already.
    """
    if not isinstance(tensor, DTensor):
        return tensor.to(device, copy=copy)
    # Not `DTensor.to`, which keeps the rows on the mesh's own kind of device.
    return DTensor(tensor.to_local().to(device, copy=copy), tensor._spec, requires_grad=False)


def anywhere(flags: Sequence[bool], mesh: DeviceMesh | None) -> list[bool]:
    """Each flag, true where it is on any rank of the mesh; without a mesh as given."""
    if mesh is None or not flags:
        return list(flags)
    found = torch.tensor(flags, dtype=torch.int32, device=mesh.device_type)
    for dim in range(mesh.ndim):
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=mesh.get_group(dim))
    return [bool(flag) for flag in found.tolist()]


def any_nonzero(tensor: Tensor) -> bool:
    """Whether an entry is not zero, on whichever rank it lies."""
    own = bool(local(tensor.detach()).any())
    return anywhere([own], tensor.device_mesh if isinstance(tensor, DTensor) else None)[0]


def mesh_of(tensors: Iterable[Tensor]) -> DeviceMesh | None:
    """Of the first sharded one; None where none is."""
    return next((tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)), None)
