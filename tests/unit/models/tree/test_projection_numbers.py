"""Figures of the projection keep their digits: an offset that all logits share cancels in none of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from posttrain.models.tree import projection
from posttrain.models.tree.projection import Head, collision_of, gather_logprobs, log_collisions, target_logprobs


def shifted_head(offset: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Head]:
    """Logits of some spread over 211 tokens, all moved by `offset` through the bias."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(6, 16, generator=generator).to(dtype)
    linear = nn.Linear(16, 211, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(211, 16, generator=generator) * 0.5)
        linear.bias.fill_(offset)
    return hidden_ND, Head(linear)


@pytest.mark.parametrize(("offset", "allowed"), [(0.0, 2e-6), (100.0, 1e-5), (-100.0, 1e-5), (1000.0, 1e-4)])
def test_entropy_keeps_its_digits_under_an_offset(offset: float, allowed: float) -> None:
    """The logits themselves are rounded to 4e-6 at 100 and 3e-5 at 1,000; the entropy may lose no more."""
    targets_N = torch.arange(6)
    hidden_ND, head = shifted_head(offset)
    _, found = target_logprobs(hidden_ND, head, targets_N, entropy=True)
    wide_ND, wide_head = hidden_ND.double(), Head(shifted_head(0.0, torch.float64)[1].linear)
    with torch.no_grad():
        wide_head.linear.weight.copy_(head.linear.weight.double())
        _, expected = gather_logprobs(wide_head.linear(wide_ND), targets_N, 1.0)
    assert found is not None
    torch.testing.assert_close(found.double(), expected, atol=allowed, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1000.0])
def test_collisions_keep_their_digits_under_an_offset(offset: float) -> None:
    hidden_ND, head = shifted_head(offset)
    rounded = head.linear(hidden_ND).double()
    expected = collision_of(rounded, 1.0)
    torch.testing.assert_close(log_collisions(hidden_ND, head).double(), expected, atol=3e-6 + offset * 3e-7, rtol=0)
    torch.testing.assert_close(collision_of(rounded.float(), 1.0).double(), expected, atol=3e-6, rtol=0)


def test_log_probs_are_the_same_with_and_without_entropy() -> None:
    """A ratio of 1 is exactly 1, whether or not one of its two calls was asked for more."""
    hidden_ND, head = shifted_head(100.0)
    alone, _ = target_logprobs(hidden_ND, head, torch.arange(6))
    beside, _ = target_logprobs(hidden_ND, head, torch.arange(6), entropy=True)
    assert torch.equal(alone, beside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_chunks_of_a_16_bit_heads_gradient_add_up_in_fp32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 rows in 256 chunks: summed in 16 bits, the last chunks fall below the sum's last digit."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = (torch.randn(4096, 8, generator=generator).abs() * 0.1).to(dtype)
    head = nn.Linear(8, 32, bias=True, dtype=dtype)
    targets_N = torch.zeros(4096, dtype=torch.long)
    monkeypatch.setattr(projection, "BUFFER_ELEMENTS", 32)
    target_logprobs(hidden_ND, Head(head), targets_N)[0].sum().backward()
    wide = nn.Linear(8, 32, bias=True)
    with torch.no_grad():
        wide.weight.copy_(head.weight.float())
        wide.bias.copy_(head.bias.float())
    wide(hidden_ND.float()).log_softmax(dim=-1)[:, 0].sum().backward()
    for found, expected in ((head.weight.grad, wide.weight.grad), (head.bias.grad, wide.bias.grad)):
        assert found is not None and expected is not None
        assert float((found.float() - expected).norm() / expected.norm()) < 2 * torch.finfo(dtype).eps
