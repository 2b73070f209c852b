"""T33, the loss's side: with truncated rows dropped, loss and denominator are those of the finished row alone.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.data.tree_key import keep_branches
from posttrain.data.trees import collate, count
from posttrain.losses.online import ONLINE
from tests.online_batches import group, run

FINISHED = {
    "advantages": [1.0, 1.0, 1.0],
    "old_logprobs": [-1.0, -0.5, -0.2],
    "reference_logprobs": [-1.1, -0.5, -0.3],
    "sampler_logprobs": [-1.0, -0.5, -0.2],
}
CUT = {name: [2.0 * value for value in values] * 3 for name, values in FINISHED.items()}
LOGPROBS = torch.tensor([-0.9, -0.7, -0.2], dtype=torch.float64)


@pytest.mark.parametrize("name", ONLINE)
def test_t33(name: str) -> None:
    kept = keep_branches(group([FINISHED, CUT]), [True, False])
    assert kept is not None
    alone = group([FINISHED])
    assert count([kept]) == count([alone])
    gradients = []
    for tree in (kept, alone):
        leaf = LOGPROBS.clone().requires_grad_()
        out = run(name, leaf, collate([tree]), count([tree]))
        gradients.append((out.loss.item(), torch.autograd.grad(out.loss, leaf)[0].tolist()))
    assert gradients[0] == gradients[1]


def test_t33_a_group_of_cut_answers_leaves_the_step() -> None:
    assert keep_branches(group([CUT, CUT]), [False, False]) is None
