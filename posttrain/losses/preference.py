"""The loss of a batch of comparisons, by one row of the pairwise table or by a weighted mix of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.lazy_torch import torch
from posttrain.losses import links, scores
from posttrain.losses.kl import k1, k2, k3
from posttrain.losses.links import Rewards
from posttrain.losses.pairwise import PairwiseRow
from posttrain.losses.reduce import over_denominator, token_metrics
from posttrain.losses.responses import Coupling, Pairs, Parameters, Responses, StepStatistics
from posttrain.outputs import LossOutput, Mean, Metric, TokenLogprobs
from posttrain.types import Batch, Count

if TYPE_CHECKING:
    from torch import Tensor

CHOSEN_NLL = PairwiseRow(
    scores.LOGPROB_SUM,
    links.only_the_extra,
    {},
    "negative log-likelihood of the chosen response, the mean over its tokens; `sft` in a mix",
    extra=links.nll_mean,
)
"""The one term of a mix that is no objective of pairs by itself."""


@dataclass(frozen=True, slots=True)
class Term:
    """One objective of a mix: Term(PAIRWISE["dpo"], {"beta": 0.1}, weight=0.8)."""

    row: PairwiseRow
    parameters: Parameters
    """All of the row's parameters."""
    weight: float = 1.0


def pairwise_loss(
    row: PairwiseRow,
    parameters: Parameters,
    policy: TokenLogprobs,
    reference_N: Tensor | None,
    batch: Batch,
    denominator: Count,
    statistics: StepStatistics | None = None,
) -> LossOutput:
    """Mean over the *step's* rows of the objective's loss.

    Args:
        parameters: all of the row's, as `row.resolve` gives them; they are not checked again here.
        policy: log-probs of the batch's N trained tokens.
        reference_N: the reference's log-probs of the same tokens; None only where the row needs no reference.
        batch: trees of two branches, the chosen one first, or ranked lists of more, best first.
        denominator: count of the whole step, over all micro-batches and ranks; `trees` is used.
        statistics: of the step, for a row with a `coupling`; None where the batch is the whole step.

    Returns:
        loss, metrics (`posttrain.diagnostics.metrics.METRICS` says what each means), and per tree `rewards_chosen`,
        `rewards_rejected`, `logprob_chosen`, `logprob_rejected` (sums, nats), `tokens_chosen`, `tokens_rejected`;
        of a ranked list, its best and its worst response.

    Raises:
        ConfigError: the reference or the annotated margins are missing.
    """
    of_terms = None if statistics is None else [statistics]
    return mixed_loss([Term(row, parameters)], policy, reference_N, batch, denominator, of_terms)


def mixed_loss(
    terms: Sequence[Term],
    policy: TokenLogprobs,
    reference_N: Tensor | None,
    batch: Batch,
    denominator: Count,
    statistics: Sequence[StepStatistics] | None = None,
) -> LossOutput:
    """The weighted sum of several objectives on the same responses, each with its own parameters.

    The rewards in the metrics are those of the first term. Arguments and errors as in `pairwise_loss`; `statistics`
    has one entry for each term.
    """
    assert int(torch.bincount(batch.tree_B).min()) >= 2, "every tree of a comparison has at least two branches"
    plain = Responses.of(policy, reference_N, batch)
    pairs = Pairs.of(batch, policy.logprobs_N)
    parts: list[_Part] = []
    for index, term in enumerate(terms):
        # Two terms may write the same key (`shift` of bco_pair and of mpo) from different betas: each reads only its
        # own.
        coupling = term.row.coupling
        if coupling is None:
            responses = plain
        else:
            own = coupling.of_batch(plain, term.parameters) if statistics is None else statistics[index]
            responses = Responses.of(policy, reference_N, batch, own)
        parts.append(_part(term, responses, pairs))
    loss_P = torch.stack([term.weight * part.loss_P for term, part in zip(terms, parts, strict=True)]).sum(0)
    compared_P = torch.stack([term.weight * part.preference_P for term, part in zip(terms, parts, strict=True)]).sum(0)
    # Two terms would write the same names (`nll_loss`, `pair_weight`), and the last would pass for both.
    alone = parts[0].metrics if len(parts) == 1 else {}
    rewards = parts[0].rewards
    return LossOutput(
        loss=over_denominator(loss_P.sum(), denominator.trees),
        metrics={"loss": _mean(loss_P)}
        | alone
        | _reward_metrics(rewards)
        | _logprob_metrics(plain, pairs)
        | _change_metrics(plain, pairs, policy, reference_N)
        | token_metrics(policy, batch),
        per_tree=_per_tree(rewards, plain),
        per_branch={"logprob": plain.logprob_B.detach()},
        # Without the NLL, whose gradient would hide a comparison that teaches nothing.
        teaching=over_denominator(compared_P.sum(), denominator.trees),
    )


