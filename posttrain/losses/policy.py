"""The loss of the online family, by one row of its table.

`policy_loss` reads what the tokens carry, `batch.columns_N`: `advantages` always; `old_logprobs`, `reference_logprobs`
and `sampler_logprobs` as the row needs them, all in nats. It knows nothing of rollouts, rewards or groups, and divides
by the step's global count: the gradients of micro-batches add up. A batch holds trained tokens only, so that
nothing that stands elsewhere can reach it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.losses.corrections import Corrected, corrected
from posttrain.losses.kl import KL_TERMS
from posttrain.losses.online import OnlineRow
from posttrain.losses.policy_metrics import Seen, mask_metrics, per_branch, policy_metrics, slope_of
from posttrain.losses.reduce import loss_mean, over_denominator, token_metrics
from posttrain.losses.surrogates import RATIOS, REDUCTIONS, SURROGATES, Parameters
from posttrain.outputs import LossOutput, Mean, Metric, TokenLogprobs
from posttrain.types import Batch, Count


def policy_loss(
    row: OnlineRow,
    parameters: Parameters,
    policy: TokenLogprobs,
    batch: Batch,
    denominator: Count,
    *,
    on_policy: bool = False,
) -> LossOutput:
    """The row's loss of one micro-batch, to be added up over the step's.

    Args:
        parameters: all of the row's, as `row.resolve` gives them; they are not checked again here.
        policy: log-probs of the N trained tokens under the sampling temperature; with `entropy_N` where the entropy has
            a weight.
        batch: its columns `advantages`, `old_logprobs`, `reference_logprobs`, `sampler_logprobs` are read as the row
            needs them; reference, sampler and `teacher_logprobs` are measured wherever they are there. `staleness`, in
            steps, splits what is measured of the sampler.
        denominator: count of the whole step, over all micro-batches and ranks.
        on_policy: the policy has the weights of the step's start, so `old_logprobs` is not read: every ratio is 1, with
            its gradient. True for the first update of a rollout only; says nothing where ratios start from the engine.

    Returns:
        loss, metrics (`docs/online.md`), and per branch `logprob`, `advantage`, `ratio` and `length`.

    Raises:
        ConfigError: a column, the entropy or the divergence is missing.
    """
    seen = _seen(row, parameters, policy, batch, on_policy)
    ratio_N = RATIOS[row.ratio].of(seen.log_ratio_N, batch)
    tokens = SURROGATES[row.surrogate].of(ratio_N, seen.advantage_N, seen.logprob_N, parameters)
    reduction = REDUCTIONS[row.reduction]

    # One reduction for every term, so that kl_beta weighs a token's KL against that token's own advantage.
    def share(values_N: Tensor) -> Tensor:
        return reduction.total(values_N, batch, parameters)

    correction = _correction(row, parameters, seen)
    terms = {"policy_loss": share(tokens.loss_N if correction is None else correction.of(tokens.loss_N))}
    total = teaching = terms["policy_loss"]
    if row.kl_place == "loss":
        terms["kl_loss"] = share(_kl_term(row, seen, policy, ratio_N))
        total = total + parameters["kl_beta"] * terms["kl_loss"]
    if parameters["entropy_weight"]:
        assert policy.entropy_N is not None
        total = total - parameters["entropy_weight"] * share(policy.entropy_N)
    own, whole = reduction.unit(batch.count), reduction.unit(denominator)
    metrics: dict[str, Metric] = {"loss": loss_mean(total, own)}
    metrics |= {name: loss_mean(value, own) for name, value in terms.items()}
    metrics |= policy_metrics(seen, ratio_N.detach(), tokens, parameters.get("importance_cap"))
    if correction is not None and correction.rejected:
        metrics |= mask_metrics(correction, batch)
    if (slope_N := slope_of(teaching, seen.logprob_N)) is not None:
        metrics["policy_slope"] = Mean(slope_N.abs().sum(), batch.count.tokens)
    if policy.divergence_N is not None:
        metrics["kl_exact_reverse"] = Mean(policy.divergence_N.detach().sum(), batch.count.tokens)
    metrics |= token_metrics(policy, batch)
    return LossOutput(
        loss=over_denominator(total, whole),
        metrics=metrics,
        per_branch=per_branch(seen, ratio_N.detach()),
        teaching=over_denominator(teaching, whole),
    )


def _correction(row: OnlineRow, parameters: Parameters, seen: Seen) -> Corrected | None:
    """What the row makes of tokens that the engine sampled from another policy than the trainer's."""
    mismatch = seen.mismatch
    return None if mismatch is None else corrected(row, parameters, mismatch)


