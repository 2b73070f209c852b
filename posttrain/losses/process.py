"""Process reward models: the score of each step against what was said of that step.

    loss = mean over the *step's* labelled steps of BCE(sigma(score), label)

The score of a step is a logit: sigma(score) is how likely the step is right, and score > 0 calls it right. The product
of these is what `aggregate: product` takes.

Sources: Lightman et al. 2023, arXiv:2305.20050 (a verdict for each step); Wang et al. 2023 (Math-Shepherd),
arXiv:2312.08935, Eq. 4 (binary cross-entropy, also with soft labels).

Deviations
 1. The mean is over all labelled steps of the optimizer's step, so that it does not depend on the split into
    micro-batches. Math-Shepherd's Eq. 4 sums over a response's steps; TRL's PRMTrainer (which TRL 1.16 no longer has)
    took the mean over the steps of each micro-batch.
 2. The head has one output and its logit is scored; TRL's has two classes and a softmax. The difference of their logits
    is our score, so both can say the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.losses.reduce import loss_mean, over_denominator
from posttrain.losses.reward_rule import RewardRule
from posttrain.outputs import Deviation, LossOutput, Mean, Metric, Scores, Total
from posttrain.types import Batch, Count

STEP_LABELS = "step_labels"
"""The objective's name in recipes."""
RIGHT = 0.5
"""A label from here on calls a step right."""


def step_loss(rule: RewardRule, scores: Scores, batch: Batch, denominator: Count) -> LossOutput:
    """Mean over the *step's* labelled steps of the binary cross-entropy.

    Args:
        scores: with `steps_SH`, one score per trained token of the batch; the head has one output.
        batch: trees of one branch whose trained tokens end the labelled steps.
        denominator: count of the whole step, over all micro-batches and ranks; `tokens`, its labelled steps, is used.

    Returns:
        loss, metrics, per tree `reward` (the steps' scores as one, as `rule` says), per branch `reward`.

    Raises:
        ConfigError: the rows have no labels, or the model scores whole responses.
    """
    if scores.steps_SH is None or batch.step_labels_N is None:
        raise ConfigError(
            "step labels train the scores of steps, and these are missing",
            where="step_loss",
            found="no score per step" if scores.steps_SH is None else "no labels in the rows",
            expected="`head: steps`, and a label for each step",
            remedy="give rows with `completions` (the steps) and `labels`",
        )
    score_S = scores.steps_SH[:, 0]
    label_S = batch.step_labels_N.to(score_S)
    # With logits: a sigmoid in fp32 reaches exactly 1, whose wrong label would cost infinitely much.
    loss_S = F.binary_cross_entropy_with_logits(score_S, label_S, reduction="none")
    reward_B = rule.mixed(scores.scores_BH).detach()
    mean = reward_B.mean()
    metrics: dict[str, Metric] = {
        "loss": loss_mean(loss_S.sum(), len(loss_S)),
        **step_metrics(score_S.detach(), label_S, batch.branch_N.to(score_S.device), batch.num_branches),
        "reward_mean": Mean(reward_B.sum(), len(reward_B)),
        "reward_std": Deviation(len(reward_B), mean, (reward_B - mean).square().sum()),
        "supervised_tokens": Total(batch.count.tokens),
        "supervised_share": Mean(batch.count.tokens, batch.input_ids_T.shape[0]),
    }
    return LossOutput(
        loss=over_denominator(loss_S.sum(), denominator.tokens),
        metrics=metrics,
        per_tree={"reward": reward_B},
        per_branch={"reward": reward_B},
    )


def step_metrics(score_S: Tensor, label_S: Tensor, branch_S: Tensor, branches: int) -> dict[str, Metric]:
    """Shares of steps, and of responses whose first wrong step is found (or that they have none)."""
    right_S = label_S >= RIGHT
    ahead_S = torch.where(right_S, score_S, -score_S)
    found_B = first_errors(score_S < 0, branch_S, branches) == first_errors(~right_S, branch_S, branches)
    return {
        # A tie counts half, as for pairs: a head at zero says nothing of any step.
        "step_accuracy": Mean(((torch.sign(ahead_S) + 1) / 2).sum(), len(ahead_S)),
        "first_error_accuracy": Mean(found_B.sum(), branches),
        "right_steps": Mean(right_S.sum(), len(right_S)),
    }


def first_errors(wrong_S: Tensor, branch_S: Tensor, branches: int) -> Tensor:
    """Index in S of each branch's first wrong step, [B]; S where it has none."""
    steps = len(wrong_S)
    place_S = torch.arange(steps, device=wrong_S.device)
    place_S = torch.where(wrong_S, place_S, place_S.new_full((), steps))
    return place_S.new_full((branches,), steps).scatter_reduce(0, branch_S, place_S, "amin")
