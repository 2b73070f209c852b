"""The columns of the online table: how far a token has moved, what it is worth, and over what the loss is a mean.

    ratio      π / π_old of a token or of a response
    surrogate  ratio and advantage to a loss per token
    reduction  losses per token to the step's loss

What makes up for another policy that sampled has columns of its own, in `corrections.py`.
Everything is a small function on flat tensors [N], the trained tokens of a batch; a flat batch has no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from posttrain.lazy_torch import torch
from posttrain.losses.reduce import branch_sums, branch_tokens, mean_or_zero
from posttrain.types import Batch, Count

if TYPE_CHECKING:
    from torch import Tensor

Parameters = Mapping[str, float]
LARGEST_LOG_RATIO = 20.0
"""Where a log-ratio is cut before e^x: e^20 is 5e8, beyond every clip, and fp32 can still square it."""

# ---------------------------------------------------------------- ratio


def bounded(log_ratio_N: Tensor) -> Tensor:
    # Uncut, one ratio of inf times an advantage of 0 is NaN, and with it the whole step.
    return log_ratio_N.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def _token_ratio(log_ratio_N: Tensor, batch: Batch) -> Tensor:
    return bounded(log_ratio_N).exp()


def _sequence_ratio(log_ratio_N: Tensor, batch: Batch) -> Tensor:
    """The geometric mean of the response's token ratios, the same at each of its tokens."""
    # The mean is cut, not each token: a cut token would shift the mean of its whole response.
    return bounded(_branch_mean(log_ratio_N, batch)).exp()


def _sequence_token_ratio(log_ratio_N: Tensor, batch: Batch) -> Tensor:
    """The value of the sequence's ratio, and each token's own gradient."""
    value_N = _sequence_ratio(log_ratio_N.detach(), batch)
    # The second factor is exactly 1 and there for its gradient alone, so it needs no cut.
    return value_N * (log_ratio_N - log_ratio_N.detach()).exp()


def _no_ratio(log_ratio_N: Tensor, batch: Batch) -> Tensor:
    return torch.ones_like(log_ratio_N)


def _branch_mean(values_N: Tensor, batch: Batch) -> Tensor:
    mean_B = mean_or_zero(branch_sums(values_N, batch), branch_tokens(batch, values_N))
    return mean_B[batch.branch_N.to(values_N.device)]


@dataclass(frozen=True, slots=True)
class Ratio:
    of: Callable[[Tensor, Batch], Tensor]
    """(log π - log π_old [N], batch) -> ratio [N]"""
    formula: str
    moves: bool = True
    """Whether it moves with π, so that a surrogate of the ratio has a gradient."""


RATIOS: Mapping[str, Ratio] = MappingProxyType(
    {
        "token": Ratio(_token_ratio, "π(t) / π_old(t)"),
        "sequence": Ratio(_sequence_ratio, "(Π_t π(t) / π_old(t))^(1/|y|)"),
        "sequence_token": Ratio(_sequence_token_ratio, "sg[(Π π / π_old)^(1/|y|)] · π(t) / sg[π(t)]"),
        "none": Ratio(_no_ratio, "1: the policy that trains is the one that sampled", moves=False),
    }
)

# ---------------------------------------------------------------- surrogate


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """A loss per token [N] and, where the surrogate clips, at which tokens it does so for being too low or too high."""

    loss_N: Tensor
    low_N: Tensor | None = None
    high_N: Tensor | None = None


def _clipped(ratio_N: Tensor, advantage_N: Tensor, logprob_N: Tensor, parameters: Parameters) -> TokenLoss:
    """-min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A): a token that went far enough the right way gets no more gradient."""
    lowest, highest = 1 - parameters["clip_low"], 1 + parameters["clip_high"]
    gain_N = torch.minimum(ratio_N * advantage_N, ratio_N.clamp(lowest, highest) * advantage_N)
    # Only where the minimum takes the clipped side is the gradient gone: a ratio beyond a bound whose advantage pulls
    # it back still trains, and counting it would overstate the clip share.
    return TokenLoss(-gain_N, (ratio_N < lowest) & (advantage_N < 0), (ratio_N > highest) & (advantage_N > 0))


def _dual_clipped(ratio_N: Tensor, advantage_N: Tensor, logprob_N: Tensor, parameters: Parameters) -> TokenLoss:
    """As `_clipped`, and for A < 0 no loss beyond -c A: a bad token that became likely pulls no harder than c times."""
    inner = _clipped(ratio_N, advantage_N, logprob_N, parameters)
    assert inner.high_N is not None
    # For A < 0 the minimum bounds nothing from above, as ρ may be anything: Ye et al. 2019, arXiv:1912.09729.
    bad_N, most_N = advantage_N < 0, -parameters["dual_clip"] * advantage_N
    beyond_N = bad_N & (ratio_N > parameters["dual_clip"])
    return TokenLoss(torch.where(beyond_N, most_N, inner.loss_N), inner.low_N, inner.high_N | beyond_N)