def _kl_term(row: OnlineRow, seen: Seen, policy: TokenLogprobs, ratio_N: Tensor) -> Tensor:
    """The KL penalty of each token [N]: exact, where the policy's forward pass computed it, or an estimate."""
    if row.exact_kl:
        assert policy.divergence_N is not None
        return policy.divergence_N
    assert seen.reference_N is not None
    term = KL_TERMS[row.kl]
    # The correction is the token's; the row's ratio may be the response's (gspo) or none (rloo).
    token_ratio_N = RATIOS["token"].of(seen.log_ratio_N, seen.batch) if term.needs_ratio else ratio_N
    return term.of(seen.logprob_N, seen.reference_N, token_ratio_N)


def _seen(row: OnlineRow, parameters: Parameters, policy: TokenLogprobs, batch: Batch, on_policy: bool) -> Seen:
    """The batch's columns beside the policy's log-probs; what the row needs is there."""
    logprob_N, columns = policy.logprobs_N, batch.columns_N
    needed = {"advantages"}
    # Ratios to the engine's policy are not 1 at the first update either: its weights or its rounding are others.
    on_policy = on_policy and row.proximal == "trainer"
    needed |= {"old_logprobs"} if row.needs_old and not on_policy else set()
    needed |= {"reference_logprobs"} if row.kl_place == "loss" and not row.exact_kl else set()
    needed |= {"sampler_logprobs"} if row.needs_sampler else set()
    missing = sorted(needed - columns.keys())
    if missing:
        raise ConfigError(
            f"the tokens carry no {' and no '.join(missing)}",
            where="policy_loss",
            found=f"columns {', '.join(columns) or 'none'}",
            expected=", ".join(sorted(needed)),
            remedy="give every branch the column" + (", or pass on_policy=True" if missing == ["old_logprobs"] else ""),
        )
    if parameters["entropy_weight"] and policy.entropy_N is None:
        raise ConfigError(
            "the entropy has a weight, and was not computed",
            where="policy_loss",
            found=f"entropy_weight {parameters['entropy_weight']:g}",
            remedy="ask the policy for it: policy(batch, Wants(entropy=True))",
        )
    if row.exact_kl and policy.divergence_N is None:
        raise ConfigError(
            "the loss has an exact KL, and the divergence from the reference was not computed",
            where="policy_loss",
            found="a policy's log-probs without divergence_N",
            remedy="ask the policy for it: policy(batch, Wants(against=Against(reference, mixture=1.0)))",
        )
    carried = {name: values_N.detach().to(logprob_N) for name, values_N in columns.items()}
    # Ratios are then exactly 1, with the gradient of log π, and no second forward pass was needed for that.
    proximal = "sampler_logprobs" if row.proximal == "sampler" else "old_logprobs"
    old_N = logprob_N.detach() if on_policy else carried.get(proximal)
    return Seen(
        batch=batch,
        logprob_N=logprob_N,
        old_N=old_N,
        reference_N=carried.get("reference_logprobs"),
        sampler_N=carried.get("sampler_logprobs"),
        advantage_N=carried["advantages"],
        log_ratio_N=torch.zeros_like(logprob_N) if old_N is None else logprob_N - old_N,
        teacher_N=carried.get("teacher_logprobs"),
        staleness_N=carried.get("staleness"),
        from_sampler=row.proximal == "sampler",
    )
