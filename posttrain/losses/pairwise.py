"""The offline preference family: a literal table over orthogonal choices.

    loss of a pair = preference_weight * link(r_w - r_l - margin) + nll_weight * extra

    score   what the policy (and the reference) say about one response: one number per branch
    reward  r = beta * score; the implicit reward that the metrics report (beta = 1 where a row has no beta)
    link    turns the rewards of a pair into a loss
    margin  how far r_w has to be ahead, in reward units
    extra   a term that anchors the chosen response

The step's loss is the mean over its pairs. To add an objective, add a row to `PAIRWISE`; to add a choice, add one
small function above the table. Recipes, command line and `train/algorithms.py` read the table.

Notation as in `posttrain.types`: N trained tokens, B branches, P pairs; w the chosen (winner), l the rejected side.

Deviations from the papers
 1. A branch without trained tokens has score 0 (its sums and means are 0): loss and gradients stay finite.
 2. Sequence log-ratios sum per-token differences instead of subtracting two long sums: at step 0 they are exactly
    0, and long responses do not lose digits in fp32.
 3. ORPO and CPO: the NLL term is the mean over pairs of the per-token mean over the response. The authors' code
    takes one mean over all tokens of a device's batch (CPO's and TRL's include the prompt), which changes with
    the split into micro-batches. CPO's paper writes the sum over the response; its published models used the mean.
 4. ORPO's odds are taken no closer to certainty than 1 - p = machine epsilon, where they would be infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.errors import ConfigError
from posttrain.losses.kl import k1, k2, k3
from posttrain.losses.parameters import Parameter, resolve
from posttrain.losses.reduce import branch_sums, branch_tokens, mean_or_zero, over_denominator, sides, token_metrics
from posttrain.types import Batch, Count, LossOutput, Mean, Metric, TokenLogprobs

# ---------------------------------------------------------------- what the pieces receive


@dataclass(frozen=True, slots=True)
class Responses:
    """A batch of pairs, one value per branch, chosen and rejected in turn.

    Responses(logprob_B=[-12.0, -15.0], tokens_B=[20., 24.], log_ratio_B=[0.5, -0.3], margin_P=None)
    """

    logprob_B: Tensor
    """Sum over the response's tokens of log policy, nats."""
    tokens_B: Tensor
    log_ratio_B: Tensor | None
    """Sum over the response's tokens of log policy - log reference; None without a reference."""
    margin_P: Tensor | None
    """The annotators' margin of each pair."""

    def against_reference(self) -> Tensor:
        if self.log_ratio_B is None:
            raise ConfigError(
                "this objective compares the policy with its start and got no reference log-probs",
                where="pairwise_loss",
                found="reference_N=None",
                expected="the reference's log-probs of the same tokens",
                remedy="pass reference_N, or choose an objective without a reference: simpo, orpo or cpo",
            )
        return self.log_ratio_B


@dataclass(frozen=True, slots=True)
class Rewards:
    """beta * score of both sides, and the margin that the chosen side owes: each [P]."""

    chosen_P: Tensor
    rejected_P: Tensor
    margin_P: Tensor | float = 0.0

    @property
    def lead_P(self) -> Tensor:
        return self.chosen_P - self.rejected_P - self.margin_P


Parameters = Mapping[str, float]

# ---------------------------------------------------------------- scores: one number per response


@dataclass(frozen=True, slots=True)
class Score:
    of: Callable[[Responses], Tensor]
    formula: str
    needs_reference: bool


def _log_ratio_sum(responses: Responses) -> Tensor:
    return responses.against_reference()


def _log_ratio_mean(responses: Responses) -> Tensor:
    return mean_or_zero(responses.against_reference(), responses.tokens_B)


def _logprob_sum(responses: Responses) -> Tensor:
    return responses.logprob_B


def _logprob_mean(responses: Responses) -> Tensor:
    return mean_or_zero(responses.logprob_B, responses.tokens_B)


