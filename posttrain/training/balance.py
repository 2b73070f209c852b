"""Whether a stage adds the load-balancing loss of a mixture of experts, how much of it, and the check that says so.

algorithm = balanced(algorithm, policy, stage)
check = check_router(algorithm, policy)          # None for a model without experts
"""

from __future__ import annotations

from dataclasses import replace

from posttrain.config import Reward, TrainingStage
from posttrain.errors import ConfigError
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.router import RouterLoss, has_router, why_not
from posttrain.training.checks.preflight import Check
from posttrain.training.objectives import Algorithm

KEY = "router_aux_loss_coef"


def balanced(algorithm: Algorithm, policy: TreeModel, stage: TrainingStage) -> Algorithm:
    """The algorithm with the stage's load-balancing loss, if it has one.

    Raises:
        ConfigError: a weight was asked for, and the model has no such loss.
    """
    rule, asked = policy.routers.rule, stage.router_aux_loss_coef
    if rule is None and asked not in ("auto", 0):
        experts = has_router(policy.model)
        raise ConfigError(
            "this model has no load-balancing loss to weigh",
            where=KEY,
            found=f"{asked:g}, and {why_not(policy.model) if experts else 'a model without experts'}",
            remedy=f"remove `{KEY}`, or start from a mixture of experts such as Qwen3-MoE or Mixtral",
        )
    if rule is None:
        return algorithm
    own = 0.0 if isinstance(stage, Reward) else rule.coefficient
    coefficient = own if asked == "auto" else float(asked)
    if not coefficient:
        return replace(algorithm, router=None)
    return replace(algorithm, router=RouterLoss(coefficient))


def check_router(algorithm: Algorithm, policy: TreeModel) -> Check | None:
    """What is done about the balance of the experts; nothing is dropped without a word."""
    family = type(policy.transformer).__name__
    if not has_router(policy.model):
        return None
    if algorithm.router is not None:
        weight = algorithm.router.coefficient
        detail = f"the load-balancing loss of {family} is added with weight {weight:g} ({KEY})"
        return Check("router", "experts", "pass", detail, {"coefficient": weight})
    if policy.routers.rule is not None:
        detail = f"the load-balancing loss of {family} is not added: {KEY} is 0 here"
        return Check("router", "experts", "pass", detail, {"coefficient": 0.0})
    detail = f"router loss not available: {why_not(policy.model)}, so nothing keeps its experts in balance"
    remedy = "a low learning rate, an adapter, or a short run move the router little"
    return Check("router", "experts", "warn", detail, {"coefficient": None}, remedy)
