"""Weights in one file, whole, whoever shares the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from posttrain.errors import SourceError
from posttrain.models.sharding.one_file import read_one_file, write_one_file
from posttrain.models.sharding.shards import whole
from posttrain.parallel.world import world
from tests.ranks import ranks

WHOLE = {
    "odd": torch.arange(35.0).view(7, 5),
    "narrow": torch.ones(3, 2, dtype=torch.bfloat16),
    "wide": torch.arange(6.0, dtype=torch.float64),
    "plain": torch.tensor(4.0),
}


def shards(factor: float = 1.0) -> dict[str, torch.Tensor]:
    if world().is_alone:
        return {name: tensor * factor for name, tensor in WHOLE.items()}
    shape = (world().size // 2, 2)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "fsdp"))
    return {
        name: distribute_tensor(tensor * factor, mesh, (Replicate(), Shard(0))) if tensor.ndim else tensor * factor
        for name, tensor in WHOLE.items()
    }


def write(path: Path) -> None:
    write_one_file(shards(), path, world())


def read(path: Path) -> dict[str, torch.Tensor]:
    tensors = shards(0.0)
    read_one_file(tensors, path, world())
    return {name: whole(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("wrote", [1, 2, 4])
def test_any_number_of_ranks_writes_and_reads(tmp_path: Path, wrote: int) -> None:
    path = tmp_path / "step-00000003.safetensors"
    write(path) if wrote == 1 else ranks(wrote).run(write, path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    for found in [load_file(path), read(path), *ranks(2).run(read, path), *ranks(4).run(read, path)]:
        assert set(found) == set(WHOLE)
        assert all(
            torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in WHOLE.items()
        )


def test_what_cannot_be_written_is_told_by_all(tmp_path: Path) -> None:
    for error in ranks(2).outcomes(write, tmp_path / "nowhere" / "a.safetensors"):
        assert isinstance(error, SourceError) and "a.safetensors: the file cannot be written" in str(error), error
