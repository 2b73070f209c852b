"""Unpaired feedback: one response, called good or bad.

    loss of a response = label_weight * link(+-(r - point)), + for good and - for bad
    r = beta * Σ log π/π_ref

    link    turns how far a response is on its side of the reference point into a loss
    point   what r is compared with: a KL estimate from mismatched completions (kto), the step's mean reward (bco), 0

The step's loss is the mean over its responses. To add an objective, add a row to `FEEDBACK`.

Deviations from the papers
 1. KTO's reference point is estimated over the whole *step*: beta * max(0, mean of log π/π_ref of mismatched
    completions), whatever the split into micro-batches (the authors' code and TRL: over what one forward pass holds, on
    all devices). It carries no gradient, as in the paper.
 2. The mismatch is a derangement of the step's rows, drawn anew each step (`posttrain.data.mismatch`); the authors'
    code and TRL shift each batch by one. A completion is cut where, behind the other prompt, it would be longer than
    the step's longest row.
 3. The loss of KTO is lambda (1 - sigmoid) for lambda - v of the paper's Eq. 7 with v = lambda sigmoid: the same thing.
 4. BCO's reward shift is the mean reward of the *step*, where the authors' code keeps a running mean over all steps: it
    needs no state, so that a resumed run is bit for bit the same. Their underlying-distribution matching (weights from
    a classifier of prompts) is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from posttrain.errors import ConfigError
from posttrain.lazy_torch import F, torch
from posttrain.losses.pairwise import PAIRWISE, PARAMETERS, PairwiseRow
from posttrain.losses.parameters import Parameter, resolve
from posttrain.losses.preference import kl_metrics
from posttrain.losses.reduce import loss_mean, over_denominator, token_metrics
from posttrain.losses.responses import Coupling, Parameters, Responses, StepStatistics, no_reference
from posttrain.outputs import LossOutput, Mean, Metric, TokenLogprobs
from posttrain.types import Batch, Count

if TYPE_CHECKING:
    from torch import Tensor

# ---------------------------------------------------------------- links


def prospect(ahead_P: Tensor) -> Tensor:
    """1 - sigmoid(ahead): bounded, so that a response far on the wrong side is given up."""
    return torch.sigmoid(-ahead_P)


def classifier(ahead_P: Tensor) -> Tensor:
    """-log sigmoid(ahead)."""
    return -F.logsigmoid(ahead_P)


# ---------------------------------------------------------------- reference points


def _log_ratio(responses: Responses, parameters: Parameters) -> dict[str, Tensor]:
    return {"log_ratio": responses.against_reference()}


def _kl_of_mismatched(observed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """max(0, mean): a KL is not negative, and four completions of [2, 8, 4, 6] nats give 5."""
    ratios_P = observed["log_ratio"]
    return {"point": ratios_P.mean().clamp(min=0).expand_as(ratios_P)}


def _mean(observed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ratios_P = observed["log_ratio"]
    # No clamp: unlike a KL, a mean reward may lie on either side of 0.
    return {"point": ratios_P.mean().expand_as(ratios_P)}


# Other rows' completions, as KTO estimates its KL: the rows' own are what the loss pushes, and would drag the point
# along.
MISMATCHED_KL = Coupling(_log_ratio, _kl_of_mismatched, mismatched=True)
MEAN_REWARD = Coupling(_log_ratio, _mean)

# ---------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """One objective: FeedbackRow(prospect, MISMATCHED_KL, {"beta": 0.1, ...}, "where it is from")."""

    link: Callable[[Tensor], Tensor]
    coupling: Coupling | None
    """Where the reference point comes from; None is 0."""
    defaults: Mapping[str, float]
    """The row's parameters, all of them, with the values of `source`."""
    source: str

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def needs_margins(self) -> bool:
        return False

    def resolve(self, given: Parameters, *, where: str = "feedback objective") -> dict[str, float]:
        """The row's defaults with `given` over them, all checked: what `feedback_loss` takes.

        FEEDBACK["kto"].resolve({"beta": 0.2})["desirable_weight"] == 1.0

        Raises:
            UnknownKeyError: a parameter that the row does not have; says which rows do, and the nearest name.
            ConfigError: a value out of range.
        """
        return resolve(given, self.defaults, OBJECTIVE_PARAMETERS, where=where, owners=objective_owners())


FEEDBACK: Mapping[str, FeedbackRow] = MappingProxyType(
    {
        "kto": FeedbackRow(
            prospect,
            MISMATCHED_KL,
            {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
            "Ethayarajh et al. 2024 (KTO), arXiv:2402.01306, Eq. 7 and 8; beta of Sec. 4, weights for balanced data",
        ),
        "bco": FeedbackRow(
            classifier,
            MEAN_REWARD,
            {"beta": 0.01, "desirable_weight": 1.0, "undesirable_weight": 1.0},
            "Jung et al. 2024 (BCO), arXiv:2404.04656, the classifier with reward shift; beta of App. C",
        ),
        "apo_zero_unpaired": FeedbackRow(
            prospect,
            None,
            {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
            "D'Oosterlinck et al. 2024 (APO), arXiv:2408.06266, Eq. 7 with each side on its own; beta of Sec. 5.2",
        ),
    }
)

FEEDBACK_PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "beta": PARAMETERS["beta"],
        "desirable_weight": Parameter("weight of a good response (lambda_D)", above=0.0),
        "undesirable_weight": Parameter("weight of a bad response (lambda_U)", above=0.0),
    }
)