def _log_odds_of_mean(responses: Responses) -> Tensor:
    """log(p / (1 - p)) with log p the per-token mean (ORPO Eq. 3 and 4): a whole sequence's p is 0 in fp32."""
    mean_B = mean_or_zero(responses.logprob_B, responses.tokens_B)
    # log(1 - p) by expm1: 1 - exp(x) cancels to 0 for x near 0. At p = 1 itself the odds are infinite.
    mean_B = mean_B.clamp(max=-torch.finfo(mean_B.dtype).eps)
    log_odds_B = mean_B - torch.log(-torch.expm1(mean_B))
    return torch.where(responses.tokens_B > 0, log_odds_B, torch.zeros_like(log_odds_B))


LOG_RATIO_SUM = Score(_log_ratio_sum, "Σ_t log π/π_ref", needs_reference=True)
LOG_RATIO_MEAN = Score(_log_ratio_mean, "1/|y| Σ_t log π/π_ref", needs_reference=True)
LOGPROB_SUM = Score(_logprob_sum, "Σ_t log π", needs_reference=False)
LOGPROB_MEAN = Score(_logprob_mean, "1/|y| Σ_t log π", needs_reference=False)
LOG_ODDS_OF_MEAN = Score(_log_odds_of_mean, "log p/(1-p), log p = 1/|y| Σ_t log π", needs_reference=False)

# ---------------------------------------------------------------- links: rewards of a pair to a loss


def logistic(rewards: Rewards, parameters: Parameters) -> Tensor:
    """-log sigmoid(lead): the Bradley-Terry likelihood."""
    return -F.logsigmoid(rewards.lead_P)


def smoothed_logistic(rewards: Rewards, parameters: Parameters) -> Tensor:
    """Expected logistic loss if a share `label_smoothing` of the labels is flipped; it has a finite optimum."""
    flipped = parameters["label_smoothing"]
    return -(1 - flipped) * F.logsigmoid(rewards.lead_P) - flipped * F.logsigmoid(-rewards.lead_P)


def debiased_logistic(rewards: Rewards, parameters: Parameters) -> Tensor:
    """Unbiased for the logistic loss on clean labels when a share `label_smoothing` is flipped; it can be negative."""
    flipped = parameters["label_smoothing"]
    on_noisy_labels = -(1 - flipped) * F.logsigmoid(rewards.lead_P) + flipped * F.logsigmoid(-rewards.lead_P)
    return on_noisy_labels / (1 - 2 * flipped)


def hinge(rewards: Rewards, parameters: Parameters) -> Tensor:
    """max(0, 1 - lead): a pair that is a whole reward ahead is left alone."""
    return F.relu(1 - rewards.lead_P)


def squared(rewards: Rewards, parameters: Parameters) -> Tensor:
    """(h - 1 / (2 beta))^2 with h = lead / beta: a pair has a target, so a certain label cannot pull it to infinity."""
    beta = parameters["beta"]
    return (rewards.lead_P / beta - 1 / (2 * beta)).square()


# ---------------------------------------------------------------- margins, in reward units


def target_margin(responses: Responses, parameters: Parameters) -> Tensor | float:
    return parameters["gamma"]


def annotated_margin(responses: Responses, parameters: Parameters) -> Tensor | float:
    if responses.margin_P is None:
        raise ConfigError(
            "this objective uses the annotators' margins and the rows have none",
            where="pairwise_loss",
            expected="a margin per pair",
            remedy="name the column that holds the margin in `data.columns`, or use dpo",
        )
    return parameters["margin_scale"] * responses.margin_P.to(responses.logprob_B)


def chosen_shortfall(responses: Responses, parameters: Parameters) -> Tensor | float:
    """What the chosen response lost since the start, times `penalty`; it carries a gradient."""
    chosen_P, _ = sides(responses.against_reference())
    return parameters["beta"] * parameters["penalty"] * F.relu(-chosen_P)


# ---------------------------------------------------------------- extra terms on the chosen response


def nll_sum(responses: Responses) -> Tensor:
    chosen_P, _ = sides(responses.logprob_B)
    return -chosen_P


