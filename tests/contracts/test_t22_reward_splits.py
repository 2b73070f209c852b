"""T22 for reward models: pairs and lists of 1 to 200 tokens give one loss and one gradient however they are split.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posttrain.losses.reward import OBJECTIVES
from posttrain.losses.reward_rule import RewardRule
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.training.objectives import reward_algorithm
from posttrain.training.step import accumulate
from tests.fixtures import make_tree, tiny_model


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_every_split_gives_the_same_step(objective: str, pooling: str) -> None:
    rng = np.random.default_rng(0)
    trees = [
        make_tree(
            [1, 5, row],
            *(rng.integers(0, 97, n).tolist() for n in (length, 201 - length, 7)[:size]),
            scores=(3.0, 2.0, 1.0)[:size],
            row=row,
        )
        for row, (length, size) in enumerate([(1, 2), (20, 3), (90, 2), (140, 3), (200, 2)], start=1)
    ]
    model = with_head(tiny_model("llama"), init="normal")
    found = []
    for budget in (10_000, 1, 450):
        policy = ScoreModel(model, pooling=pooling)  # type: ignore[arg-type]
        policy.zero_grad()
        algorithm = reward_algorithm(objective, rule=RewardRule(pooling=pooling))  # type: ignore[arg-type]
        measured = accumulate(policy, None, algorithm, trees, budget, step=0)
        found.append((measured.metrics["loss"].value, torch.cat([p.grad.flatten() for p in policy.parameters()])))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert float((gradient - found[0][1]).norm() / found[0][1].norm()) < 1e-5
