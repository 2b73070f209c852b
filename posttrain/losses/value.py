"""The value model's loss: squared error to the returns, clipped around the values of the time of the rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.losses.reduce import loss_mean, over_denominator
from posttrain.outputs import Deviation, ExplainedVariance, LossOutput, Mean, Metric
from posttrain.types import Batch, Count


def value_loss(
    values_N: Tensor, batch: Batch, denominator: Count, *, clip: float = 0.2, weight: float = 1.0
) -> LossOutput:
    """weight * mean over the step's tokens of 1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2).

    The larger of the two: a value that has moved by more than c towards its return gets no more gradient, one that
    moves away always does. The clip is of OpenAI's `baselines` (ppo2), and in Ouyang et al. 2022, arXiv:2203.02155.

    Args:
        values_N: V of the state before each trained token, with its gradient.
        batch: its columns `values`, V_old, and `returns`, R (`posttrain.advantages.gae`).
        clip: c, in units of reward; 0 is no clip.
        weight: of the term where policy and value model share a backbone.

    Returns:
        loss, and the metrics `value_loss` (unweighted), `value_clip_share`, `value_mean`, `return_mean` and
        `value_explained_variance`.

    Raises:
        ConfigError: a column is missing.
    """
    missing = sorted({"values", "returns"} - batch.columns_N.keys())
    if missing:
        raise ConfigError(
            f"the tokens carry no {' and no '.join(missing)}",
            where="value_loss",
            found=f"columns {', '.join(batch.columns_N) or 'none'}",
            expected="values and returns",
            remedy="give every branch both, from `posttrain.advantages`",
        )
    old_N, return_N = (batch.columns_N[name].detach().to(values_N) for name in ("values", "returns"))
    error_N = (values_N - return_N).square()
    # Around the values of the rollout, not of the last update: c bounds what all updates of a rollout do together.
    near_N = old_N + (values_N - old_N).clamp(-clip, clip) if clip else values_N
    clipped_N = (near_N - return_N).square()
    total = torch.maximum(error_N, clipped_N).sum() / 2
    tokens = batch.count.tokens
    # The clipped error is the larger one where V has passed c on its way to the return: no gradient there.
    held_N, values_N = clipped_N > error_N, values_N.detach()
    metrics: dict[str, Metric] = {
        "value_loss": loss_mean(total, tokens),
        "value_clip_share": Mean(held_N.sum(), tokens),
        "value_mean": Mean(values_N.sum(), tokens),
        "return_mean": Mean(return_N.sum(), tokens),
        "value_explained_variance": ExplainedVariance(_deviation(return_N - values_N), _deviation(return_N)),
    }
    return LossOutput(loss=over_denominator(weight * total, denominator.tokens), metrics=metrics)


def _deviation(values_N: Tensor) -> Deviation:
    mean = values_N.mean() if values_N.numel() else values_N.sum()
    return Deviation(values_N.numel(), mean, (values_N - mean).square().sum())
