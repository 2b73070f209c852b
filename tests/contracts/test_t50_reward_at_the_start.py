"""T50 for reward models: under a fresh head the loss is ln 2 and the margin 0, in full, with LoRA, on both paths.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.config import LoRA
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.training.objectives import reward_algorithm
from posttrain.training.step import measure
from tests.fixtures import random_trees, tiny_model


@pytest.mark.parametrize("path", ["tree", "padded"])
@pytest.mark.parametrize("adapter", [None, LoRA(rank=2), LoRA(rank=2, dropout=0.1)])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_ln_2(path: str, adapter: LoRA | None, autocast: torch.dtype | None) -> None:
    model: torch.nn.Module = with_head(tiny_model("llama"))
    if adapter is not None:
        model = add_adapter(model, adapter)
    policy = ScoreModel(model, path, autocast=autocast, dropout=True)  # type: ignore[arg-type]
    values = measure(policy, None, reward_algorithm(), random_trees(6, branches=2), 40).metrics
    assert values["loss"].value == pytest.approx(math.log(2), abs=1e-6)
    assert values["reward_margin"].value == 0.0 and values["reward_accuracy"].value == 0.5
