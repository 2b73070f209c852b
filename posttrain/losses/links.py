"""Links, margins, extra terms and weights: how the rewards of a pair become a loss.

Each is one small function; the table in `pairwise.py` names them. Q counts the compared pairs of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posttrain.errors import ConfigError
from posttrain.lazy_torch import F, torch
from posttrain.losses.reduce import branch_sums, mean_or_zero, tree_sums
from posttrain.losses.responses import Coupling, Pairs, Parameters, Responses, refuse_ties

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rewards:
    """beta * score of every response and of both sides of each pair, and the margin that the chosen side owes."""

    chosen_Q: Tensor
    rejected_Q: Tensor
    margin_Q: Tensor | float
    reward_B: Tensor
    responses: Responses

    @property
    def lead_Q(self) -> Tensor:
        return self.chosen_Q - self.rejected_Q - self.margin_Q


# ---------------------------------------------------------------- links that see only how far the chosen side leads


def logistic(rewards: Rewards, parameters: Parameters) -> Tensor:
    """-log sigmoid(lead): the Bradley-Terry likelihood."""
    return -F.logsigmoid(rewards.lead_Q)


def smoothed_logistic(rewards: Rewards, parameters: Parameters) -> Tensor:
    """Expected logistic loss if a share `label_smoothing` of the labels is flipped; it has a finite optimum."""
    flipped = parameters["label_smoothing"]
    return -(1 - flipped) * F.logsigmoid(rewards.lead_Q) - flipped * F.logsigmoid(-rewards.lead_Q)


def debiased_logistic(rewards: Rewards, parameters: Parameters) -> Tensor:
    """Unbiased for the logistic loss on clean labels when a share `label_smoothing` is flipped; it can be negative."""
    flipped = parameters["label_smoothing"]
    # On average over the flips, the second term takes away what flipped labels add to the first.
    on_noisy_labels = -(1 - flipped) * F.logsigmoid(rewards.lead_Q) + flipped * F.logsigmoid(-rewards.lead_Q)
    return on_noisy_labels / (1 - 2 * flipped)


def hinge(rewards: Rewards, parameters: Parameters) -> Tensor:
    """max(0, 1 - lead): a pair that is a whole reward ahead is left alone."""
    return F.relu(1 - rewards.lead_Q)


def squared(rewards: Rewards, parameters: Parameters) -> Tensor:
    """(h - 1 / (2 beta))^2 with h = lead / beta: a pair has a target, so a certain label cannot pull it to infinity."""
    # The target is in nats, so the beta that a reward carries is divided out again.
    beta = parameters["beta"]
    return (rewards.lead_Q / beta - 1 / (2 * beta)).square()


def reverse_kl_to_labels(rewards: Rewards, parameters: Parameters) -> Tensor:
    """KL(q || p) of the policy's verdict q = (sigmoid(lead), 1 - that) from the label's p = (1 - epsilon, epsilon)."""
    epsilon = parameters["label_epsilon"]
    log_won_Q, log_lost_Q = F.logsigmoid(rewards.lead_Q), F.logsigmoid(-rewards.lead_Q)
    # Weighted by the policy's verdict, so mode-seeking; DPO's cross-entropy weighs by the label's.
    won_Q = log_won_Q.exp() * (log_won_Q - math.log1p(-epsilon))
    return won_Q + log_lost_Q.exp() * (log_lost_Q - math.log(epsilon))


def log_ratio_modulated(rewards: Rewards, parameters: Parameters) -> Tensor:
    """(1 - m) * -log sigmoid(lead) + m * e^-lead with m = sigmoid(lead / tau).

    m e^-lead is one exponential: apart, they are 0 and infinity for a pair that is far behind.
    """
    lead_Q, tau = rewards.lead_Q, parameters["tau"]
    exponential_Q = torch.exp(F.logsigmoid(lead_Q / tau) - lead_Q)
    return torch.sigmoid(-lead_Q / tau) * -F.logsigmoid(lead_Q) + exponential_Q


# ---------------------------------------------------------------- links that see both rewards


def noise_contrastive(rewards: Rewards, parameters: Parameters) -> Tensor:
    """-log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l): the chosen reward has a finite optimum."""
    # Half each: the noise term is a mean over the K = 2 responses.
    away = F.logsigmoid(-rewards.chosen_Q) + F.logsigmoid(-rewards.rejected_Q)
    return -F.logsigmoid(rewards.chosen_Q) - away / 2


def shifted_classifier(rewards: Rewards, parameters: Parameters) -> Tensor:
    """-log sigmoid(r_w - delta) - log sigmoid(-(r_l - delta)), delta the mean reward of the step."""
    # The step's, not the micro-batch's: otherwise the threshold moves with `tokens_per_microbatch`.
    shift_Q = rewards.responses.statistics["shift"]
    return -F.logsigmoid(rewards.chosen_Q - shift_Q) - F.logsigmoid(shift_Q - rewards.rejected_Q)


def preference_and_quality(rewards: Rewards, parameters: Parameters) -> Tensor:
    """(1 - q) * logistic + q * shifted classifier: which is better, and which is good at all."""
    quality = parameters["quality_weight"]
    return (1 - quality) * logistic(rewards, parameters) + quality * shifted_classifier(rewards, parameters)


def self_play_squared(rewards: Rewards, parameters: Parameters) -> Tensor:
    """(s_w - 1 / (2 beta))^2 + (s_l + 1 / (2 beta))^2 with s = r / beta: each side has a target of its own."""
    beta = parameters["beta"]
    half = 1 / (2 * beta)
    return (rewards.chosen_Q / beta - half).square() + (rewards.rejected_Q / beta + half).square()


def anchored_up(rewards: Rewards, parameters: Parameters) -> Tensor:
    """1 - sigmoid(r_w) + sigmoid(r_l): chosen up, rejected down, each against the reference."""
    return torch.sigmoid(-rewards.chosen_Q) + torch.sigmoid(rewards.rejected_Q)


def anchored_down(rewards: Rewards, parameters: Parameters) -> Tensor:
    """sigmoid(r_w) + 1 - sigmoid(r_w - r_l): both down, the rejected one further."""
    return torch.sigmoid(rewards.chosen_Q) + torch.sigmoid(-rewards.lead_Q)


def rank_matched(rewards: Rewards, parameters: Parameters) -> Tensor:
    """-log sigmoid(r_w(i) - r_l(i)), the i-th smallest chosen reward of the step against the i-th smallest rejected.

    A pair meets two partners, one for each side, whose rewards are constants to it. It takes half of both losses
    as its value, so that the step's sum counts each match once, and the whole gradient with respect to its own sides.
    """
    statistics = rewards.responses.statistics
    as_chosen_Q = -F.logsigmoid(rewards.chosen_Q - statistics["rejected_partner"])
    as_rejected_Q = -F.logsigmoid(statistics["chosen_partner"] - rewards.rejected_Q)
    both_Q = as_chosen_Q + as_rejected_Q
    return both_Q - both_Q.detach() / 2


def only_the_extra(rewards: Rewards, parameters: Parameters) -> Tensor:
    """0: a row that is its extra term."""
    # Not a new tensor of zeros: the loss needs the shape, the device and a graph to call backward on.
    return 0 * rewards.chosen_Q


# ---------------------------------------------------------------- the link of a whole list


def plackett_luce(rewards: Rewards, parameters: Parameters) -> Tensor:
    """-log P(ranking) = sum_k log sum_{j >= k} e^(r_j - r_k), per tree [P]; the logistic link for a pair.

    Raises:
        DataError: a list whose scores have ties.
    """
    batch, reward_B = rewards.responses.batch, rewards.reward_B
    refuse_ties(batch, "dpo_pl", "dpo")
    tree_B = batch.tree_B.to(reward_B.device)
    sizes_P = torch.bincount(tree_B, minlength=batch.num_trees)
    place_B = torch.arange(len(tree_B), device=tree_B.device) - (sizes_P.cumsum(0) - sizes_P)[tree_B]
    # Absent ranks hold a reward so low that it adds nothing; -inf would make its gradient NaN.
    table = reward_B.new_full((batch.num_trees, int(sizes_P.max())), torch.finfo(reward_B.dtype).min / 4)
    table = table.index_put((tree_B, place_B), reward_B)
    # Row by row the log-sum-exp over rank k and all worse ones: the candidates left when rank k is drawn.
    normaliser = table.flip(1).logcumsumexp(1).flip(1)
    return tree_sums(normaliser[tree_B, place_B] - reward_B, batch)


# ---------------------------------------------------------------- margins, in reward units


def target_margin(responses: Responses, pairs: Pairs, parameters: Parameters) -> Tensor | float:
    return parameters["gamma"]


def annotated_margin(responses: Responses, pairs: Pairs, parameters: Parameters) -> Tensor | float:
    if responses.batch.margin_P is None:
        raise ConfigError(
            "this objective uses the annotators' margins and the rows have none",
            where="pairwise_loss",
            expected="a margin per pair",
            remedy="name the column that holds the margin in `data.columns`, or use dpo",
        )
    return parameters["margin_scale"] * responses.batch.margin_P.to(responses.logprob_B)[pairs.tree_Q]


def chosen_shortfall(responses: Responses, pairs: Pairs, parameters: Parameters) -> Tensor | float:
    """What the chosen response lost since the start, times `penalty`; it carries a gradient."""
    chosen_Q, _ = pairs.sides(responses.against_reference())
    return parameters["beta"] * parameters["penalty"] * F.relu(-chosen_Q)


def rank_matched_margin(responses: Responses, pairs: Pairs, parameters: Parameters) -> Tensor | float:
    """Turns the pair's own reference margin into that of the reference pair of the same rank in the step.

    With u = log π(y_w)/π(y_l) of the policy and v that of the reference, beta (u - v) - this = beta (u - v_matched).
    """
    return parameters["beta"] * responses.statistics["reference_offset"]


# ---------------------------------------------------------------- extra terms on the chosen response


def nll_sum(responses: Responses, pairs: Pairs) -> Tensor:
    chosen_Q, _ = pairs.sides(responses.logprob_B)
    return -chosen_Q


def nll_mean(responses: Responses, pairs: Pairs) -> Tensor:
    chosen_Q, _ = pairs.sides(mean_or_zero(responses.logprob_B, responses.tokens_B))
    return -chosen_Q


# ---------------------------------------------------------------- weights of pairs


def on_policy_weight(responses: Responses, pairs: Pairs) -> Tensor:
    """min(1, w(y_w) w(y_l)) with w(y) = exp(1/|y| sum_t log(π(y_t) / sum_v π(v)^2)); no gradient.

    The denominator is what a token sampled from the policy would have on average, so that its own samples weigh
    about 1 however certain it is. The bound is the authors' (wzhouad/WPO, scripts/run_wpo.py), on the pair and not on
    each side: without it a pair of greedy answers, whose every token beats that average, would count several times as
    much as a pair of samples, and raise the learning rate for what the policy says already.
    """
    if responses.log_collision_N is None:
        raise ConfigError(
            "this objective weighs pairs by the policy's own distribution and was not given it",
            where="pairwise_loss",
            found="log_collision_N=None",
            remedy="ask the policy for it: policy(batch, Wants(collision=True))",
        )
    # Detached: otherwise a pair could lower its loss by making itself unlikely, and so count less.
    aligned_N = (responses.logprob_N - responses.log_collision_N.to(responses.logprob_N)).detach()
    weight_B = mean_or_zero(branch_sums(aligned_N, responses.batch), responses.tokens_B).exp()
    chosen_Q, rejected_Q = pairs.sides(weight_B)
    return (chosen_Q * rejected_Q).clamp(max=1)


# ---------------------------------------------------------------- statistics of the step


def _pair_rewards(responses: Responses, parameters: Parameters, what: str) -> tuple[Tensor, Tensor]:
    pairs = Pairs.of(responses.batch, responses.logprob_B)
    pairs.require_trees(what)
    return pairs.sides(parameters["beta"] * responses.against_reference())


def _both_rewards(responses: Responses, parameters: Parameters) -> dict[str, Tensor]:
    chosen_P, rejected_P = _pair_rewards(responses, parameters, "a coupling of chosen and rejected rewards")
    return {"chosen": chosen_P, "rejected": rejected_P}


def _mean_reward(observed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    mean = torch.cat([observed["chosen"], observed["rejected"]]).mean()
    return {"shift": mean.expand_as(observed["chosen"])}


def _partners(observed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    chosen_P, rejected_P = observed["chosen"], observed["rejected"]
    return {
        "rejected_partner": _of_same_rank(chosen_P, rejected_P),
        "chosen_partner": _of_same_rank(rejected_P, chosen_P),
    }


def _policy_and_reference(responses: Responses, parameters: Parameters) -> dict[str, Tensor]:
    pairs = Pairs.of(responses.batch, responses.logprob_B)
    pairs.require_trees("a coupling of policy and reference margins")
    chosen_P, rejected_P = pairs.sides(responses.logprob_B)
    chosen_ratio_P, rejected_ratio_P = pairs.sides(responses.against_reference())
    policy_P = chosen_P - rejected_P
    return {"policy": policy_P, "reference": policy_P - (chosen_ratio_P - rejected_ratio_P)}


def _reference_offsets(observed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    matched_P = _of_same_rank(observed["policy"], observed["reference"])
    return {"reference_offset": matched_P - observed["reference"]}


def _of_same_rank(own_P: Tensor, others_P: Tensor) -> Tensor:
    """For each of `own_P` the value of `others_P` that has its rank; equal values keep their order."""
    # Stable, or tied rewards would be matched differently from run to run.
    return torch.empty_like(others_P).index_copy(0, own_P.argsort(stable=True), others_P.sort().values)


STEP_MEAN = Coupling(_both_rewards, _mean_reward)
STEP_RANKS = Coupling(_both_rewards, _partners)
STEP_REFERENCE_RANKS = Coupling(_policy_and_reference, _reference_offsets)
