"""Which ranks share a model: `compute.mesh` becomes a device mesh, and `Sharding` says what is done on it.

    mesh_sizes("auto", world=8, device=cuda, on_this_machine=4) -> MeshSizes(shard=4, replicate=2)
    sharding_of(stage.compute, device, torch.bfloat16)          -> Sharding(mesh, gather=torch.bfloat16), or None

None: every rank holds the whole model, and gradients are added up afterwards (`posttrain.parallel.gradients`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from posttrain.config.compute import Compute, Mesh
from posttrain.errors import ConfigError

# The second name is a convention: `peft` takes a layer's sizes for those of a shard where its mesh is called otherwise.
REPLICATE, SHARD = "replicate", "fsdp"


@dataclass(frozen=True, slots=True)
class MeshSizes:
    """MeshSizes(shard=8, replicate=4): four groups of eight ranks, each group with one whole model between them."""

    shard: int
    replicate: int


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a model's weights are spread: Sharding(mesh, gather=torch.bfloat16)."""

    mesh: DeviceMesh
    """[fsdp], or [replicate, fsdp] (hybrid sharding, HSDP)."""
    gather: torch.dtype | None = None
    """What a layer's weights are sent in and computed with; None: as they are kept."""
    offload: bool = False
    """Whether the shards, their gradients and their moments lie in the machine's memory instead of the card's."""

    @property
    def ranks(self) -> int:
        """That share one model."""
        return int(self.shard_mesh.size())

    @property
    def rank(self) -> int:
        """This one's number among them."""
        return int(self.shard_mesh.get_local_rank())

    @property
    def shard_mesh(self) -> DeviceMesh:
        """The ranks that share this one's model."""
        return self.mesh if self.mesh.ndim == 1 else self.mesh[SHARD]


def mesh_sizes(
    asked: Literal["auto"] | Mesh, *, world: int, device: torch.device, on_this_machine: int | None = None
) -> MeshSizes:
    """What `compute.mesh` comes to on this many processes.

    on_this_machine: processes per machine; None: all of them.

    Raises:
        ConfigError: shard x replicate is not the number of processes.
    """
    if isinstance(asked, Mesh):
        if asked.shard * asked.replicate != world:
            raise ConfigError(
                "the mesh is not as large as the job",
                where="compute.mesh",
                found=f"shard {asked.shard} x replicate {asked.replicate} = {asked.shard * asked.replicate} for "
                f"{world} process{'es' if world != 1 else ''}",
                expected=f"shard x replicate = {world}",
                remedy=f"write `mesh: {{shard: {world}, replicate: 1}}` or `mesh: auto`, or start "
                f"{asked.shard * asked.replicate} processes",
            )
        return MeshSizes(asked.shard, asked.replicate)
    # Ranks on CPUs share the memory of their machine only in name: gathering costs more there than a second copy.
    if device.type != "cuda":
        return MeshSizes(1, world)
    local = on_this_machine or world
    # Machines with unlike numbers of ranks have no rectangle to lie in.
    return MeshSizes(local, world // local) if world % local == 0 else MeshSizes(world, 1)


def sharding_of(compute: Compute, device: torch.device, autocast: torch.dtype | None) -> Sharding | None:
    """How a stage's models are spread over the ranks of this job; None where each holds the whole model.

    Collective: every rank makes the mesh's groups together.

    Args:
        autocast: of the stage's forward passes; `gather: auto` follows it on CUDA.

    Raises:
        ConfigError: as `mesh_sizes`; bf16 weights for fp32 arithmetic; weights that are offloaded without being
            sharded; a torch whose FSDP2 is too old.
    """
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    machine = os.environ.get("LOCAL_WORLD_SIZE")
    sizes = mesh_sizes(
        compute.mesh, world=world, device=device, on_this_machine=None if machine is None else int(machine)
    )
    if sizes.shard == 1:
        if compute.offload == "all" and device.type != "cpu":
            raise ConfigError(
                "only shards can lie in the machine's memory while they are not computed with",
                where="compute.offload",
                found=f"all, with {world} process{'es' if world != 1 else ''} that hold{'s' if world == 1 else ''} the "
                "whole model",
                expected="a mesh whose `shard` is above 1",
                remedy="write `offload: optimizer`, or start several processes",
            )
        return None
    require_fsdp()
    gather = gathered_dtype(compute, device, autocast)
    shape, names = (
        ((sizes.shard,), (SHARD,)) if sizes.replicate == 1 else ((sizes.replicate, sizes.shard), (REPLICATE, SHARD))
    )
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    return Sharding(mesh, gather, offload=compute.offload == "all" and device.type != "cpu")


def gathered_dtype(compute: Compute, device: torch.device, autocast: torch.dtype | None) -> torch.dtype | None:
    """What `compute.gather` comes to; None: the weights' own dtype.

    Raises:
        ConfigError: bf16 weights would meet fp32 activations in every layer.
    """
    if compute.gather == "bf16" and autocast != torch.bfloat16:
        raise ConfigError(
            "layers that get their weights in bf16 have to compute in bf16",
            where="compute.gather",
            found=f"gather: bf16 with precision: {compute.precision} on {device.type}, which computes in fp32",
            expected="`precision: bf16` beside it",
            remedy="write `gather: auto`, or `precision: bf16`",
        )
    wanted = compute.gather == "bf16" or (compute.gather == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted and autocast == torch.bfloat16 else None


def require_fsdp() -> None:
    """
    Raises:
        ConfigError: before torch 2.13, FSDP2 does not look for tensors in the records that a policy returns, so that
            its backward pass would compute with weights that were freed.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 13):
        raise ConfigError(
            "sharding a model needs a newer torch",
            where="compute.mesh",
            found=f"torch {torch.__version__}",
            expected="torch 2.13 or newer",
            remedy="install it, or write `mesh: {shard: 1, replicate: N}`, under which each process holds the model",
        )
