"""KL: values by hand, directions, and the edges of the log-prob range. The gradients' directions: contract T45."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.losses.kl import exact_forward_kl, exact_reverse_kl, k1, k2, k3, reverse_kl


def test_estimators_by_hand() -> None:
    # r = log policy - log reference = -1.0 - (-1.5) = 0.5
    policy, reference = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert k1(policy, reference).item() == pytest.approx(0.5)
    assert k2(policy, reference).item() == pytest.approx(0.125)
    assert k3(policy, reference).item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)
    assert reverse_kl(policy, reference).item() == pytest.approx(math.exp(-0.5) - 1 + 0.5)


def test_exact_values_by_hand_in_both_directions() -> None:
    policy, reference = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    # 0.5 ln(0.5/0.9) + 0.5 ln(0.5/0.1) = 0.510826; 0.9 ln(0.9/0.5) + 0.1 ln(0.1/0.5) = 0.368064
    assert exact_reverse_kl(policy, reference).item() == pytest.approx(0.510826, abs=1e-6)
    assert exact_forward_kl(policy, reference).item() == pytest.approx(0.368064, abs=1e-6)


def test_value_estimators_average_to_the_exact_reverse_kl() -> None:
    policy, reference = torch.randn(7).double().log_softmax(0), torch.randn(7).double().log_softmax(0)
    exact = exact_reverse_kl(policy, reference)
    for estimator in (k1, k3, reverse_kl):
        assert (policy.exp() * estimator(policy, reference)).sum().item() == pytest.approx(exact.item())
    assert (policy.exp() * k2(policy, reference)).sum().item() != pytest.approx(exact.item(), rel=1e-2)


def test_k3_is_never_negative_and_keeps_its_digits_near_zero() -> None:
    values = k3(torch.tensor([0.0, 0.0, -1e-4]), torch.tensor([-1e-4, 0.0, 0.0]))
    # r^2 / 2 = 5e-9 for r = +-1e-4; as exp(-r) - 1 + r it would be lost in fp32, whose steps near 1 are 6e-8
    assert values.tolist() == pytest.approx([5e-9, 0.0, 5e-9], rel=0.01, abs=1e-12)
    assert (values >= 0).all()


def test_exact_kl_takes_excluded_tokens_without_nan() -> None:
    logits = torch.tensor([0.3, -0.7, -torch.inf], requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3]).log()
    value = exact_reverse_kl(logits.log_softmax(0), reference)
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert exact_forward_kl(logits.detach().log_softmax(0), reference).item() == math.inf


def test_exact_kl_keeps_leading_dimensions() -> None:
    a, b = torch.randn(2, 3, 5).log_softmax(-1), torch.randn(2, 3, 5).log_softmax(-1)
    assert exact_reverse_kl(a, b).shape == (2, 3)
    assert torch.equal(exact_forward_kl(a, b), exact_reverse_kl(b, a))
