"""Metrics: how they add up over micro-batches, and what each one means.

A metric is a `posttrain.outputs.Mean`, `Total` or `Maximum`: it carries its own sum and count, so that merging is
exact and there is no mean of means. `METRICS` describes every name that training writes; the report and the
documentation read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

from posttrain.diagnostics.metric_info import Better, MetricInfo
from posttrain.diagnostics.online_metrics import ONLINE_METRICS
from posttrain.diagnostics.rollout_metrics import ROLLOUT_METRICS
from posttrain.outputs import Deviation, EffectiveSize, ExplainedVariance, Maximum, Mean, Metric, Quantile, Total

__all__ = ["METRICS", "Better", "MetricInfo", "counts", "merge", "perplexity", "values"]


def merge(parts: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """The metrics of a step from those of its micro-batches (or ranks), in order of first appearance.

    A metric that only some parts have is merged over those: what was not measured does not count.

    Raises:
        TypeError: one name is a mean in one part and a total or maximum in another.
    """
    merged: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            # Sums and counts are merged, never values: micro-batches differ in tokens, and a mean of their means would
            # weigh a token of a short one more.
            merged[name] = _merge_two(name, merged[name], metric) if name in merged else metric
    return merged


def _merge_two(name: str, first: Metric, second: Metric) -> Metric:
    if isinstance(first, Mean) and isinstance(second, Mean):
        return first.merge(second)
    if isinstance(first, Total) and isinstance(second, Total):
        return first.merge(second)
    if isinstance(first, Maximum) and isinstance(second, Maximum):
        return first.merge(second)
    if isinstance(first, Deviation) and isinstance(second, Deviation):
        return first.merge(second)
    if isinstance(first, EffectiveSize) and isinstance(second, EffectiveSize):
        return first.merge(second)
    if isinstance(first, ExplainedVariance) and isinstance(second, ExplainedVariance):
        return first.merge(second)
    if isinstance(first, Quantile) and isinstance(second, Quantile):
        return first.merge(second)
    # Not settled by a rule: a name that is a mean here and a total there is two measurements in one curve.
    raise TypeError(f"metric {name!r} is both a {type(first).__name__} and a {type(second).__name__}")


def numbers(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The same metrics with plain numbers in the place of tensors, as they travel between processes."""
    return {name: _plain(metric) for name, metric in metrics.items()}


def _plain(metric: Metric) -> Metric:
    changed: dict[str, Any] = {}
    for field in fields(metric):
        value = getattr(metric, field.name)
        if value is not None:
            changed[field.name] = _plain(value) if isinstance(value, Deviation) else float(value)
    return replace(metric, **changed)


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Each metric's number; NaN where nothing was counted."""
    # NaN and not 0 where nothing was counted: a 0 would be drawn, and would pull down every window that it is in.
    return {name: metric.value for name, metric in metrics.items()}


