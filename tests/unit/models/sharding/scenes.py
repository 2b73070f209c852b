"""What ranks are asked to do in these tests: functions of a module, since processes get them by name.

Each builds the same tiny model on every rank, spreads it, and gives back whole tensors as plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed as dist

from posttrain.config.settings import Compute, Mesh
from posttrain.data.trees import collate, pack
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.sharding.mesh import Sharding, sharding_of
from posttrain.models.sharding.shards import whole
from posttrain.models.sharding.wrap import park
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.value import ValueModel
from posttrain.types import PLAIN, TokenTree, Wants
from tests.adapters import EVERY
from tests.families import VOCAB, family_model
from tests.fixtures import random_trees

CPU = torch.device("cpu")
TREES = random_trees(9, vocab=VOCAB, branches=2, mask_probability=0.7, seed=5)


@dataclass(frozen=True)
class Scene:
    """Scene("llama", shard=2, replicate=2): which model, how it is spread, and on what it runs."""

    family: str = "llama"
    fields: dict[str, Any] = field(default_factory=dict)
    shard: int = 2
    replicate: int = 1
    adapter: str | None = None
    kind: str = "policy"
    path: str = "tree"
    dtype: torch.dtype = torch.float64
    autocast: torch.dtype | None = None
    gather: torch.dtype | None = None
    checkpointing: bool = False
    parked: bool = False
    wants: Wants = PLAIN

    @property
    def ranks(self) -> int:
        return self.shard * self.replicate


def sharding(scene: Scene) -> Sharding | None:
    found = sharding_of(Compute(mesh=Mesh(shard=scene.shard, replicate=scene.replicate)), CPU, None)
    return found if found is None or scene.gather is None else Sharding(found.mesh, scene.gather)


def plain_model(scene: Scene) -> Any:
    torch.manual_seed(0)
    model = family_model(scene.family, **scene.fields).to(scene.dtype)
    if scene.adapter is not None:
        model = add_adapter(model, EVERY[scene.adapter], seed=3)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model = model.to(scene.dtype)
    if scene.kind in ("score", "value"):
        model = with_head(model, init="normal")
    return model


def tree_model(scene: Scene, spread: Sharding | None) -> TreeModel:
    model = plain_model(scene)
    if scene.parked and spread is not None:
        park(model, spread)
        spread = None
    kind: Callable[..., TreeModel] = {"policy": Policy, "score": ScoreModel, "value": ValueModel}[scene.kind]
    return kind(
        model, scene.path, autocast=scene.autocast, activation_checkpointing=scene.checkpointing, sharding=spread
    )


def values_of(model: TreeModel, trees: Sequence[TokenTree], wants: Wants) -> torch.Tensor:
    """One number per place that a loss would see, each with a weight that depends on its tree alone."""
    out = model(collate(trees), wants)
    if isinstance(model, Policy):
        found = out.logprobs_N if out.entropy_N is None else out.logprobs_N + 0.3 * out.entropy_N
    else:
        found = out if isinstance(model, ValueModel) else out.scores_BH.flatten()
    return found


def loss_of(model: TreeModel, trees: Sequence[TokenTree], wants: Wants) -> torch.Tensor:
    values = values_of(model, trees, wants)
    return (values * values.detach().abs().sqrt()).sum() / 100  # no two places weigh the same


@dataclass
class Answer:
    values: list[list[float]]
    """Of each tree."""
    gradients: dict[str, torch.Tensor]
    path: str


def answer(scene: Scene, trees: Sequence[TokenTree] = TREES) -> Answer:
    """One step: each rank takes its trees in micro-batches of its own, as many as the others."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = tree_model(scene, sharding(scene) if size > 1 else None)
    mine = list(trees)[rank::size]
    micro = [mine[:1], mine[1:]] if size > 1 else [[tree] for tree in trees]
    # Ranks have another number of trees: who has none left runs one of the step for nothing.
    micro = [part or [trees[0]] for part in micro]
    for number, part in enumerate(micro):
        loss = loss_of(model, part, scene.wants)
        (loss * (0 if number and len(mine) == 1 else 1)).backward()
    values = []
    with torch.no_grad():
        for tree in trees:
            values.append(values_of(model, [tree], scene.wants).tolist())
    gradients = {
        name: whole(p.grad) for name, p in model.model.named_parameters() if p.requires_grad and p.grad is not None
    }
    return Answer(values, gradients, model.path)


def packed(trees: Sequence[TokenTree], budget: int) -> list[list[TokenTree]]:
    return list(pack(trees, budget))
