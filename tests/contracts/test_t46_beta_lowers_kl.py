"""T46: a bandit with one good arm ends nearer to its reference under a larger beta, wherever the KL stands.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from posttrain.advantages import Rollout, advantages
from posttrain.data.trees import collate
from posttrain.losses.kl import exact_reverse_kl
from posttrain.losses.online import ONLINE, OnlineRow, variant
from posttrain.losses.policy import policy_loss
from posttrain.outputs import TokenLogprobs
from tests.online_batches import group

ARMS, PULLS, STEPS = 4, 32, 120
ROWS = {
    **{f"grpo_{kl}": variant(ONLINE["grpo"], kl=kl) for kl in ("k2", "k3", "reverse", "k3_corrected")},
    **{name: ONLINE[name] for name in ("rloo", "reinforce_pp", "reinforce_pp_baseline")},
}


def final_kl(row: OnlineRow, beta: float) -> float:
    """Arm 0 pays 1. One group of pulls is one prompt's group of responses of one token."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(ARMS, requires_grad=True)
    reference_V = torch.zeros(ARMS).log_softmax(0)
    optimizer = torch.optim.SGD([logits], lr=0.3)
    for _ in range(STEPS):
        policy_V = logits.log_softmax(0)
        arms_B = torch.multinomial(policy_V.detach().exp(), PULLS, replacement=True, generator=generator)
        old_B, reference_B = policy_V.detach()[arms_B], reference_V[arms_B]
        loss = _loss(row, beta, policy_V[arms_B], old_B, reference_B, (arms_B == 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return exact_reverse_kl(logits.detach().log_softmax(0), reference_V).item()


def _loss(
    row: OnlineRow, beta: float, logprob_B: Tensor, old_B: Tensor, reference_B: Tensor, reward_B: Tensor
) -> Tensor:
    kl_BL = (old_B - reference_B)[:, None] if row.kl_place == "reward" else None
    mask_BL = torch.ones(PULLS, 1, dtype=torch.bool)
    rollout = Rollout(reward_B, torch.zeros(PULLS, dtype=torch.long), mask_BL, kl_BL)
    found = advantages(row.advantage, rollout, kl_beta=beta).values_BL[:, 0]
    columns = zip(found.tolist(), old_B.tolist(), reference_B.tolist(), strict=True)
    names = ("advantages", "old_logprobs", "reference_logprobs")
    batch = collate([group([{name: [value] for name, value in zip(names, each, strict=True)} for each in columns])])
    return policy_loss(row, row.resolve({"kl_beta": beta}), TokenLogprobs(logprob_B), batch, batch.count).loss


@pytest.mark.parametrize("name", ROWS)
def test_t46(name: str) -> None:
    free, held = final_kl(ROWS[name], 0.01), final_kl(ROWS[name], 1.0)
    assert held < 0.7 * free, (free, held)
    assert free > 0.3


def test_t46_k1_in_the_loss_holds_nothing() -> None:
    """The reason why a penalty's kind is named: its gradient is zero on average, so beta = 1 is like 0.01."""
    row = variant(ONLINE["grpo"], kl="k1")
    assert final_kl(row, 1.0) > 0.7 * final_kl(row, 0.01)
