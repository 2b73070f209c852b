"""Tensors that may be sharded, whole in one safetensors file of rank 0, and back from it; all of it is collective.

    write_one_file({"lm_head.weight": shard, ...}, path, world())
    read_one_file({"lm_head.weight": shard, ...}, path, world())    # each rank its rows, in place

For weights that a run keeps beside its checkpoints. No process holds more than one tensor whole.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from posttrain.models.folders.shard_files import ShardWriter
from posttrain.models.sharding.shards import local, local_rows, whole
from posttrain.parallel.world import World
from posttrain.runs.disk import writing


@torch.no_grad()
def write_one_file(tensors: Mapping[str, Tensor], path: Path, here: World) -> None:
    """
    Args:
        path: ends with .safetensors; its folder is there, and nothing else is being written in it.

    Raises:
        SourceError: rank 0's disk refuses it; raised by all.
    """
    # A reader that maps the file wants each tensor at a multiple of its own size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    kinds = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in ordered.items()}
    writer = ShardWriter(path.parent, kinds, shard_bytes=sys.maxsize, name=path.name) if here.is_main else None
    failure: Exception | None = None
    for name, tensor in ordered.items():
        # On every rank, whatever rank 0's disk says: those that stopped would leave the others waiting.
        gathered = whole(tensor)
        if writer is None or failure is not None:
            continue
        try:
            writer.write(name, gathered.cpu())
        except Exception as error:  # the boundary: raised below, by all
            failure = error
    with here.together("writing weights"), writing(path):
        if writer is not None and failure is not None:
            writer.abandon()
            raise failure
        if writer is not None:
            writer.close()


@torch.no_grad()
def read_one_file(tensors: Mapping[str, Tensor], path: Path, here: World) -> None:
    """Fill tensors in place from a file that holds them whole, by name."""
    with here.together("reading weights"), safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items():
            if not isinstance(tensor, DTensor):
                tensor.copy_(file.get_tensor(name))
                continue
            mesh, last = tensor.device_mesh, tensor.device_mesh.ndim - 1
            rows = local_rows(tensor.shape[0], mesh.get_local_rank(last), mesh.size(last))
            local(tensor).copy_(file.get_slice(name)[rows])
