"""The metrics of online training that come from its losses; part of `posttrain.diagnostics.metrics.METRICS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from posttrain.diagnostics.metric_info import MetricInfo


def _kl(kind: str, of: str, note: str) -> MetricInfo:
    return MetricInfo(f"KL, sampled {kind}, {of}", "nats/token", "none", note)


def _stale(steps: int) -> dict[str, MetricInfo]:
    which = f"{steps} steps old or older" if steps == 4 else f"{steps} step{'' if steps == 1 else 's'} old"
    return {
        f"sampler_kl_stale_{steps}": MetricInfo(
            f"KL, engine to trainer, {which}",
            "nats/token",
            "down",
            f"`sampler_kl` of the tokens whose oldest weights were {which}; only where sampling runs ahead.",
        ),
        f"sampler_effective_size_stale_{steps}": MetricInfo(
            f"Effective sample, {which}", "share", "up", f"`sampler_effective_size` of the tokens that are {which}."
        ),
    }


_OLD = "of the policy that sampled to the policy now"
_REFERENCE = "of the policy to its reference"
_TEACHER = "of the policy to its teacher"
_UNBIASED = "Unbiased and noisy; a mean below 0 beyond its noise means that the log-probs are not of one distribution."
_FAR = "Half the mean square of the log-ratio: how far apart the two are, in either direction."
_POSITIVE = "Unbiased, never negative; grows fast where the second one lost a token (the log-ratio is cut at 80)."

ONLINE_METRICS: Mapping[str, MetricInfo] = MappingProxyType(
    {
        "policy_loss": MetricInfo(
            "Policy term",
            "",
            "none",
            "The surrogate's term of the loss. In a group the advantages add up to 0, so at ratio 1 it is about 0 "
            "however hard the step pulls: zero loss is not zero gradient. Watch the reward and `advantage_magnitude`.",
        ),
        "policy_slope": MetricInfo(
            "Policy term, slope",
            "",
            "none",
            "Mean |d policy term / d log-prob| of the trained tokens. Exactly 0 while advantages are not: the policy "
            "term teaches nothing, whatever the gradient's norm says.",
        ),
        "kl_loss": MetricInfo(
            "KL term", "nats", "none", "The KL penalty of the loss, unweighted, by the row's own kind."
        ),
        "advantage_mean": MetricInfo("Advantage, mean", "", "none", "Mean over the trained tokens."),
        "advantage_std": MetricInfo(
            "Advantage, standard deviation", "", "none", "Spread over the trained tokens; 0, nothing is learned."
        ),
        "advantage_magnitude": MetricInfo(
            "Advantage, magnitude",
            "",
            "none",
            "Mean |advantage| over the trained tokens: how hard the step pulls, which the loss does not say.",
        ),
        "ratio_mean": MetricInfo(
            "Ratio, mean", "", "none", "Mean of policy / old policy, of the row's level; 1 at a rollout's first update."
        ),
        "ratio_max": MetricInfo("Ratio, largest", "", "none", "The largest ratio of the step, before any clip."),
        "clip_share_low": MetricInfo(
            "Clipped below",
            "share",
            "none",
            "Share of tokens at which the objective clips for a ratio that is too low.",
        ),
        "clip_share_high": MetricInfo(
            "Clipped above",
            "share",
            "none",
            "Share of tokens at which the objective clips for a ratio that is too high.",
        ),
        # Each estimator by its own name (Schulman 2020, "Approximating KL Divergence"): a curve called KL that does not
        # say which cannot be compared with a paper's.
        "kl_k1_old": _kl("k1", _OLD, _UNBIASED),
        "kl_k2_old": _kl("k2", _OLD, _FAR),
        "kl_k3_old": _kl("k3", _OLD, _POSITIVE),
        "kl_k1_reference": _kl("k1", _REFERENCE, _UNBIASED),
        "kl_k2_reference": _kl("k2", _REFERENCE, _FAR),
        "kl_k3_reference": _kl("k3", _REFERENCE, _POSITIVE),
        "kl_sequence_reference": MetricInfo(
            "KL, sequence, to the reference",
            "nats",
            "none",
            "Of the policy that sampled: mean over all responses of the rollout, those included that do not train, of "
            "the summed log-ratio (k1 of whole responses, the KL that papers plot). `kl_target` and `stop.kl_above` "
            "follow it.",
        ),
        "kl_k1_teacher": _kl("k1", _TEACHER, _UNBIASED),
        "kl_k2_teacher": _kl("k2", _TEACHER, _FAR),
        "kl_k3_teacher": _kl("k3", _TEACHER, _POSITIVE),
        "kl_exact_reverse": MetricInfo(
            "KL, exact, policy to reference",
            "nats/token",
            "none",
            "KL(policy || reference) over the whole vocabulary, at a sample of the tokens.",
        ),
        # What the updates of a rollout move is in `ratio_*`; a gap between the two programs, or weights that are older
        # than the step's start, must not hide in it.
        "sampler_ratio_mean": MetricInfo(
            "Sampler ratio, mean",
            "",
            "none",
            "Mean of trainer / engine probability of the sampled tokens, the trainer's at the step's start; 1 if both "
            "compute alike, and on average also where sampling ran ahead.",
        ),
        "sampler_ratio_max": MetricInfo("Sampler ratio, largest", "", "none", "The largest of them, raw."),
        "sampler_gap_max": MetricInfo(
            "Sampler gap, largest", "nats", "down", "The largest |log trainer - log engine| of a sampled token."
        ),
        "sampler_kl": MetricInfo(
            "KL, engine to trainer",
            "nats/token",
            "down",
            "KL(engine || trainer), by k3 on the sampled tokens; 0 if both compute alike with the same weights.",
        ),
        "sampler_kl_k1": MetricInfo(
            "KL, engine to trainer, k1", "nats/token", "none", f"The same, by k1: log engine - log trainer. {_UNBIASED}"
        ),
        "sampler_gap_p50": MetricInfo(
            "Sampler gap, median",
            "nats",
            "down",
            "The median |log trainer - log engine| of a sampled token.",
        ),
        "sampler_gap_p99": MetricInfo(
            "Sampler gap, 99th percentile", "nats", "down", "One sampled token in a hundred has a larger one."
        ),
        "sampler_clipped_share": MetricInfo(
            "Sampler ratio, clipped",
            "share",
            "down",
            "Share of tokens whose sampler ratio is beyond the cap of the correction (2 where there is none).",
        ),
        "sampler_effective_size": MetricInfo(
            "Sampler ratio, effective sample",
            "share",
            "up",
            "(sum of w)^2 / (n sum of w^2) of the sampler ratios: the share of the tokens that the gradient rests on.",
        ),
        "sampler_effective_responses": MetricInfo(
            "Sampler ratio, effective responses",
            "share",
            "up",
            "The same of the products of whole responses: what the weights of sequences rest on.",
        ),
        **{name: info for steps in range(5) for name, info in _stale(steps).items()},
        "masked_share": MetricInfo(
            "Masked", "share", "down", "Share of the trained tokens that some rule of the corrections takes out."
        ),
        "masked_responses": MetricInfo(
            "Masked responses", "share", "down", "Share of the responses that have no token left."
        ),
        "masked_by_token_mask": MetricInfo(
            "Masked, as tokens", "share", "down", "Share of the trained tokens that `token_mask` takes out."
        ),
        "masked_by_sequence_mask": MetricInfo(
            "Masked, as responses", "share", "down", "Share of the trained tokens that `sequence_mask` takes out."
        ),
        "masked_by_outliers": MetricInfo(
            "Masked for an outlier",
            "share",
            "down",
            "Share of the trained tokens in responses that `outliers: drop` takes out.",
        ),
        "value_loss": MetricInfo("Value loss", "", "down", "Half the squared error of the value model, clipped."),
        "value_clip_share": MetricInfo(
            "Value clipped", "share", "none", "Share of tokens whose value moved further than its clip."
        ),
        "value_mean": MetricInfo("Value, mean", "", "none", "What the value model expects, mean over tokens."),
        "return_mean": MetricInfo("Return, mean", "", "up", "What it is to expect, mean over tokens."),
        # Beside the loss, for half a squared error has the scale of the returns; this can be compared between runs.
        "value_explained_variance": MetricInfo(
            "Variance explained by the values",
            "share",
            "up",
            "1 - Var(return - value) / Var(return): 1 is perfect, 0 no better than a constant, below 0 worse.",
        ),
        "teacher_divergence": MetricInfo(
            "Divergence to the teacher", "nats/token", "down", "What distillation minimises, as a mean over tokens."
        ),
    }
)
