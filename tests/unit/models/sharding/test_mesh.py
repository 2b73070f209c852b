"""What `compute.mesh`, `compute.gather` and `compute.offload` come to, and what is refused before anything loads."""

from __future__ import annotations

import pytest
import torch

from posttrain.config.compute import Compute, Mesh
from posttrain.config.fingerprint import stage_fingerprint
from posttrain.config.stages import SFT
from posttrain.errors import ConfigError
from posttrain.models.sharding.mesh import MeshSizes, gathered_dtype, mesh_sizes, sharding_of
from posttrain.models.sharding.shards import local_rows

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "world", "local", "wanted"),
    [
        (CPU, 1, None, MeshSizes(1, 1)),
        (CPU, 4, 4, MeshSizes(1, 4)),
        (CUDA, 1, 1, MeshSizes(1, 1)),
        (CUDA, 8, 8, MeshSizes(8, 1)),
        (CUDA, 32, 8, MeshSizes(8, 4)),
        (CUDA, 32, None, MeshSizes(32, 1)),
        (CUDA, 12, 8, MeshSizes(12, 1)),
    ],
)
def test_auto_shards_within_a_machine_on_cuda(
    device: torch.device, world: int, local: int | None, wanted: MeshSizes
) -> None:
    assert mesh_sizes("auto", world=world, device=device, on_this_machine=local) == wanted


def test_a_mesh_that_is_not_the_job_names_both() -> None:
    with pytest.raises(ConfigError) as caught:
        mesh_sizes(Mesh(shard=2, replicate=3), world=4, device=CPU)
    text = str(caught.value)
    assert "compute.mesh" in text and "shard 2 x replicate 3 = 6 for 4 processes" in text
    assert mesh_sizes(Mesh(shard=2, replicate=2), world=4, device=CPU) == MeshSizes(2, 2)


def test_alone_nothing_is_spread() -> None:
    assert sharding_of(Compute(), CPU, None) is None
    with pytest.raises(ConfigError, match="for 1 process"):
        sharding_of(Compute(mesh=Mesh(shard=2)), CPU, None)
    with pytest.raises(ConfigError, match="only shards can lie"):
        sharding_of(Compute(offload="all"), CUDA, None)
    assert sharding_of(Compute(offload="all"), CPU, None) is None


def test_weights_are_gathered_in_bf16_where_the_arithmetic_of_a_card_is() -> None:
    bf16 = torch.bfloat16
    assert gathered_dtype(Compute(), CUDA, bf16) == bf16
    assert gathered_dtype(Compute(), CUDA, None) is None
    assert gathered_dtype(Compute(), CPU, bf16) is None
    assert gathered_dtype(Compute(gather="fp32"), CUDA, bf16) is None
    assert gathered_dtype(Compute(gather="bf16"), CPU, bf16) == bf16
    with pytest.raises(ConfigError, match="layers that get"):
        gathered_dtype(Compute(gather="bf16"), CUDA, None)


def test_how_it_is_spread_is_no_part_of_what_it_computes() -> None:
    def fingerprint(**compute: object) -> str:
        stage = SFT(compute=compute)
        return stage_fingerprint(stage, data=["d"], start_model="m", seed=0)

    assert fingerprint() == fingerprint(mesh={"shard": 2, "replicate": 4}, offload="optimizer")
    assert fingerprint() != fingerprint(gather="bf16")


@pytest.mark.parametrize(("rows", "ranks"), [(8, 4), (5, 4), (1, 4), (7, 3), (97, 4)])
def test_rows_are_cut_as_torch_cuts_them(rows: int, ranks: int) -> None:
    whole = torch.arange(rows)
    chunks = [chunk.tolist() for chunk in whole.chunk(ranks)]
    chunks += [[]] * (ranks - len(chunks))
    assert [whole[local_rows(rows, rank, ranks)].tolist() for rank in range(ranks)] == chunks