def nll_mean(responses: Responses) -> Tensor:
    chosen_P, _ = sides(mean_or_zero(responses.logprob_B, responses.tokens_B))
    return -chosen_P


# ---------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class PairwiseRow:
    """One objective: PairwiseRow(LOG_RATIO_SUM, logistic, {"beta": 0.1}, "where it is from")."""

    score: Score
    link: Callable[[Rewards, Parameters], Tensor]
    defaults: Mapping[str, float]
    """The row's parameters, all of them, with the values of `source`."""
    source: str
    margin: Callable[[Responses, Parameters], Tensor | float] | None = None
    extra: Callable[[Responses], Tensor] | None = None

    @property
    def needs_reference(self) -> bool:
        return self.score.needs_reference


PAIRWISE: Mapping[str, PairwiseRow] = MappingProxyType(
    {
        "dpo": PairwiseRow(
            LOG_RATIO_SUM,
            logistic,
            {"beta": 0.1},
            "Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; beta of App. B",
        ),
        "cdpo": PairwiseRow(
            LOG_RATIO_SUM,
            smoothed_logistic,
            {"beta": 0.1, "label_smoothing": 0.1},
            "Mitchell 2023, ericmitchell.ai/cdpo.pdf, Eq. 3; smoothing of the authors' README",
        ),
        "robust": PairwiseRow(
            LOG_RATIO_SUM,
            debiased_logistic,
            {"beta": 0.1, "label_smoothing": 0.1},
            "Chowdhury et al. 2024, arXiv:2403.00409, the rDPO loss; beta of App. B, smoothing of Sec. 6",
        ),
        # The per-token mean is how the authors read their Eq. 17, and it is behind their results (trl#1265,
        # huggingface.co/blog/pref-tuning): the target 1/(2 beta) is a constant, so of a sum it would ask less per
        # token in a long response than in a short one.
        "ipo": PairwiseRow(
            LOG_RATIO_MEAN,
            squared,
            {"beta": 0.1},
            "Azar et al. 2023, arXiv:2310.12036, Eq. 17 with the authors' per-token mean; beta (their tau) of TRL",
        ),
        "ipo_sum": PairwiseRow(
            LOG_RATIO_SUM,
            squared,
            {"beta": 0.1},
            "Azar et al. 2023, arXiv:2310.12036, Eq. 17 as printed and as in the DPO authors' code",
        ),
        "hinge": PairwiseRow(
            LOG_RATIO_SUM,
            hinge,
            {"beta": 0.1},
            "SLiC with a reference: hinge-norm of Liu et al. 2023 (RSO), arXiv:2309.06657; beta (their gamma) of TRL",
        ),
        "dpo_norm": PairwiseRow(
            LOG_RATIO_MEAN,
            logistic,
            {"beta": 5.0},
            "Lambert et al. 2024 (Tulu 3), arXiv:2411.15124, length-normalized DPO; beta of the 8B recipe",
        ),
        "dpo_nll": PairwiseRow(
            LOG_RATIO_SUM,
            logistic,
            {"beta": 0.1, "nll_weight": 1.0},
            "Pang et al. 2024 (Iterative RPO), arXiv:2404.19733, Eq. 1; beta and alpha of their experiments",
            extra=nll_mean,
        ),
        "rpo": PairwiseRow(
            LOG_RATIO_SUM,
            logistic,
            {"beta": 0.01, "nll_weight": 0.005 * 0.01},  # the paper's weight of the sum is eta * beta
            "Liu et al. 2024, arXiv:2405.16436, RPO (Algorithm 2); eta = 0.005 and beta of App. E.1",
            extra=nll_sum,
        ),
        "dpop": PairwiseRow(
            LOG_RATIO_SUM,
            logistic,
            {"beta": 0.3, "penalty": 50.0},
            "Pal et al. 2024 (Smaug), arXiv:2402.13228, the DPOP loss; beta and lambda of Sec. 5",
            margin=chosen_shortfall,
        ),
        "odpo": PairwiseRow(
            LOG_RATIO_SUM,
            logistic,
            {"beta": 0.1, "margin_scale": 1.0},
            "Amini et al. 2024, arXiv:2402.10571, the ODPO loss; alpha of the authors' code, beta of DPO",
            margin=annotated_margin,
        ),
        "simpo": PairwiseRow(
            LOGPROB_MEAN,
            logistic,
            {"beta": 2.0, "gamma": 1.0},
            "Meng et al. 2024, arXiv:2405.14734, Eq. 6; the authors' Llama-3-Base setting, gamma/beta = 0.5",
            margin=target_margin,
        ),
        "cpo": PairwiseRow(
            LOGPROB_SUM,
            logistic,
            {"beta": 0.1, "nll_weight": 1.0},
            "Xu et al. 2024, arXiv:2401.08417, Sec. 3; beta of Sec. 4.2",
            extra=nll_mean,
        ),
        "orpo": PairwiseRow(
            LOG_ODDS_OF_MEAN,
            logistic,
            {"preference_weight": 0.1},
            "Hong et al. 2024, arXiv:2403.07691, Eq. 6 and 7; lambda of Sec. 6.1 (Mistral)",
            extra=nll_mean,
        ),
    }
)

