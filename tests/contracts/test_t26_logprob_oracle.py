"""T26: log-probs of random logits are at most 0 and those of fp64 log_softmax, in every variant (verl#2656).

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from posttrain.models.tree import projection
from posttrain.models.tree.projection import Head, gather_logprobs, target_logprobs

VOCABULARY, WIDTH, ROWS = 300, 300, 53
TOLERANCE = 1e-5

Variant = Callable[[Tensor, nn.Linear, Tensor], Tensor]
"""(hidden [N, D], head, targets [N]) -> log-probs [N]"""


def from_logits(hidden: Tensor, linear: nn.Linear, targets: Tensor) -> Tensor:
    """The padded path's: the logits exist."""
    return gather_logprobs(linear(hidden), targets, 1.0)[0]


def fused(hidden: Tensor, linear: nn.Linear, targets: Tensor) -> Tensor:
    """The tree path's: no logits are kept. With a frozen head the gradient is made in the forward pass."""
    return target_logprobs(hidden, Head(linear), targets)[0]


def through_a_module(hidden: Tensor, linear: nn.Linear, targets: Tensor) -> Tensor:
    """The tree path's under a head that is more than a matrix, such as one with an adapter."""
    wrapped = nn.Sequential(linear, nn.Identity())
    wrapped.weight = linear.weight
    return target_logprobs(hidden, Head(wrapped), targets)[0]


VARIANTS: dict[str, Variant] = {"from_logits": from_logits, "fused": fused, "through_a_module": through_a_module}


def exact(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(logits.double(), dim=-1).gather(1, targets[:, None])[:, 0]


def random_logits(spread: float) -> tuple[Tensor, nn.Linear, Tensor]:
    """Logits of a chosen spread: the head is the identity, so that they are the hidden states themselves."""
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(VOCABULARY))
    logits = spread * torch.randn(ROWS, WIDTH)
    logits[0, 7] = 40 * spread  # one row is certain of a token that is not its target, one of its target
    logits[1, 9] = 40 * spread
    targets = torch.randint(0, VOCABULARY, (ROWS,))
    targets[:2] = torch.tensor([8, 9])
    return logits.requires_grad_(), linear, targets


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("chunk_rows", [16, 1000])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, name: str, frozen: bool, chunk_rows: int, spread: float
) -> None:
    monkeypatch.setattr(projection, "BUFFER_ELEMENTS", chunk_rows * VOCABULARY)
    logits, linear, targets = random_logits(spread)
    linear.requires_grad_(not frozen)
    wanted = [logits, *(p for p in linear.parameters() if p.requires_grad)]
    weights = torch.linspace(-1.0, 2.0, ROWS)
    found = VARIANTS[name](logits, linear, targets)
    oracle = exact(linear(logits), targets)
    assert (found <= 0).all()
    torch.testing.assert_close(found.double(), oracle, atol=TOLERANCE, rtol=1e-6)
    ours = torch.autograd.grad((found * weights).sum(), wanted)
    theirs = torch.autograd.grad((oracle * weights.double()).sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=TOLERANCE * max(1.0, spread), rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_shift_of_all_logits_changes_nothing(name: str) -> None:
    """Logits of 1,000 overflow exp in fp32; log-probs know no common shift."""
    logits, linear, targets = random_logits(1.0)
    linear.bias = nn.Parameter(torch.full((VOCABULARY,), 1000.0))
    found = VARIANTS[name](logits, linear, targets)
    assert (found <= 0).all()
    torch.testing.assert_close(found.double(), exact(logits, targets), atol=1e-3, rtol=0)  # 1,000 has 6e-5 in fp32
