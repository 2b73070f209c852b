"""T42: a group of equal rewards has no advantage; in fp32, (r - mean) / std of seven times 0.3 is about 0.93.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.advantages import GROUP_RULES, Rollout, advantages, group_advantages

KINDS = [kind for kind in GROUP_RULES if kind != "maxrl"]
"""maxrl takes 0 and 1 only."""


@pytest.mark.parametrize("reward", [0.3, 0.1, 1e-3, 1e4, -0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_t42(kind: str, reward: float) -> None:
    rewards_B = torch.tensor([reward] * 7, dtype=torch.float32)
    found = group_advantages(kind, rewards_B, torch.zeros(7, dtype=torch.long))
    assert found.values_B.abs().max() < 1e-3
    assert found.zero_signal_G.tolist() == [True]


def test_t42_rewards_that_differ_by_rounding_alone() -> None:
    rewards_B = torch.tensor([0.3, 0.1 + 0.2, 0.9 / 3], dtype=torch.float64)
    assert rewards_B.unique().numel() > 1
    found = group_advantages("group_std", rewards_B, torch.zeros(3, dtype=torch.long))
    assert found.values_B.tolist() == [0.0] * 3 and bool(found.zero_signal_G)


def test_t42_maxrl() -> None:
    for rewards in ([1.0] * 7, [0.0] * 7):
        found = group_advantages("maxrl", torch.tensor(rewards), torch.zeros(7, dtype=torch.long))
        assert found.values_B.tolist() == [0.0] * 7 and bool(found.zero_signal_G)


def test_t42_a_whole_batch_of_equal_rewards_is_not_whitened_into_noise() -> None:
    rollout = Rollout(torch.full((7,), 0.3), torch.arange(7), torch.ones(7, 5, dtype=torch.bool))
    found = advantages("batch_whiten", rollout)
    assert found.values_BL.abs().max() < 1e-3


def test_t42_a_group_that_differs_is_a_signal() -> None:
    found = group_advantages("group_std", torch.tensor([0.3] * 6 + [0.31]), torch.zeros(7, dtype=torch.long))
    assert found.zero_signal_G.tolist() == [False] and found.values_B[-1] > 2