# ---------------------------------------------------------------- parameters

PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "beta": Parameter("scale of the implicit reward; larger holds the policy closer to its start", above=0.0),
        "label_smoothing": Parameter("share of labels believed to be flipped", at_least=0.0, below=0.5),
        "gamma": Parameter("reward by which the chosen response has to be ahead", at_least=0.0),
        "margin_scale": Parameter("reward per unit of annotated margin (alpha in ODPO)", at_least=0.0),
        "penalty": Parameter("weight of what the chosen response lost since the start (lambda in DPOP)", at_least=0.0),
        "nll_weight": Parameter("weight of the chosen response's negative log-likelihood", at_least=0.0),
        "preference_weight": Parameter("weight of the preference term (lambda in ORPO, `beta` in TRL)", above=0.0),
    }
)


def resolve_parameters(row: PairwiseRow, given: Parameters, *, where: str = "pairwise objective") -> dict[str, float]:
    """The row's defaults with `given` over them, all checked; see `posttrain.losses.parameters.resolve`."""
    return resolve(given, row.defaults, PARAMETERS, where=where, owners=owners())


def owners() -> dict[str, list[str]]:
    """Which rows have a parameter: owners()["gamma"] == ["simpo"]."""
    return {key: [name for name, row in PAIRWISE.items() if key in row.defaults] for key in PARAMETERS}


# ---------------------------------------------------------------- the loss


def pairwise_loss(
    row: PairwiseRow,
    parameters: Parameters,
    policy: TokenLogprobs,
    reference_N: Tensor | None,
    batch: Batch,
    denominator: Count,
) -> LossOutput:
    """Mean over the *step's* pairs of the row's loss.

    Args:
        parameters: any of the row's parameters; the others take the row's defaults.
        policy: log-probs of the batch's N trained tokens.
        reference_N: the reference's log-probs of the same tokens; None only where the row needs no reference.
        batch: pairs; branch 2p is the chosen side of pair p and branch 2p + 1 its rejected side.
        denominator: count of the whole step, over all micro-batches and ranks; `trees` is used.

    Returns:
        loss, metrics (`posttrain.diagnostics.metrics.METRICS` says what each means), and per tree `rewards_chosen`,
        `rewards_rejected`, `logprob_chosen`, `logprob_rejected` (sums, nats), `tokens_chosen`, `tokens_rejected`.

    Raises:
        ConfigError: a parameter is out of range; the reference or the annotated margins are missing.
        UnknownKeyError: a parameter that the row does not have.
    """
    assert batch.num_branches == 2 * batch.num_trees, "a batch of pairs has two branches per tree"
    parameters = resolve_parameters(row, parameters)
    if reference_N is not None:
        reference_N = reference_N.detach().to(policy.logprobs_N)
    log_ratio_N = None if reference_N is None else policy.logprobs_N - reference_N
    responses = Responses(
        logprob_B=branch_sums(policy.logprobs_N, batch),
        tokens_B=branch_tokens(batch, policy.logprobs_N),
        log_ratio_B=None if log_ratio_N is None else branch_sums(log_ratio_N, batch),
        margin_P=batch.margin_P,
    )
    chosen_P, rejected_P = sides(parameters.get("beta", 1.0) * row.score.of(responses))
    margin_P = 0.0 if row.margin is None else row.margin(responses, parameters)
    rewards = Rewards(chosen_P, rejected_P, margin_P)

    preference_P = row.link(rewards, parameters)
    loss_P = parameters.get("preference_weight", 1.0) * preference_P
    parts: dict[str, Metric] = {}
    if row.extra is not None:
        extra_P = row.extra(responses)
        loss_P = loss_P + parameters.get("nll_weight", 1.0) * extra_P
        parts = {"preference_loss": _mean(preference_P), "nll_loss": _mean(extra_P)}

    return LossOutput(
        loss=over_denominator(loss_P.sum(), denominator.trees),
        metrics={"loss": _mean(loss_P)}
        | parts
        | _reward_metrics(rewards)
        | _logprob_metrics(responses)
        | _change_metrics(responses, policy, reference_N, batch)
        | token_metrics(policy, batch),
        per_tree=_per_tree(rewards, responses),
    )


