"""T50, the losses' side: where the policy equals its reference, DPO's loss is ln 2 and its margin 0."""

from __future__ import annotations

import math

import pytest
import torch

from tests.loss_batches import batch_of, random_pairs, run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_t50(dtype: torch.dtype, beta: float) -> None:
    batch, policy_N, _ = random_pairs(16)
    out = run("dpo", policy_N.to(dtype), policy_N.to(dtype), batch, beta=beta)
    assert out.loss.item() == pytest.approx(0.693147, abs=1e-6)
    assert out.metrics["reward_margin"].value == 0.0
    assert out.metrics["reward_accuracy"].value == 0.5, "ties count half"
    assert out.metrics["logprob_chosen_change"].value == 0.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cdpo", math.log(2)),
        ("robust", math.log(2)),
        ("dpo_norm", math.log(2)),
        ("dpop", math.log(2)),
        ("hinge", 1.0),
        ("ipo", 25.0),  # (0 - 1 / 0.2)^2
        ("ipo_sum", 25.0),
    ],
)
def test_t50_every_row_against_a_reference_has_its_own_identity(name: str, expected: float) -> None:
    batch, policy_N, _ = random_pairs(16)
    assert run(name, policy_N, policy_N, batch).loss.item() == pytest.approx(expected, abs=1e-6)


def test_t50_rounding_between_two_forward_passes_does_not_show_in_long_responses() -> None:
    """A reference from other batch shapes differs by about 1e-6 per token."""
    generator = torch.Generator().manual_seed(0)
    batch = batch_of([(1500, 900)] * 2)
    policy_N = -3 * torch.rand(batch.count.tokens, generator=generator)
    reference_N = policy_N + 1e-6 * torch.randn(batch.count.tokens, generator=generator)
    assert run("dpo", policy_N, reference_N, batch).loss.item() == pytest.approx(0.693147, abs=1e-5)