def _weighted(ratio_N: Tensor, advantage_N: Tensor, logprob_N: Tensor, parameters: Parameters) -> TokenLoss:
    """-sg[clip(ρ, 1 - ε_low, 1 + ε_high)] A log π: the weight is clipped, and no token loses its gradient."""
    lowest, highest = 1 - parameters["clip_low"], 1 + parameters["clip_high"]
    weight_N = ratio_N.detach().clamp(lowest, highest)
    # Counted whatever the sign of A: here a bound changes the weight of a token and silences none.
    return TokenLoss(-weight_N * advantage_N * logprob_N, ratio_N < lowest, ratio_N > highest)


def _reinforce(ratio_N: Tensor, advantage_N: Tensor, logprob_N: Tensor, parameters: Parameters) -> TokenLoss:
    """-sg[ρ] A log π: the policy gradient, with the importance weight as it is."""
    return TokenLoss(-ratio_N.detach() * advantage_N * logprob_N)


def _soft_gate(ratio_N: Tensor, advantage_N: Tensor, logprob_N: Tensor, parameters: Parameters) -> TokenLoss:
    """-4/τ σ(τ (ρ - 1)) A, τ by the sign of A: at ρ = 1 the gradient of ρ A, fading smoothly on either side."""
    good, bad = (ratio_N.new_tensor(parameters[name]) for name in ("gate_positive", "gate_negative"))
    # 4/τ makes the slope at ρ = 1 that of ρ A, for any τ: σ'(0) is 1/4. Without it τ would rescale the learning rate.
    tau_N = torch.where(advantage_N > 0, good, bad)
    return TokenLoss(-4 / tau_N * torch.sigmoid(tau_N * (ratio_N - 1)) * advantage_N)


@dataclass(frozen=True, slots=True)
class Surrogate:
    of: Callable[[Tensor, Tensor, Tensor, Parameters], TokenLoss]
    """(ratio, advantage, log π, parameters) -> losses, all [N]"""
    formula: str
    defaults: Parameters = field(default_factory=dict)
    """Its parameters, all of them; a row may have others."""
    by_ratio: bool = True
    """Whether its gradient comes through the ratio, of which there must then be one that moves; else through log π."""


SURROGATES: Mapping[str, Surrogate] = MappingProxyType(
    {
        "clip": Surrogate(_clipped, "min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A)", {"clip_low": 0.2, "clip_high": 0.2}),
        "dual_clip": Surrogate(
            _dual_clipped,
            "A < 0: max(min(ρ A, clip(ρ) A), c A); else min(ρ A, clip(ρ) A)",
            {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0},
        ),
        "clipped_weight": Surrogate(
            _weighted,
            "sg[clip(ρ, 1 - ε_low, 1 + ε_high)] A log π",
            {"clip_low": 1.0, "clip_high": 4.0},
            by_ratio=False,
        ),
        "reinforce": Surrogate(_reinforce, "sg[ρ] A log π", by_ratio=False),
        "soft_gate": Surrogate(_soft_gate, "4/τ σ(τ (ρ - 1)) A", {"gate_positive": 1.0, "gate_negative": 1.05}),
    }
)

# ---------------------------------------------------------------- reduction


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is added up, and what the step's sum is divided by."""

    total: Callable[[Tensor, Batch, Parameters], Tensor]
    """(values [N], batch, parameters) -> the batch's share of the sum"""
    unit: Callable[[Count], int]
    formula: str
    defaults: Parameters = field(default_factory=dict)


def _sum(values_N: Tensor, batch: Batch, parameters: Parameters) -> Tensor:
    return values_N.sum()


def _sum_of_means(values_N: Tensor, batch: Batch, parameters: Parameters) -> Tensor:
    # A token of a long response weighs less than one of a short one: the length bias that Dr. GRPO removes.
    return mean_or_zero(branch_sums(values_N, batch), branch_tokens(batch, values_N)).sum()


def _sum_over_length(values_N: Tensor, batch: Batch, parameters: Parameters) -> Tensor:
    # The same divisor for all: no response gets cheaper by growing longer.
    return values_N.sum() / parameters["constant_length"]


def _tokens(count: Count) -> int:
    return count.tokens


def _responses(count: Count) -> int:
    return count.branches


REDUCTIONS: Mapping[str, Reduction] = MappingProxyType(
    {
        "token_mean": Reduction(_sum, _tokens, "Σ_i Σ_t / Σ_i |y_i|"),
        "sequence_mean": Reduction(_sum_of_means, _responses, "1/G Σ_i 1/|y_i| Σ_t"),
        "constant_length": Reduction(_sum_over_length, _responses, "1/G Σ_i 1/L Σ_t", {"constant_length": 3000.0}),
        "sequence_sum": Reduction(_sum, _responses, "1/G Σ_i Σ_t"),
    }
)