# ---------------------------------------------------------------- a mix whose terms look at the whole step


def coupling_of_terms(terms: Sequence[Term]) -> Coupling | None:
    """All terms' couplings as one; None where no term has any. Each term's values go under its place in the mix."""
    coupled = {f"{place}/": term for place, term in enumerate(terms) if term.row.coupling is not None}
    if not coupled:
        return None

    def observe(responses: Responses, _: Parameters) -> dict[str, Tensor]:
        observed: dict[str, Tensor] = {}
        for place, term in coupled.items():
            assert term.row.coupling is not None
            values = term.row.coupling.observe(responses, term.parameters)
            observed |= {place + key: value for key, value in values.items()}
        return observed

    def reduce(observed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        statistics: dict[str, Tensor] = {}
        for place, term in coupled.items():
            assert term.row.coupling is not None
            own = term.row.coupling.reduce(_under(place, observed))
            statistics |= {place + key: value for key, value in own.items()}
        return statistics

    return Coupling(observe, reduce)


def statistics_of_terms(terms: Sequence[Term], statistics: StepStatistics | None) -> list[StepStatistics] | None:
    """The statistics that `coupling_of_terms` made, apart again: one mapping for each term."""
    if statistics is None:
        return None
    # With the slash, or term 1 would take what belongs to term 10.
    return [_under(f"{place}/", statistics) for place in range(len(terms))]


def _under(place: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(place): value for key, value in values.items() if key.startswith(place)}


# ---------------------------------------------------------------- one term


@dataclass(frozen=True, slots=True)
class _Part:
    loss_P: Tensor
    preference_P: Tensor
    """The part of it that compares, without the likelihood beside it."""
    rewards: Rewards
    metrics: dict[str, Metric]


def _part(term: Term, responses: Responses, pairs: Pairs) -> _Part:
    row, parameters, trees = term.row, term.parameters, responses.batch.num_trees
    # orpo has no beta: its reward is the score itself.
    reward_B = parameters.get("beta", 1.0) * row.score.of(responses, parameters)
    chosen_Q, rejected_Q = pairs.sides(reward_B)
    margin_Q = 0.0 if row.margin is None else row.margin(responses, pairs, parameters)
    rewards = Rewards(chosen_Q, rejected_Q, margin_Q, reward_B, responses)

    preference_Q = row.link(rewards, parameters)
    metrics: dict[str, Metric] = {}
    # The link has already made one number of each tree; what follows is per pair.
    if row.whole_list:
        return _Part(preference_Q, preference_Q, rewards, metrics)
    loss_Q = compared_Q = parameters.get("preference_weight", 1.0) * preference_Q
    if row.extra is not None:
        extra_Q = row.extra(responses, pairs)
        loss_Q = loss_Q + parameters.get("nll_weight", 1.0) * extra_Q
        metrics = {
            "preference_loss": _mean(pairs.per_tree(preference_Q, trees)),
            "nll_loss": _mean(pairs.per_tree(extra_Q, trees)),
        }
    # beta_dpo alone, whose beta is another in every step.
    if "beta_scale" in responses.statistics:
        metrics |= {"beta": _mean(parameters["beta"] * responses.statistics["beta_scale"])}
    if row.weight is not None:
        weight_Q = row.weight(responses, pairs)
        loss_Q, compared_Q = weight_Q * loss_Q, weight_Q * compared_Q
        metrics |= {"pair_weight": _mean(weight_Q)}
    return _Part(pairs.per_tree(loss_Q, trees), pairs.per_tree(compared_Q, trees), rewards, metrics)


# ---------------------------------------------------------------- metrics


def _mean(values: Tensor) -> Mean:
    return Mean(values.detach().sum(), values.shape[0])


def _reward_metrics(rewards: Rewards) -> dict[str, Metric]:
    chosen_Q, rejected_Q = rewards.chosen_Q.detach(), rewards.rejected_Q.detach()
    # A tie counts half: a policy that has not moved from its reference is a coin toss, not always wrong.
    correct_Q = (torch.sign(chosen_Q - rejected_Q) + 1) / 2
    return {
        "rewards_chosen": _mean(chosen_Q),
        "rewards_rejected": _mean(rejected_Q),
        "reward_margin": _mean(chosen_Q - rejected_Q),
        "reward_accuracy": _mean(correct_Q),
    }


def _logprob_metrics(responses: Responses, pairs: Pairs) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    logprobs, tokens = pairs.sides(responses.logprob_B.detach()), pairs.sides(responses.tokens_B)
    for side, logprob_Q, tokens_Q in zip(("chosen", "rejected"), logprobs, tokens, strict=True):
        metrics[f"logprob_per_token_{side}"] = Mean(logprob_Q.sum(), tokens_Q.sum())
        metrics[f"length_{side}"] = _mean(tokens_Q)
    return metrics


def _change_metrics(
    responses: Responses, pairs: Pairs, policy: TokenLogprobs, reference_N: Tensor | None
) -> dict[str, Metric]:
    """How far the policy went from its start on the data's own tokens; nothing without a reference."""
    if responses.log_ratio_B is None or reference_N is None:
        return {}
    chosen_Q, rejected_Q = pairs.sides(responses.log_ratio_B)
    changes: dict[str, Metric] = {
        "logprob_chosen_change": _mean(chosen_Q),
        "logprob_rejected_change": _mean(rejected_Q),
    }
    return changes | kl_metrics(policy, reference_N)


def kl_metrics(policy: TokenLogprobs, reference_N: Tensor) -> dict[str, Metric]:
    """The three estimators' values on the data's tokens."""
    logprobs_N = policy.logprobs_N.detach()
    reference_N = reference_N.detach().to(logprobs_N)
    # k3 grows as e^-r; 80 nats keep its sum over a batch representable in fp32.
    bounded_N = torch.maximum(logprobs_N, reference_N - 80)
    trained = logprobs_N.shape[0]
    return {
        "kl_k1_on_data": Mean(k1(logprobs_N, reference_N).sum(), trained),
        "kl_k2_on_data": Mean(k2(logprobs_N, reference_N).sum(), trained),
        "kl_k3_on_data": Mean(k3(bounded_N, reference_N).sum(), trained),
    }


def _per_tree(rewards: Rewards, responses: Responses) -> dict[str, Tensor]:
    """The first and the last branch of each tree: chosen and rejected, or best and worst."""
    tree_B = responses.batch.tree_B.to(rewards.reward_B.device)
    last_P = torch.bincount(tree_B, minlength=responses.batch.num_trees).cumsum(0) - 1
    first_P = torch.cat([last_P.new_zeros(1), last_P[:-1] + 1])
    found: dict[str, Tensor] = {}
    for side, index_P in (("chosen", first_P), ("rejected", last_P)):
        found[f"rewards_{side}"] = rewards.reward_B.detach()[index_P]
        found[f"logprob_{side}"] = responses.logprob_B.detach()[index_P]
        found[f"tokens_{side}"] = responses.tokens_B[index_P]
    return found
