"""KL divergence between policy and reference: estimators from sampled tokens, and exact values.

Two directions exist and they are different objectives, so every name carries its own:

    reverse  KL(policy || reference) = E_policy[log policy - log reference]   mode-seeking; the one of RLHF
    forward  KL(reference || policy) = E_reference[log reference - log policy]   mass-covering

With `r = log policy(token) - log reference(token)` on tokens that the *policy* sampled, Schulman's estimators
(http://joschu.net/blog/kl-approx.html) all estimate the reverse KL's *value* (k2 with a bias). Their *gradients*
as a loss term, with the sample held fixed, are something else, and this is where public code goes wrong:

    estimator          value                       gradient, in expectation over the policy
    k1 = r             unbiased, high variance     zero: it penalises nothing
    k2 = r^2 / 2       biased, low variance        that of KL(policy || reference)
    k3 = e^-r - 1 + r  unbiased, low variance      that of KL(reference || policy), the other direction

`reverse_kl` therefore takes its value from k3 and its gradient from k2.
On tokens that the policy did not sample (a data set's answers) none of these estimates a KL; metrics of that kind
are named `..._on_data`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """r, per token [N]. Unbiased for KL(policy || reference); as a loss, its gradient is zero on average."""
    return logprobs_N - reference_N


def k2(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """r^2 / 2, per token [N]. As a loss, its gradient is that of KL(policy || reference)."""
    return (logprobs_N - reference_N).square() / 2


def k3(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """e^-r - 1 + r, per token [N], never negative. As a loss, its gradient is that of KL(*reference* || *policy*)."""
    log_ratio_N = logprobs_N - reference_N
    return torch.expm1(-log_ratio_N) + log_ratio_N


def reverse_kl(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """KL(policy || reference) per sampled token [N]: k3's value (unbiased), k2's gradient (the right direction).

    The tokens must have been sampled from the policy.
    """
    value_N = k3(logprobs_N, reference_N).detach()
    with_gradient_N = k2(logprobs_N, reference_N)
    return value_N + (with_gradient_N - with_gradient_N.detach())


def exact_reverse_kl(policy_V: Tensor, reference_V: Tensor) -> Tensor:
    """KL(policy || reference) from full log-probabilities [..., V] -> [...], in nats.

    A token that the policy excludes (log-prob -inf) adds nothing.
    """
    return _kl(policy_V, reference_V)


def exact_forward_kl(policy_V: Tensor, reference_V: Tensor) -> Tensor:
    """KL(reference || policy) from full log-probabilities [..., V] -> [...], in nats; the same argument order."""
    return _kl(reference_V, policy_V)


def _kl(weighting_V: Tensor, other_V: Tensor) -> Tensor:
    # 0 * (-inf) is NaN, and its gradient too; the limit of p log p is 0.
    log_ratio_V = (weighting_V - other_V).masked_fill(weighting_V == -torch.inf, 0.0)
    return (weighting_V.exp() * log_ratio_V).sum(-1)
