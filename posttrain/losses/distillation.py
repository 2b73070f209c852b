"""Distillation over the whole vocabulary: the teacher's distributions at the policy's own responses, or at rows.

The divergence itself needs logits, and those exist a chunk at a time in `posttrain.models.tree.divergence`; here it
becomes a loss. The cheaper relative, the reverse KL of the sampled tokens alone, is the row `distil_reverse_kl` of the
online table: its advantage is log teacher - log policy.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from posttrain.losses.reduce import branch_sums, branch_tokens, loss_mean, over_denominator, token_metrics, tree_sums
from posttrain.losses.surrogates import REDUCTIONS
from posttrain.outputs import LossOutput, Mean, Metric, TokenLogprobs
from posttrain.types import Batch, Count


def distillation_loss(
    divergence_N: Tensor,
    batch: Batch,
    denominator: Count,
    *,
    reduction: Literal["sequence_mean", "token_mean"] = "sequence_mean",
    policy: TokenLogprobs | None = None,
) -> LossOutput:
    """The step's mean over responses of their mean divergence per token. No gradient passes through the sampling.

    Agarwal et al. 2023 (GKD), arXiv:2306.13649, Sec. 3: per-token means, and samples that are constants.

    Args:
        divergence_N: of policy and teacher at each trained token, nats, with its gradient: `Policy.divergence`.
        reduction: `token_mean` weighs long responses more, as TRL does.
        policy: for the entropy among the metrics.

    Returns:
        loss, and the metrics `loss`, `teacher_divergence` (nats per token) and the tokens'.
    """
    how = REDUCTIONS[reduction]
    total = how.total(divergence_N, batch, {})
    metrics: dict[str, Metric] = {
        "loss": loss_mean(total, how.unit(batch.count)),
        "teacher_divergence": Mean(divergence_N.detach().sum(), batch.count.tokens),
    }
    metrics |= token_metrics(policy or TokenLogprobs(divergence_N), batch)
    return LossOutput(loss=over_denominator(total, how.unit(denominator)), metrics=metrics)


def soft_target_loss(policy: TokenLogprobs, batch: Batch, denominator: Count, *, weight: float = 1.0) -> LossOutput:
    """The step's mean over trained tokens of weight * KL(teacher || policy) + (1 - weight) * -log p(token), in nats.

    Hinton et al. 2015, arXiv:1503.02531, section 2, at temperature 1, where their factor T^2 is 1; Kim and Rush 2016,
    arXiv:1606.07947, equation 4 (word-level distillation). The KL is over the whole vocabulary: no mass is cut off.

    Args:
        policy: with `divergence_N`, KL(teacher || policy) at each trained token, with its gradient.
        weight: of the soft targets, 0 to 1; at 0 it is `sft_loss`.

    Returns:
        loss, the metrics `loss`, `teacher_divergence`, `nll` (nats per token), `length` and the tokens', and per tree
        `logprob` and `tokens` as `sft_loss`.
    """
    assert policy.divergence_N is not None
    nll_N, soft_N = -policy.logprobs_N, policy.divergence_N
    total = (weight * soft_N + (1 - weight) * nll_N).sum()
    logprob_B = branch_sums(policy.logprobs_N.detach(), batch)
    tokens_B = branch_tokens(batch, logprob_B)
    metrics: dict[str, Metric] = {
        "loss": loss_mean(total, batch.count.tokens),
        "teacher_divergence": Mean(soft_N.detach().sum(), batch.count.tokens),
        "nll": Mean(nll_N.detach().sum(), batch.count.tokens),
    }
    metrics |= token_metrics(policy, batch)
    metrics["length"] = Mean(batch.count.tokens, batch.num_trees)
    return LossOutput(
        loss=over_denominator(total, denominator.tokens),
        metrics=metrics,
        per_tree={"logprob": tree_sums(logprob_B, batch), "tokens": tree_sums(tokens_B, batch)},
        per_branch={"logprob": logprob_B},
    )
