"""Tensors in the files of a checkpoint, read into shards or whole, whichever way they were saved.

    stored = Stored(checkpoint)
    stored.kinds["lm_head.weight"]            # Kind(shape=(49152, 576), dtype=torch.float32)
    stored.load({"lm_head.weight": shard})    # each rank its rows of it, whoever wrote them
    stored.read("lm_head.weight")             # the whole tensor

The reader is that of `torch.distributed.checkpoint`, for safetensors: nothing in them is code. It takes a file without
a word on parts for whole tensors, so that one process's checkpoint is read by four as well. Nothing here is collective.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, HuggingFaceStorageReader, Metadata
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from posttrain.errors import CheckpointError
from posttrain.models.folders.finite import is_finite
from posttrain.runs.checkpoints import tensor_folder


@dataclass(frozen=True, slots=True)
class Kind:
    """Of a whole tensor: Kind((49152, 576), torch.float32)."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Stored:
    """See the module's docstring; the checkpoint has been verified (`posttrain.runs.checkpoints.read`)."""

    def __init__(self, checkpoint: Path):
        self.path = checkpoint
        self._folder = str(tensor_folder(checkpoint))
        self._metadata: Metadata = HuggingFaceStorageReader(self._folder).read_metadata()
        self.kinds: dict[str, Kind] = {
            name: _kind(said, name, checkpoint) for name, said in self._metadata.state_dict_metadata.items()
        }
        """In no order that means anything."""

    def load(self, targets: Mapping[str, Tensor]) -> None:
        """Fill tensors, in place: of a sharded one this rank's part, of a plain one all of it; each has the shape that
        `kinds` says."""
        # Not `torch.distributed.checkpoint.load`: it plans over all ranks, and one that cannot read its file would
        # leave the others waiting.
        reader, planner = HuggingFaceStorageReader(self._folder), DefaultLoadPlanner()
        planner.set_up_planner(dict(targets), self._metadata, is_coordinator=True)
        reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        plan = reader.prepare_local_plan(planner.create_local_plan())
        (plan,) = reader.prepare_global_plan(planner.create_global_plan([plan]))
        reader.read_data(planner.finish_plan(plan), planner).wait()

    def read(self, name: str) -> Tensor:
        """One whole tensor, on the CPU."""
        kind = self.kinds[name]
        tensor = torch.empty(kind.shape, dtype=kind.dtype)
        self.load({name: tensor})
        return tensor


def _kind(said: object, name: str, checkpoint: Path) -> Kind:
    assert isinstance(said, TensorStorageMetadata), name
    # Parts that overlap or leave a gap would fill a tensor with what lay in memory before.
    if sum(part.sizes.numel() for part in said.chunks) != said.size.numel():
        raise CheckpointError(
            f"the parts of {name} do not make up the whole tensor",
            where=checkpoint,
            found=f"{sum(part.sizes.numel() for part in said.chunks):,} of {said.size.numel():,} numbers",
            remedy=f"remove {checkpoint.name} to go on from the checkpoint before it, or start anew with --fresh",
        )
    return Kind(tuple(said.size), said.properties.dtype)


def non_finite_stored(files: Iterable[Path]) -> list[str]:
    """Names of the tensors in these files that hold a NaN or an infinity; one (part of a) tensor is in memory."""
    bad: dict[str, None] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            bad |= {key: None for key in file.keys() if not is_finite(file.get_tensor(key))}  # noqa: SIM118
    return list(bad)
