"""Supervised fine-tuning: the negative log-likelihood of the trained tokens."""

from __future__ import annotations

from posttrain.losses.reduce import branch_sums, branch_tokens, loss_mean, over_denominator, token_metrics, tree_sums
from posttrain.outputs import LossOutput, Mean, Metric, TokenLogprobs
from posttrain.types import Batch, Count


def sft_loss(policy: TokenLogprobs, batch: Batch, denominator: Count) -> LossOutput:
    """Mean over the *step's* trained tokens of -log p(token), in nats.

    Every token weighs the same, so a long answer weighs more than a short one, and no split into micro-batches or
    ranks changes that: with 100 tokens of mean 0.5 here and 900 of mean 0.3 there, the loss is 0.32, not 0.40.

    Args:
        policy: log-probs of the batch's N trained tokens.
        denominator: count of the whole step, over all micro-batches and ranks; `tokens` is used.

    Returns:
        loss, the metrics `loss`, `supervised_tokens`, `supervised_share`, `length` (and `entropy` if it was
        computed), and per tree `logprob` (sum over its trained tokens, nats) and `tokens`.
    """
    nll = -policy.logprobs_N.sum()
    logprob_B = branch_sums(policy.logprobs_N.detach(), batch)
    tokens_B = branch_tokens(batch, logprob_B)
    metrics: dict[str, Metric] = {"loss": loss_mean(nll, batch.count.tokens)}
    metrics |= token_metrics(policy, batch)
    metrics["length"] = Mean(batch.count.tokens, batch.num_trees)
    return LossOutput(
        loss=over_denominator(nll, denominator.tokens),
        metrics=metrics,
        per_tree={"logprob": tree_sums(logprob_B, batch), "tokens": tree_sums(tokens_B, batch)},
        per_branch={"logprob": logprob_B},
    )
