"""Scores: what the policy, and its reference, say about one response, as one number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.lazy_torch import F, torch
from posttrain.losses.reduce import branch_sums, mean_or_zero
from posttrain.losses.responses import Parameters, Responses

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_EXPONENT = 30.0
"""Where e^x goes on as a straight line: e^30 is 1e13, and no loss needs more of it."""


@dataclass(frozen=True, slots=True)
class Score:
    of: Callable[[Responses, Parameters], Tensor]
    """One number per branch, [B]."""
    formula: str
    needs_reference: bool


def _log_ratio_sum(responses: Responses, parameters: Parameters) -> Tensor:
    return responses.against_reference()


def _log_ratio_mean(responses: Responses, parameters: Parameters) -> Tensor:
    return mean_or_zero(responses.against_reference(), responses.tokens_B)


def _logprob_sum(responses: Responses, parameters: Parameters) -> Tensor:
    return responses.logprob_B


def _logprob_mean(responses: Responses, parameters: Parameters) -> Tensor:
    return mean_or_zero(responses.logprob_B, responses.tokens_B)


def _log_odds_of_mean(responses: Responses, parameters: Parameters) -> Tensor:
    """log(p / (1 - p)) with log p the per-token mean (ORPO Eq. 3 and 4): a whole sequence's p is 0 in fp32."""
    mean_B = mean_or_zero(responses.logprob_B, responses.tokens_B)
    # log(1 - p) by expm1: 1 - exp(x) cancels to 0 for x near 0. At p = 1 itself the odds are infinite.
    mean_B = mean_B.clamp(max=-torch.finfo(mean_B.dtype).eps)
    log_odds_B = mean_B - torch.log(-torch.expm1(mean_B))
    # A branch without tokens has p = 1 by its mean of 0, and would have the highest odds of all.
    return torch.where(responses.tokens_B > 0, log_odds_B, torch.zeros_like(log_odds_B))


def _power_of_mean(responses: Responses, parameters: Parameters) -> Tensor:
    """(1 - p^-alpha) / alpha with log p the per-token mean; alpha -> 0 is log p itself."""
    mean_B = mean_or_zero(responses.logprob_B, responses.tokens_B)
    alpha = parameters["alpha"]
    # The limit; the formula would be 0 / 0.
    return mean_B if alpha == 0 else -_bounded_expm1(-alpha * mean_B) / alpha


def _length_desensitised(responses: Responses, parameters: Parameters) -> Tensor:
    """Tokens beyond the length of the tree's shortest response count `tail_weight` each."""
    tokens_B, tree_B = responses.tokens_B, responses.batch.tree_B.to(responses.tokens_B.device)
    shortest_P = tokens_B.new_full((responses.batch.num_trees,), math.inf)
    shortest_P = shortest_P.scatter_reduce(0, tree_B, tokens_B, "amin")
    # Up to the shortest length both sides count in full; what lies beyond is where length alone adds up.
    in_tail_N = responses.place_N() >= shortest_P[tree_B][responses.batch.branch_N.to(tree_B.device)]
    ratios_N = responses.token_ratios()
    return branch_sums(torch.where(in_tail_N, parameters["tail_weight"] * ratios_N, ratios_N), responses.batch)


# f'(u) of an f-divergence at u = π/π_ref, up to a constant that cancels between two responses, so that f'(1) = 0.
# Wang et al. 2023, arXiv:2309.16240, Table 1: reverse KL is log u, the score of DPO.


def _forward_kl(responses: Responses, parameters: Parameters) -> Tensor:
    """1 - 1/u."""
    return -_bounded_expm1(-responses.against_reference())


def _jensen_shannon(responses: Responses, parameters: Parameters) -> Tensor:
    """log(2u / (1 + u))."""
    return math.log(2) + F.logsigmoid(responses.against_reference())


def _alpha_divergence(responses: Responses, parameters: Parameters) -> Tensor:
    """(1 - u^-alpha) / alpha."""
    alpha = parameters["divergence_alpha"]
    return -_bounded_expm1(-alpha * responses.against_reference()) / alpha


def _bounded_expm1(values: Tensor) -> Tensor:
    """e^x - 1, going on as its tangent beyond `LARGEST_EXPONENT`: a response that the policy gave up must leave the
    loss finite, and its gradient alive."""
    beyond = F.relu(values - LARGEST_EXPONENT)
    return torch.expm1(values.clamp(max=LARGEST_EXPONENT)) + math.exp(LARGEST_EXPONENT) * beyond


LOG_RATIO_SUM = Score(_log_ratio_sum, "Σ_t log π/π_ref", needs_reference=True)
LOG_RATIO_MEAN = Score(_log_ratio_mean, "1/|y| Σ_t log π/π_ref", needs_reference=True)
LOG_RATIO_WITHOUT_TAIL = Score(_length_desensitised, "Σ_t log π/π_ref, tails down-weighted", needs_reference=True)
FORWARD_KL = Score(_forward_kl, "1 - π_ref/π", needs_reference=True)
JENSEN_SHANNON = Score(_jensen_shannon, "log 2π/(π + π_ref)", needs_reference=True)
ALPHA_DIVERGENCE = Score(_alpha_divergence, "(1 - (π/π_ref)^-α)/α", needs_reference=True)
LOGPROB_SUM = Score(_logprob_sum, "Σ_t log π", needs_reference=False)
LOGPROB_MEAN = Score(_logprob_mean, "1/|y| Σ_t log π", needs_reference=False)
POWER_OF_MEAN = Score(_power_of_mean, "(1 - p^-α)/α, log p = 1/|y| Σ_t log π", needs_reference=False)
LOG_ODDS_OF_MEAN = Score(_log_odds_of_mean, "log p/(1-p), log p = 1/|y| Σ_t log π", needs_reference=False)
