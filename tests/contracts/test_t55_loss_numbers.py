"""T55: margin 6 and beta 0.1, on every device and precision at hand.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from tests.loss_batches import batch_of, gradient, run

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "loss", "slope"),
    [
        ("dpo", 0.437488, -0.035434),
        ("dpo_pl", 0.437488, -0.035434),
        ("hinge", 0.4, -0.1),
        ("ipo_sum", 1.0, 2.0),
        ("ipo", 1.0, 2.0),
        # q = sigmoid(0.6) = 0.645656: q ln(q / 0.999) + (1 - q) ln((1 - q) / 0.001); 0.1 q (1 - q) times the difference
        ("exo_pair", 1.798271, -0.144289),
        # aot: the pair is matched with itself, so it is dpo
        ("aot", 0.437488, -0.035434),
        ("aot_unpaired", 0.437488, -0.035434),
    ],
)
def test_t55(name: str, loss: float, slope: float, dtype: torch.dtype, device: str) -> None:
    """One token a side, so that sum and mean agree: chosen log-ratio +4, rejected -2, h = 6."""
    batch = batch_of([(1, 1)])
    policy_N = torch.tensor([-1.0, -7.0], dtype=dtype, device=device, requires_grad=True)
    reference_N = torch.tensor([-5.0, -5.0], dtype=dtype, device=device)
    out = run(name, policy_N, reference_N, batch, beta=0.1)
    assert out.loss.item() == pytest.approx(loss, abs=1e-6)
    # d loss / dh; the chosen log-prob enters h with +1, the rejected one with -1
    assert gradient(out.loss, policy_N).tolist() == pytest.approx([slope, -slope], abs=1e-6)
