"""T40: GAE by hand, with a masked place whose value must not leak into the last token.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.advantages import gae


@pytest.mark.parametrize("beyond", [100.0, float("nan"), 1e9])
def test_t40(beyond: float) -> None:
    mask = torch.tensor([[True, True, False]])
    rewards, values = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, beyond]])
    found, returns = gae(rewards, values, mask, gamma=1.0, lam=0.95)
    torch.testing.assert_close(found, torch.tensor([[0.95, 1.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.95, 1.0, 0.0]]))
