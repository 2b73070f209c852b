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

`reverse_kl` therefore takes its value from k3 and its gradient from k2. Both hold while the policy is the one that
sampled. After the first update of a rollout it is not, and `corrected_k3` weighs k3 by the ratio π/π_old: its
expectation over what the old policy samples is the reverse KL, so value and gradient are both right, for any policy
(DeepSeek-V3.2, arXiv:2512.02556, "unbiased KL estimate").
On tokens that the policy did not sample (a data set's answers) none of these estimates a KL; metrics of that kind
are named `..._on_data`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from posttrain.errors import ConfigError
from posttrain.lazy_torch import torch

if TYPE_CHECKING:
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
    # expm1: almost all tokens have r near 0, where e^-r - 1 loses its digits and k3 could come out negative.
    return torch.expm1(-log_ratio_N) + log_ratio_N


def reverse_kl(logprobs_N: Tensor, reference_N: Tensor) -> Tensor:
    """KL(policy || reference) per sampled token [N]: k3's value (unbiased), k2's gradient (the right direction).

    The tokens must have been sampled from the policy.
    """
    value_N = k3(logprobs_N, reference_N).detach()
    with_gradient_N = k2(logprobs_N, reference_N)
    return value_N + (with_gradient_N - with_gradient_N.detach())


def corrected_k3(logprobs_N: Tensor, reference_N: Tensor, ratio_N: Tensor) -> Tensor:
    """(π/π_old) k3 per token [N] that the old policy sampled: the reverse KL's value and gradient, in expectation.

    ratio_N: π/π_old with its gradient. Without it, as `k3`, the gradient would be that of the forward KL.
    """
    return ratio_N * k3(logprobs_N, reference_N)


@dataclass(frozen=True, slots=True)
class KLTerm:
    """A KL penalty in a loss: what it is worth, and what its gradient is the gradient of."""

    of: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(log π, log π_ref, π/π_old) -> penalty, all [N]"""
    formula: str
    gradient_of: str
    needs_ratio: bool = False


KL_TERMS: Mapping[str, KLTerm] = MappingProxyType(
    {
        "k1": KLTerm(lambda policy_N, reference_N, _: k1(policy_N, reference_N), "r", "nothing: zero on average"),
        "k2": KLTerm(lambda policy_N, reference_N, _: k2(policy_N, reference_N), "r²/2", "KL(π ‖ π_ref)"),
        "k3": KLTerm(lambda policy_N, reference_N, _: k3(policy_N, reference_N), "e⁻ʳ - 1 + r", "KL(π_ref ‖ π)"),
        "reverse": KLTerm(
            lambda policy_N, reference_N, _: reverse_kl(policy_N, reference_N),
            "value of k3, gradient of k2",
            "KL(π ‖ π_ref)",
        ),
        "k3_corrected": KLTerm(corrected_k3, "(π/π_old) (e⁻ʳ - 1 + r)", "KL(π ‖ π_ref)", needs_ratio=True),
    }
)
"""Penalties per token that the policy sampled, r = log π - log π_ref. In a reward only the value counts; k1 fits."""


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


def generalised_jsd(policy_V: Tensor, teacher_V: Tensor, mixture: float) -> Tensor:
    """JSD_b = b KL(teacher || m) + (1 - b) KL(policy || m) with m = b teacher + (1 - b) policy, [..., V] -> [...].

    Its ends are the limits of JSD_b / b and JSD_b / (1 - b), as is usual, since JSD itself vanishes there: 0 is
    KL(teacher || policy), mass-covering; 1 is KL(policy || teacher), mode-seeking. Agarwal et al. 2023 (GKD),
    arXiv:2306.13649, Sec. 2 (their P is the teacher, their beta `mixture`).
    """
    if mixture == 0:
        return exact_forward_kl(policy_V, teacher_V)
    if mixture == 1:
        return exact_reverse_kl(policy_V, teacher_V)
    # Of a token that both exclude, logaddexp(-inf, -inf) would have the gradient NaN; e^-10000 is 0 as well.
    own_V, other_V = policy_V.clamp(min=-1e4), teacher_V.clamp(min=-1e4)
    between_V = torch.logaddexp(other_V + math.log(mixture), own_V + math.log1p(-mixture))
    return mixture * _kl(teacher_V, between_V) + (1 - mixture) * _kl(policy_V, between_V)


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """A penalty's weight that follows the KL it causes: AdaptiveKL(beta=0.1, target=6.0).updated(12.0).beta is 0.102.

    e = clip(KL / target - 1, -0.2, 0.2), beta <- beta (1 + gain e). Ziegler et al. 2019, arXiv:1909.08593, Sec. 2.2
    (K_beta is `gain`, 0.1 there, one update per step).
    """

    beta: float
    target: float
    """Nats per response, as the KL that is passed: a sum over the response's tokens."""
    gain: float = 0.1

    def __post_init__(self) -> None:
        if not (self.target > 0 and self.beta > 0 and self.gain >= 0):
            raise ConfigError(
                "an adaptive KL cannot start or end at 0",
                where="kl",
                found=f"beta {self.beta:g}, target {self.target:g}, gain {self.gain:g}",
                expected="beta and target above 0",
                remedy="give both a positive value, or fix beta",
            )

    def updated(self, measured: float) -> AdaptiveKL:
        """The controller after a step whose KL was `measured`, in the unit of `target`. A NaN changes nothing."""
        if math.isnan(measured):
            return self
        # Clipped as published: one wild estimate changes beta by a fifth of `gain`, 2 % by default, and no more.
        error = min(max(measured / self.target - 1, -0.2), 0.2)
        return replace(self, beta=self.beta * (1 + self.gain * error))


class KLWeight:
    """The weight of a KL penalty as it is now; an adaptive one moves it. The loss and the rewards read it from here.

    KLWeight(0.04); KLWeight(0.1, AdaptiveKL(beta=0.1, target=6.0))
    """

    def __init__(self, beta: float, adaptive: AdaptiveKL | None = None):
        self.beta = beta
        self._adaptive = adaptive

    def update(self, measured: float) -> None:
        if self._adaptive is not None:
            self._adaptive = self._adaptive.updated(measured)
            self.beta = self._adaptive.beta

    def load(self, beta: float) -> None:
        self.beta = beta
        if self._adaptive is not None:
            self._adaptive = AdaptiveKL(beta, self._adaptive.target, self._adaptive.gain)
