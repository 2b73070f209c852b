"""Every row of every table as one step of a model that ranks share: the numbers of one process."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import distributed as dist

from posttrain.config.compute import Compute, Mesh
from posttrain.models.reference import LiveReference
from posttrain.models.sharding.mesh import sharding_of
from posttrain.models.tree.heads import ScoreModel
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel
from tests.invariance.test_ranks import FEW, SPLIT, alone, same
from tests.rank_steps import NAMES, RankedStep, StepFigures, steps
from tests.ranks import ranks

pytestmark = pytest.mark.long


def in_parts(model: TreeModel, reference: Any) -> tuple[TreeModel, Any]:
    """The same models, spread: two ranks share one, and four make two of them."""
    mesh = Mesh(shard=2, replicate=dist.get_world_size() // 2)
    spread = sharding_of(Compute(mesh=mesh), torch.device("cpu"), None)
    if isinstance(reference, LiveReference):
        reference._policy = Policy(reference._policy.model, sharding=spread)
    if isinstance(model, ScoreModel):
        return ScoreModel(model.model, pooling=model.pooling, steps=model.steps, sharding=spread), reference
    return Policy(model.model, sharding=spread), reference


def spread_steps(asked: RankedStep, names: tuple[str, ...]) -> dict[str, StepFigures]:
    return steps(asked, names, in_parts)


@cache
def shared(size: int, dtype: str, names: tuple[str, ...]) -> list[dict[str, StepFigures]]:
    return ranks(size).run(spread_steps, RankedStep(dtype, SPLIT, shard=True), names)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_two_ranks_that_share_a_model(name: str) -> None:
    for of_rank in shared(2, "float64", NAMES):
        same(of_rank[name], alone("float64")[name], relative=1e-10, gradient=1e-10)


@pytest.mark.parametrize("name", FEW)
def test_two_replicas_of_two_ranks(name: str) -> None:
    for of_rank in shared(4, "float64", FEW):
        same(of_rank[name], alone("float64")[name], relative=1e-10, gradient=1e-10)


@pytest.mark.parametrize("name", FEW)
def test_in_fp32_to_its_rounding(name: str) -> None:
    for of_rank in shared(2, "float32", FEW):
        same(of_rank[name], alone("float32")[name], relative=1e-4, gradient=1e-5)
