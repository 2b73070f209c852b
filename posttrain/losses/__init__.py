"""Objectives as pure functions: log-probs in, `LossOutput` out. Needs torch and nothing else, and loads it when the
first number is computed.

A loss knows no model, config, device group or file. It divides by the step's *global* count, so the gradients of
micro-batches and ranks add up to the gradient of the whole step, however the step is cut.

A loss trusts its row: parameters are checked once, before the first step, by the row's own `resolve`:

    row = PAIRWISE["dpo"]
    parameters = row.resolve({"beta": 0.2})        # an error that names the parameter, its range and the nearest name
    out = pairwise_loss(row, parameters, policy, reference_N, batch, denominator)

    sft.py         imitation
    pairwise.py    the offline preference family, one literal row per objective
    scores.py      what a response is worth: the table's first column
    links.py       how the rewards of a pair become a loss: the others
    preference.py  the loss of a batch of pairs or ranked lists, by one row or a mix of several
    feedback.py    single responses that are good or bad: the second table
    dynamic_beta.py  the row `beta_dpo`, which remembers earlier steps
    responses.py   what all of them see of a batch, and the statistics of a step that some need
    online.py      the online family, one literal row per algorithm: the third table
    surrogates.py  its columns: ratio, surrogate, reduction; online_fit.py says which go together
    corrections.py its columns for tokens that another policy sampled: weights, masks, what ratios start from
    policy.py      the loss of a batch of responses, by one of its rows; policy_metrics.py is what it reports
    value.py       the value model's loss
    custom.py      a user's own function of pairs or tokens
    reward.py      reward models on ordered or scored responses; reward_rule.py makes rewards of the head's outputs
    process.py     reward models of steps
    distillation.py  a teacher's distributions over the whole vocabulary
    kl.py          KL between policy and reference: estimators and exact values, named by direction
    reduce.py      sums and means over tokens, branches and sides
    parameters.py  what a parameter means and where it may lie

Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain.losses.custom import custom_pairwise_loss, custom_token_loss, objective
    from posttrain.losses.distillation import distillation_loss
    from posttrain.losses.feedback import FEEDBACK, OBJECTIVES, FeedbackRow, feedback_loss
    from posttrain.losses.online import ONLINE, OnlineRow
    from posttrain.losses.pairwise import PAIRWISE, PARAMETERS, PairwiseRow
    from posttrain.losses.policy import policy_loss
    from posttrain.losses.preference import Term, mixed_loss, pairwise_loss
    from posttrain.losses.sft import sft_loss
    from posttrain.losses.value import value_loss

_HOMES = {
    "FEEDBACK": "feedback",
    "FeedbackRow": "feedback",
    "OBJECTIVES": "feedback",
    "ONLINE": "online",
    "OnlineRow": "online",
    "PAIRWISE": "pairwise",
    "PARAMETERS": "pairwise",
    "PairwiseRow": "pairwise",
    "Term": "preference",
    "custom_pairwise_loss": "custom",
    "custom_token_loss": "custom",
    "distillation_loss": "distillation",
    "feedback_loss": "feedback",
    "mixed_loss": "preference",
    "objective": "custom",
    "pairwise_loss": "preference",
    "policy_loss": "policy",
    "sft_loss": "sft",
    "value_loss": "value",
}
"""Public name -> module that holds it."""

__all__ = [
    "FEEDBACK",
    "OBJECTIVES",
    "ONLINE",
    "PAIRWISE",
    "PARAMETERS",
    "FeedbackRow",
    "OnlineRow",
    "PairwiseRow",
    "Term",
    "custom_pairwise_loss",
    "custom_token_loss",
    "distillation_loss",
    "feedback_loss",
    "mixed_loss",
    "objective",
    "pairwise_loss",
    "policy_loss",
    "sft_loss",
    "value_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
