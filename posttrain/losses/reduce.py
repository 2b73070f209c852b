"""Sums and means over tokens, branches and sides of a flat batch.

Shape suffixes as in `posttrain.types`: N trained tokens, B branches, P trees. A flat batch holds trained tokens
only, so there is nothing to mask; what remains to guard is the branch that has none of them: its sums are 0, its
means are defined as 0, and no gradient flows through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.outputs import Mean, Metric, TokenLogprobs, Total
from posttrain.types import Batch

if TYPE_CHECKING:
    from torch import Tensor


def branch_sums(values_N: Tensor, batch: Batch) -> Tensor:
    """Sum of each branch's tokens, [B]; 0 for a branch without trained tokens."""
    zeros_B = values_N.new_zeros(batch.num_branches)
    return zeros_B.index_add(0, batch.branch_N.to(values_N.device), values_N)


def branch_tokens(batch: Batch, like: Tensor) -> Tensor:
    """Trained tokens of each branch, [B], as floats on `like`'s device."""
    return branch_sums(like.new_ones(batch.branch_N.shape[0]), batch)


def tree_sums(values_B: Tensor, batch: Batch) -> Tensor:
    """Sum over each tree's branches, [P]."""
    zeros_P = values_B.new_zeros(batch.num_trees)
    return zeros_P.index_add(0, batch.tree_B.to(values_B.device), values_B)


def mean_or_zero(sums: Tensor, counts: Tensor) -> Tensor:
    """sums / counts, and 0 where nothing was counted: 0/0 would turn the whole step into NaN."""
    return sums / counts.clamp(min=1)


def over_denominator(total: Tensor, denominator: int) -> Tensor:
    """A micro-batch's share of the step's mean: its sum over the *global* count.

    A step without anything to train on has loss 0, not NaN; the alarm `nothing_supervised` reports it.
    """
    return total / max(denominator, 1)


def loss_mean(total: Tensor, count: int) -> Mean:
    """The metric of a loss or of one of its terms: its sum over what it is a mean over.

    0 where nothing trains, as the loss that is minimised, with a count of 0 that says what the 0 is worth. (Any other
    mean of nothing is NaN: an accuracy of no pair is not 0.)
    """
    return Mean(total.detach(), count, empty=0.0)


def sides(values_B: Tensor) -> tuple[Tensor, Tensor]:
    """(chosen, rejected), each [P], of a batch of pairs: chosen branches are 0, 2, 4, ..., rejected 1, 3, 5, ..."""
    return values_B[0::2], values_B[1::2]


def token_metrics(policy: TokenLogprobs, batch: Batch) -> dict[str, Metric]:
    """What every objective reports about its tokens: how many train, their share, and their entropy if known."""
    trained = batch.count.tokens
    metrics: dict[str, Metric] = {
        "supervised_tokens": Total(trained),
        "supervised_share": Mean(trained, batch.input_ids_T.shape[0]),
    }
    if policy.entropy_N is not None:
        metrics["entropy"] = Mean(policy.entropy_N.detach().sum(), trained)
    return metrics