def _mean(values_P: Tensor) -> Mean:
    return Mean(values_P.detach().sum(), values_P.shape[0])


def _reward_metrics(rewards: Rewards) -> dict[str, Metric]:
    chosen_P, rejected_P = rewards.chosen_P.detach(), rewards.rejected_P.detach()
    # A tie counts half: a policy that has not moved from its reference is a coin toss, not always wrong.
    correct_P = (torch.sign(chosen_P - rejected_P) + 1) / 2
    return {
        "rewards_chosen": _mean(chosen_P),
        "rewards_rejected": _mean(rejected_P),
        "reward_margin": _mean(chosen_P - rejected_P),
        "reward_accuracy": _mean(correct_P),
    }


def _logprob_metrics(responses: Responses) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    logprobs, tokens = sides(responses.logprob_B.detach()), sides(responses.tokens_B)
    for side, logprob_P, tokens_P in zip(("chosen", "rejected"), logprobs, tokens, strict=True):
        metrics[f"logprob_per_token_{side}"] = Mean(logprob_P.sum(), tokens_P.sum())
        metrics[f"length_{side}"] = _mean(tokens_P)
    return metrics


def _change_metrics(
    responses: Responses, policy: TokenLogprobs, reference_N: Tensor | None, batch: Batch
) -> dict[str, Metric]:
    """How far the policy went from its start on the data's own tokens; nothing without a reference."""
    if responses.log_ratio_B is None or reference_N is None:
        return {}
    chosen_P, rejected_P = sides(responses.log_ratio_B)
    logprobs_N = policy.logprobs_N.detach()
    # k3 grows as e^-r; 80 nats keep its sum over a batch representable in fp32.
    bounded_N = torch.maximum(logprobs_N, reference_N - 80)
    trained = batch.count.tokens
    return {
        "logprob_chosen_change": _mean(chosen_P),
        "logprob_rejected_change": _mean(rejected_P),
        "kl_k1_on_data": Mean(k1(logprobs_N, reference_N).sum(), trained),
        "kl_k2_on_data": Mean(k2(logprobs_N, reference_N).sum(), trained),
        "kl_k3_on_data": Mean(k3(bounded_N, reference_N).sum(), trained),
    }


def _per_tree(rewards: Rewards, responses: Responses) -> dict[str, Tensor]:
    logprob_chosen_P, logprob_rejected_P = sides(responses.logprob_B.detach())
    tokens_chosen_P, tokens_rejected_P = sides(responses.tokens_B)
    return {
        "rewards_chosen": rewards.chosen_P.detach(),
        "rewards_rejected": rewards.rejected_P.detach(),
        "logprob_chosen": logprob_chosen_P,
        "logprob_rejected": logprob_rejected_P,
        "tokens_chosen": tokens_chosen_P,
        "tokens_rejected": tokens_rejected_P,
    }