def counts(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """How many things each mean is a mean over."""
    return {name: float(metric.count) for name, metric in metrics.items() if isinstance(metric, Mean)}


def perplexity(loss: float) -> float:
    """e^loss for a loss in nats per token; infinite rather than an overflow for a loss beyond about 709."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


METRICS: Mapping[str, MetricInfo] = MappingProxyType(
    {
        "loss": MetricInfo(
            "Loss",
            "nats",
            "down",
            "What training minimises: nats per trained token for sft, per pair for preferences. A DPO loss starts at "
            "ln 2 = 0.693.",
        ),
        "preference_loss": MetricInfo(
            "Preference term", "nats", "down", "The pairwise term of an objective that has a second one, unweighted."
        ),
        "nll_loss": MetricInfo(
            "Anchor term",
            "nats",
            "down",
            "Negative log-likelihood of the chosen response, unweighted; per token or per sequence as the objective "
            "has it.",
        ),
        "rewards_chosen": MetricInfo(
            "Reward, chosen",
            "",
            "up",
            "Implicit reward of the chosen (for feedback: good) response, beta times its score. Below 0 against a "
            "reference, the response has become less likely than it was.",
        ),
        "rewards_rejected": MetricInfo(
            "Reward, rejected",
            "",
            "down",
            "Implicit reward of the rejected (for feedback: bad) response, beta times its score.",
        ),
        "reward_margin": MetricInfo(
            "Reward margin",
            "",
            "up",
            "Reward of the chosen minus reward of the rejected response. It rises also when both fall.",
        ),
        "reward_accuracy": MetricInfo(
            "Reward accuracy",
            "share",
            "up",
            "Share of pairs whose chosen response has the higher reward; of feedback, the share on the right side of "
            "the reference point. A tie counts half, so an untrained policy has 50 %.",
        ),
        "reward_confidence": MetricInfo(
            "Reward confidence",
            "share",
            "none",
            "Mean of sigmoid(|margin|): how sure a reward model is of its order. Calibrated, it equals the accuracy.",
        ),
        "reward_mean": MetricInfo(
            "Reward, mean", "", "none", "Mean reward of all responses, chosen or not. Only differences have a meaning."
        ),
        "reward_std": MetricInfo(
            "Reward, standard deviation",
            "",
            "none",
            "Spread of the rewards of all responses. Near 0, the reward model says the same of every response.",
        ),
        "centre_loss": MetricInfo(
            "Centring term", "", "down", "Mean of (r_w + r_l)^2, unweighted: how far the rewards of pairs lie from 0."
        ),
        "regression_error": MetricInfo(
            "Error of the score", "", "down", "Mean absolute difference between the reward and the annotated score."
        ),
        "reference_point": MetricInfo(
            "Reference point",
            "",
            "none",
            "What the reward of a response is compared with: beta times the KL estimate of mismatched completions for "
            "kto, the mean reward of the step for bco.",
        ),
        "step_accuracy": MetricInfo(
            "Steps judged right",
            "share",
            "up",
            "Share of the labelled steps on whose side the score is: above 0 for a right step, below 0 for a wrong "
            "one. A tie counts half.",
        ),
        "first_error_accuracy": MetricInfo(
            "First errors found",
            "share",
            "up",
            "Share of the responses whose first step with a score below 0 is their first wrong step; of a response "
            "without a wrong step, that no step has such a score.",
        ),
        "right_steps": MetricInfo(
            "Share of right steps", "share", "none", "Share of the steps that are labelled right."
        ),
        "good_share": MetricInfo("Share good", "share", "none", "Share of the responses that are labelled good."),
        "beta": MetricInfo(
            "Beta", "", "none", "The step's own beta (beta_dpo): high where its pairs are further apart than usual."
        ),
        "pair_weight": MetricInfo(
            "Weight of a pair",
            "",
            "none",
            "Mean of the weights that pairs have by the policy's own distribution (wpo); near 0, the pairs are far "
            "from anything that the policy would say, and hardly train it. Of beta_dpo, 1 over all pairs of a step.",
        ),
        "logprob_per_token_chosen": MetricInfo(
            "Log-prob per token, chosen", "nats/token", "up", "Mean over the tokens of the chosen responses."
        ),
        "logprob_per_token_rejected": MetricInfo(
            "Log-prob per token, rejected", "nats/token", "none", "Mean over the tokens of the rejected responses."
        ),
        "logprob_chosen_change": MetricInfo(
            "Change of log-prob, chosen",
            "nats",
            "up",
            "Log-prob of the whole chosen response minus the reference's: its change since the start. Falling while "
            "the margin rises is likelihood displacement.",
        ),
        "logprob_rejected_change": MetricInfo(
            "Change of log-prob, rejected",
            "nats",
            "none",
            "Log-prob of the whole rejected response minus the reference's: its change since the start.",
        ),
        "kl_k1_on_data": MetricInfo(
            "k1 on the data's tokens",
            "nats/token",
            "none",
            "Mean of r = log policy - log reference over the data's tokens. The policy did not sample them, so this is "
            "not a KL and may be negative.",
        ),
        "kl_k2_on_data": MetricInfo(
            "k2 on the data's tokens",
            "nats/token",
            "none",
            "Mean of r^2 / 2 over the data's tokens: how far the policy has moved there, in either direction.",
        ),
        "kl_k3_on_data": MetricInfo(
            "k3 on the data's tokens",
            "nats/token",
            "none",
            "Mean of e^-r - 1 + r over the data's tokens; grows fast where the policy lost a token (r is cut at -80).",
        ),
        "length": MetricInfo("Length", "tokens", "none", "Trained tokens per demonstration."),
        "length_chosen": MetricInfo("Length, chosen", "tokens", "none", "Trained tokens per chosen response."),
        "length_rejected": MetricInfo("Length, rejected", "tokens", "none", "Trained tokens per rejected response."),
        "length_generated": MetricInfo(
            "Length, generated", "tokens", "none", "Tokens per response that the policy sampled."
        ),
        "supervised_tokens": MetricInfo("Trained tokens", "tokens", "none", "Tokens that trained in this step."),
        "supervised_share": MetricInfo(
            "Share trained", "share", "none", "Trained tokens over all tokens of the step; prompts do not train."
        ),
        "entropy": MetricInfo(
            "Entropy",
            "nats/token",
            "none",
            "Mean entropy of the policy's next-token distribution. A collapse to 0 means that it always says the same.",
        ),
        # Of the whole step at once: it multiplies two shares, so that a mean over micro-batches would depend on how the
        # step is cut.
        "router_aux_loss": MetricInfo(
            "Router balance",
            "",
            "down",
            "Load-balancing loss of a mixture of experts before its coefficient, over the whole step. The number of "
            "experts per token where all are used alike. `loss` is without it.",
        ),
        "router_load_max": MetricInfo(
            "Busiest expert",
            "",
            "down",
            "The largest share that an expert has of its layer's tokens, over the share of even use, which is 1.",
        ),
        "router_idle_share": MetricInfo(
            "Idle experts", "share", "down", "Experts that no token of the step was sent to, over all layers."
        ),
        "grad_norm": MetricInfo(
            "Gradient norm", "", "none", "Euclidean norm of the step's whole gradient before clipping."
        ),
        "learning_rate": MetricInfo("Learning rate", "", "none", "Of the step, after warm-up and schedule."),
        "tokens_per_second": MetricInfo("Speed", "tokens/s", "up", "All tokens of the step over its time."),
        # One table for all stages: the report draws a name the same way whichever stage wrote it.
        **ONLINE_METRICS,
        **ROLLOUT_METRICS,
    }
)
