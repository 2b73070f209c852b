"""T45: which KL a term's gradient belongs to; the one named reverse KL has both its value and its gradient.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from posttrain.losses.kl import exact_forward_kl, exact_reverse_kl, k1, k2, k3, reverse_kl

LOGITS = [0.3, -0.7, 1.1]
REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()

OF_REVERSE_KL = [-0.013405, -0.201113, 0.214518]
OF_FORWARD_KL = [0.078286, -0.397624, 0.319338]


def _value_and_gradient(loss: Callable[[Tensor], Tensor]) -> tuple[float, list[float]]:
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    value = loss(logits.log_softmax(0))
    return value.item(), torch.autograd.grad(value, logits)[0].tolist()


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [(k1, [0.0, 0.0, 0.0]), (k2, OF_REVERSE_KL), (k3, OF_FORWARD_KL), (reverse_kl, OF_REVERSE_KL)],
    ids=["k1", "k2", "k3", "reverse_kl"],
)
def test_t45_expected_gradient(estimator: Callable[[Tensor, Tensor], Tensor], expected: list[float]) -> None:
    """Actions drawn from the policy: each action's term, weighted by its probability, which carries no gradient."""
    _, gradient = _value_and_gradient(lambda policy: (policy.exp().detach() * estimator(policy, REFERENCE)).sum())
    assert gradient == pytest.approx(expected, abs=1e-6)


def test_t45_exact_gradients() -> None:
    value, gradient = _value_and_gradient(lambda policy: exact_reverse_kl(policy, REFERENCE))
    assert value == pytest.approx(0.378502, abs=1e-6)
    assert gradient == pytest.approx(OF_REVERSE_KL, abs=1e-6)
    _, gradient = _value_and_gradient(lambda policy: exact_forward_kl(policy, REFERENCE))
    assert gradient == pytest.approx(OF_FORWARD_KL, abs=1e-6)


def test_t45_the_term_named_reverse_kl_has_the_value_too() -> None:
    value, _ = _value_and_gradient(lambda policy: (policy.exp().detach() * reverse_kl(policy, REFERENCE)).sum())
    assert value == pytest.approx(0.378502, abs=1e-6)
