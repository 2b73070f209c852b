"""T36: one update per rollout, so every ratio is 1, whatever the micro-batch and whatever pads its rows.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from posttrain.data.trees import collate, count, pack
from posttrain.diagnostics.metrics import merge, values
from posttrain.losses.online import ONLINE
from posttrain.losses.policy import policy_loss
from posttrain.models.tree.logprobs import Policy
from posttrain.types import Branch, TokenTree
from tests.fixtures import random_trees, tiny_model


def rollout(policy: Policy) -> list[TokenTree]:
    """Groups of very different lengths; `old_logprobs` were computed one group at a time."""
    trees = random_trees(4, branches=3, mask_probability=0.8)
    return [_scored(policy, tree) for tree in trees]


@torch.no_grad()
def _scored(policy: Policy, tree: TokenTree) -> TokenTree:
    old_N = policy(collate([tree]), path="tree").logprobs_N.numpy()
    branches, taken = [], 0
    for branch in tree.branches:
        trained = int(branch.loss_mask.sum())
        columns = {name: np.full(len(branch.ids), np.nan, np.float32) for name in ("advantages", "old_logprobs")}
        columns["old_logprobs"][branch.loss_mask] = old_N[taken : taken + trained]
        columns["advantages"][branch.loss_mask] = 1.0
        taken += trained
        branches.append(Branch(branch.ids, branch.loss_mask, columns))
    return replace(tree, branches=tuple(branches))


@pytest.mark.parametrize("path", ["tree", "padded"])
@pytest.mark.parametrize("budget", [1, 10_000])
@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_t36(name: str, budget: int, path: str) -> None:
    policy = Policy(tiny_model())
    trees = rollout(policy)
    micro = pack(trees, budget)
    assert len(micro) == (4 if budget == 1 else 1)
    parts = []
    for members in micro:
        batch = collate(members)
        logprobs = policy(batch, path=path)
        ratio_N = (logprobs.logprobs_N - batch.columns_N["old_logprobs"]).exp()
        assert (ratio_N - 1).abs().max() < 1e-5
        parts.append(policy_loss(ONLINE[name], ONLINE[name].resolve({}), logprobs, batch, count(trees)))
    metrics = values(merge(part.metrics for part in parts))
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["clip_share_low"] == metrics["clip_share_high"] == 0.0
    assert sum(part.loss.item() for part in parts) == pytest.approx(-1.0, abs=1e-5)
