"""What ranks are asked to do in the tests of exports: load a folder, train it a little, save it, alone or in parts."""

from __future__ import annotations

import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from posttrain.config.compute import Compute, Mesh
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.data.reward_encode import RewardEncoder
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.folders import export, readback
from posttrain.models.folders.export import ExportReport, ExportSettings, PendingSave
from posttrain.models.folders.export_shared import SharedSave, begin_shared_save
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import load
from posttrain.models.reward.export import begin_save_reward
from posttrain.models.reward.folders import start_reward
from posttrain.models.sharding import export as sharded_export
from posttrain.models.sharding.mesh import Sharding, sharding_of
from posttrain.models.sharding.shards import local, local_rows
from posttrain.models.sharding.whole import whole_tensors
from posttrain.models.sharding.wrap import park
from posttrain.models.tree.heads import ScoreModel
from posttrain.models.tree.logprobs import Policy
from posttrain.parallel.world import world
from posttrain.planning.trace import Storages
from tests.adapters import EVERY
from tests.read_back import read_in_process


@dataclass(frozen=True)
class Save:
    """Save(start, out, adapter="lora", shard=2)"""

    start: Path
    out: Path
    adapter: str | None = None
    shard: int = 2
    settings: ExportSettings = field(default_factory=ExportSettings)
    model_dtype: torch.dtype = torch.float32
    fault: str | None = None


@dataclass(frozen=True)
class Saved:
    report: ExportReport
    fingerprint: str
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    """Whole weights of the policy before and after the save, which must not change them."""


def spread_of(asked: Save) -> Sharding | None:
    if world().is_alone:
        return None
    mesh = Mesh(shard=asked.shard, replicate=world().size // asked.shard)
    return sharding_of(Compute(mesh=mesh), torch.device("cpu"), None)


def trained(asked: Save) -> tuple[Any, Policy]:
    spread = spread_of(asked)
    adapter = None if asked.adapter is None else EVERY[asked.adapter]
    loaded = load(asked.start, adapter=adapter, dtype=asked.model_dtype, sharding=spread)
    move(loaded.model)
    return loaded, Policy(loaded.model, sharding=spread)


@torch.no_grad()
def move(model: Any) -> None:
    """Stands for training: what trains moves, by the same numbers wherever a row lies."""
    for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        rows, first = local(parameter), 0
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            first = local_rows(parameter.shape[0], mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1)).start
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
        rows.add_(noise[first : first + rows.shape[0]].to(rows.dtype))


def save(asked: Save) -> Saved:
    loaded, policy = trained(asked)
    before = {name: tensor.clone() for name, tensor in whole_tensors(policy.model)}
    with pytest.MonkeyPatch.context() as patch:
        reading = read_in_process(patch)
        faults = next(reading)
        if asked.fault in TEXTS:
            own, change = readback.greedy_ids, TEXTS[asked.fault]
            patch.setattr(readback, "greedy_ids", lambda *of: (change(own(*of)[0]), []))
        elif asked.fault is not None:
            faults.append(FAULTS[asked.fault])
        pending: SharedSave | PendingSave = begin_shared_save(
            policy.model, loaded.tokenizer, asked.out, asked.settings, base=loaded.base, sharding=loaded.sharding
        )
        report = pending.wait()
    after = {name: tensor.clone() for name, tensor in whole_tensors(policy.model)}
    return Saved(report, weights_fingerprint(policy.model), before, after)


def save_for_real(asked: Save) -> ExportReport:
    """Read back by an interpreter of its own, as users' saves are."""
    loaded, policy = trained(asked)
    return begin_shared_save(
        policy.model, loaded.tokenizer, asked.out, asked.settings, base=loaded.base, sharding=loaded.sharding
    ).wait()


@dataclass(frozen=True)
class Held:
    """Bytes."""

    peak: int
    """Most at one moment of tensors that the save made, beside those that were there."""
    layer: int
    others: int
    """Of the weights outside of layers."""
    model: int


class Tensors(Storages):
    """Of a sharded tensor, what of it lies here; without those that have no memory."""

    def _enter(self, tensor: torch.Tensor) -> None:
        if not tensor.is_meta:
            super()._enter(local(tensor))


def held(asked: Save, at_once: bool) -> Held:
    """at_once: a plant: the model gathers all of itself when it is asked, and not a layer at a time."""
    loaded, policy = trained(asked)
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in policy.model.named_parameters()}
    of_layers = [size for name, size in sizes.items() if ".layers." in name]
    count = policy.model.config.num_hidden_layers
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as another:
        reading = read_in_process(patch)
        next(reading)
        # The fresh process holds a whole model. It is this process here, in a thread whose tensors are not followed.
        start = export._start
        patch.setattr(export, "_start", lambda scratch: another.submit(start, scratch).result())
        if at_once:
            patch.setattr(sharded_export, "own_layers", lambda root, layers: [])
        there = [local(tensor) for tensor in (*policy.model.parameters(), *policy.model.buffers())]
        with Tensors(there) as live:
            pending = begin_shared_save(
                policy.model, loaded.tokenizer, asked.out, asked.settings, base=loaded.base, sharding=loaded.sharding
            )
        pending.wait()
    model = sum(sizes.values())
    return Held(max(live.peaks.values()), sum(of_layers) // count, model - sum(of_layers), model)


def full(asked: Save) -> Saved:
    """Rank 0 may write no file of more than 20,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if world().is_main:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        return save(asked)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def other_weight(folder: Path) -> None:
    """One number of one weight, which moves no logit beyond the tolerance."""
    path = next(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


FAULTS = {"a bit": other_weight}
TEXTS: dict[str | None, Callable[[list[int]], list[int]]] = {
    "another word": lambda ids: [*ids[:3], ids[3] + 1, *ids[4:]],
    "cut short": lambda ids: ids[:-1],
}
"""What the fresh process says in the place of its greedy text."""


# ---------------------------------------------------------------- reward models


def save_reward(asked: Save) -> ExportReport:
    """A random head on the start, moved and saved."""
    spread = spread_of(asked)
    start, rule = load(asked.start), RewardRule()
    stops = RewardEncoder(start.tokenizer).stop_ids
    adapter = None if asked.adapter is None else EVERY[asked.adapter]
    headed = start_reward(start, rule, init="normal", adapter=adapter, stop_ids=stops)
    if spread is not None:
        park(headed.model, spread)
        headed.sharding = spread
    move(headed.model)
    policy = ScoreModel(headed.model, sharding=spread)
    assert (policy.sharding is None) == (spread is None)
    with pytest.MonkeyPatch.context() as patch:
        reading = read_in_process(patch)
        next(reading)
        return begin_save_reward(
            headed, asked.out, asked.settings, rule=rule, encoding=EncoderSettings(), statistics={"mean": 0.5}
        ).wait()
