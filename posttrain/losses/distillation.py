"""On-policy distillation over the whole vocabulary: the policy's own responses, the teacher's distributions.

The divergence itself needs logits, and those exist a chunk at a time in `posttrain.models.tree.divergence`; here it
becomes a loss. The cheaper relative, the reverse KL of the sampled tokens alone, is the row `distil_reverse_kl` of the
online table: its advantage is log teacher - log policy.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from posttrain.losses.reduce import loss_mean, over_denominator, token_metrics
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