OBJECTIVES: Mapping[str, PairwiseRow | FeedbackRow] = MappingProxyType({**PAIRWISE, **FEEDBACK})
"""Both tables: every preference method, by name."""
OBJECTIVE_PARAMETERS: Mapping[str, Parameter] = MappingProxyType({**PARAMETERS, **FEEDBACK_PARAMETERS})


def objective_owners() -> dict[str, list[str]]:
    """Which methods have a parameter: objective_owners()["desirable_weight"][0] == "kto"."""
    return {key: [name for name, row in OBJECTIVES.items() if key in row.defaults] for key in OBJECTIVE_PARAMETERS}


# ---------------------------------------------------------------- the loss


def feedback_loss(
    row: FeedbackRow,
    parameters: Parameters,
    policy: TokenLogprobs,
    reference_N: Tensor | None,
    batch: Batch,
    denominator: Count,
    statistics: StepStatistics | None = None,
) -> LossOutput:
    """Mean over the *step's* responses of the row's loss.

    Args:
        parameters: all of the row's, as `row.resolve` gives them; they are not checked again here.
        batch: trees of one branch, each with its label.
        denominator: count of the whole step, over all micro-batches and ranks; `trees` is used.
        statistics: {"point": [P]}, the reference point in nats; None where the batch is the whole step and the row
            measures the batch's own responses. `kto` measures mismatched completions, so it needs them.

    Returns:
        loss, metrics (for feedback, `chosen` in a metric's name means good and `rejected` bad), and per tree `rewards`,
        `logprob` (sum, nats), `tokens` and `good` (1 or 0).

    Raises:
        ConfigError: the reference, the labels or the reference point are missing.
    """
    assert batch.num_branches == batch.num_trees, "feedback has one response per tree"
    if reference_N is None:
        raise no_reference()
    good_P = _labels(batch).to(policy.logprobs_N.device)
    responses = Responses.of(policy, reference_N, batch)
    if row.coupling is not None and statistics is None:
        statistics = row.coupling.of_batch(responses, parameters)
    beta = parameters["beta"]
    reward_P = beta * responses.against_reference()
    # Statistics are log-ratios in nats; rewards are beta times those.
    point_P = beta * statistics["point"].to(reward_P) if statistics else torch.zeros_like(reward_P)
    ahead_P = torch.where(good_P, reward_P - point_P, point_P - reward_P)
    # Looked up by the label: False is 0, True is 1.
    weights = reward_P.new_tensor([parameters["undesirable_weight"], parameters["desirable_weight"]])
    loss_P = weights[good_P.long()] * row.link(ahead_P)
    return LossOutput(
        loss=over_denominator(loss_P.sum(), denominator.trees),
        metrics={
            "loss": loss_mean(loss_P.sum(), batch.num_trees),
            # A tie counts half, as for pairs: before the first update every response sits on the reference point.
            "reward_accuracy": Mean(((torch.sign(ahead_P.detach()) + 1) / 2).sum(), batch.num_trees),
            "reference_point": Mean(point_P.sum(), batch.num_trees),
            "good_share": Mean(good_P.sum(), batch.num_trees),
        }
        | _by_label(responses, reward_P.detach(), good_P)
        | kl_metrics(policy, reference_N)
        | token_metrics(policy, batch),
        per_tree={
            "rewards": reward_P.detach(),
            "logprob": responses.logprob_B.detach(),
            "tokens": responses.tokens_B,
            "good": good_P.float(),
        },
        per_branch={"logprob": responses.logprob_B.detach()},
    )


def _labels(batch: Batch) -> Tensor:
    """Which responses are good, [P] of bool."""
    if batch.label_P is None:
        raise ConfigError(
            "this objective needs to know which responses are good, and the rows do not say",
            where="feedback_loss",
            expected="a label per row",
            remedy="give rows of feedback (prompt, completion, label), or comparisons",
        )
    return batch.label_P


def _by_label(responses: Responses, reward_P: Tensor, good_P: Tensor) -> dict[str, Metric]:
    """Rewards, log-probs and lengths of either label; nothing of a label that the batch does not hold."""
    change_P, logprob_P = responses.against_reference().detach(), responses.logprob_B.detach()
    metrics: dict[str, Metric] = {}
    for side, of_side_P in (("chosen", good_P), ("rejected", ~good_P)):
        count, tokens = int(of_side_P.sum()), responses.tokens_B[of_side_P].sum()
        if not count:
            continue
        metrics |= {
            f"rewards_{side}": Mean(reward_P[of_side_P].sum(), count),
            f"logprob_per_token_{side}": Mean(logprob_P[of_side_P].sum(), tokens),
            f"length_{side}": Mean(tokens, count),
            f"logprob_{side}_change": Mean(change_P[of_side_P].sum(), count),
        }
    return metrics
