"""T54, the losses' side: SimPO, IPO and ORPO divide by lengths and stay finite for a side that was cut to nothing.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.losses.pairwise import PAIRWISE
from tests.loss_batches import batch_of, gradient, run


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("lengths", [(4, 3), (0, 3), (4, 0), (0, 0), (1, 1)])
def test_t54(name: str, lengths: tuple[int, int]) -> None:
    batch = batch_of([lengths], [1.0])
    policy_N = torch.full((batch.count.tokens,), -0.5, requires_grad=True)
    reference_N = torch.full((batch.count.tokens,), -0.7)
    out = run(name, policy_N, reference_N, batch)
    assert math.isfinite(out.loss.item())
    assert gradient(out.loss, policy_N).isfinite().all()
    assert not any(values.isnan().any() for values in out.per_tree.values())


def test_t54_an_empty_side_has_score_zero() -> None:
    batch = batch_of([(0, 2)])
    per_tree = run("orpo", torch.tensor([-1.0, -1.0]), None, batch).per_tree
    assert per_tree["rewards_chosen"].tolist() == [0.0]
    assert per_tree["logprob_chosen"].tolist() == [0.0]
    assert per_tree["tokens_chosen"].tolist() == [0.0]
