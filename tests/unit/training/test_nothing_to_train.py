"""A step without a trained token: every loss reports 0 with a count of 0 (or what its untrained rows are worth), never
NaN, and gives a gradient of 0."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from posttrain.data.trees import collate
from posttrain.diagnostics.metrics import counts, merge, values
from posttrain.losses.distillation import distillation_loss
from posttrain.losses.online import ONLINE
from posttrain.losses.policy import policy_loss
from posttrain.losses.reward_rule import RewardRule
from posttrain.losses.value import value_loss
from posttrain.models.reference import LiveReference
from posttrain.models.tree.logprobs import Policy
from posttrain.outputs import LossOutput, Scores, TokenLogprobs
from posttrain.training.objectives import ALGORITHMS, algorithm, mix, reward_algorithm
from posttrain.training.step import accumulate, start_loss
from posttrain.types import Batch, Comparison, Feedback
from tests.fixtures import tiny_model
from tests.loss_batches import batch_of, tree, with_collisions
from tests.online_batches import group
from tests.training import trees_for

COLUMNS = ("advantages", "old_logprobs", "reference_logprobs", "sampler_logprobs", "values", "returns")
TERMS = ("loss", "preference_loss", "nll_loss", "policy_loss", "kl_loss", "value_loss")


def _holds(out: LossOutput, leaf: torch.Tensor, *, counted: bool) -> None:
    found = {name: value for name, value in values(out.metrics).items() if name in TERMS}
    assert found and all(math.isfinite(value) for value in found.values())
    assert math.isfinite(out.loss.item())
    if not counted:  # a mean over tokens or responses: 0, beside a count of no token
        assert set(found.values()) == {0.0} and out.loss.item() == 0.0
        assert values(out.metrics).get("supervised_tokens", 0.0) == 0.0
    (gradient,) = torch.autograd.grad(out.loss, leaf, allow_unused=True)
    assert gradient is None or not gradient.any()


def _empty(kind: type) -> Batch:
    if kind is Comparison:
        return batch_of([(0, 0), (0, 0)], margins=[1.0, 2.0])
    return collate([tree((0,), label=True if kind is Feedback else None, row=1), tree((0,), label=False, row=2)])


def _leaf() -> torch.Tensor:
    return torch.zeros(0, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", [*ALGORITHMS, "mix"])
def test_of_rows(name: str) -> None:
    objective = mix([("dpo", 0.5, {}), ("sft", 0.5, {})]) if name == "mix" else algorithm(name)
    batch, leaf = _empty(objective.kind), _leaf()
    policy = with_collisions(leaf, batch) if objective.wants.collision else TokenLogprobs(leaf)
    reference_N = leaf.detach() if objective.needs_reference else None
    out = start_loss(objective, policy, reference_N, batch, batch.count)
    _holds(out, leaf, counted=objective.unit != "tokens")


@pytest.mark.parametrize("name", ONLINE)
def test_of_completions(name: str) -> None:
    row = ONLINE[name]
    batch, leaf = collate([group([dict.fromkeys(COLUMNS, ())] * 2)]), _leaf()
    policy = TokenLogprobs(leaf, entropy_N=leaf * 1, divergence_N=leaf * 1)
    _holds(policy_loss(row, row.resolve({}), policy, batch, batch.count), leaf, counted=False)


def test_of_distillation_values_and_steps() -> None:
    batch, leaf = collate([group([dict.fromkeys(COLUMNS, ())] * 2)]), _leaf()
    for reduction in ("sequence_mean", "token_mean"):
        out = distillation_loss(leaf * 1, batch, batch.count, reduction=reduction)  # type: ignore[arg-type]
        _holds(out, leaf, counted=False)
    _holds(value_loss(leaf * 1, batch, batch.count), leaf, counted=False)
    steps = replace(collate([tree((0,))]), step_labels_N=torch.zeros(0))
    heads = torch.zeros(1, 1, dtype=torch.float64)
    scores = Scores(heads, steps_SH=leaf.unsqueeze(1))
    _holds(
        reward_algorithm("step_labels", rule=RewardRule()).loss(scores, None, steps, steps.count), leaf, counted=False
    )


def test_an_empty_micro_batch_changes_no_mean() -> None:
    full, empty = batch_of([(2,)]), _empty(int)
    objective = algorithm("sft")
    whole = objective.loss(TokenLogprobs(torch.tensor([-1.0, -2.0])), None, full, full.count)
    nothing = objective.loss(TokenLogprobs(torch.zeros(0)), None, empty, full.count)
    assert values(merge([nothing.metrics, whole.metrics]))["loss"] == 1.5
    assert values(merge([whole.metrics, nothing.metrics]))["loss"] == 1.5


@pytest.mark.parametrize("name", ["sft", "dpo", "ipo", "simpo", "orpo", "kto", "bco"])
def test_a_whole_step_through_a_model(name: str) -> None:
    objective = algorithm(name)
    policy = Policy(tiny_model(vocab=97))
    trees = [
        replace(one, branches=tuple(replace(b, loss_mask=np.zeros_like(b.loss_mask)) for b in one.branches))
        for one in trees_for(objective, 3, seed=0)
    ]
    reference = LiveReference(policy) if objective.needs_reference else None
    measured = accumulate(policy, reference, objective, trees, 64, step=0)
    found = values(measured.metrics)
    assert math.isfinite(found["loss"]) and found["supervised_tokens"] == 0
    assert not any(p.grad is not None and p.grad.any() for p in policy.model.parameters())
    if name == "sft":
        assert found["loss"] == 0.0 and counts(measured.metrics)["loss"] == 0
