"""Objectives of a user's own: the numbers of the rows that they repeat, whatever the split, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import posttrain as pt
from posttrain.diagnostics.metrics import merge, values
from posttrain.errors import ConfigError, PosttrainError, TrainingError, UnknownKeyError
from posttrain.losses.custom import ObjectiveFunction, custom_pairwise_loss, custom_token_loss
from posttrain.losses.sft import sft_loss
from posttrain.outputs import LossOutput, TokenLogprobs
from posttrain.types import Batch
from tests.loss_batches import batch_of, random_pairs, run

Loss = Any


@pt.objective(kind="pairwise", reference=True)
def own_dpo(chosen_P: Tensor, rejected_P: Tensor, start_P: Tensor, other_P: Tensor, beta: float = 0.1) -> Tensor:
    return -logsigmoid(beta * ((chosen_P - start_P) - (rejected_P - other_P)))


@pt.objective(kind="pairwise")
def own_simpo(
    chosen_P: Tensor, rejected_P: Tensor, chosen_tokens_P: Tensor, rejected_tokens_P: Tensor, gamma: float
) -> Any:
    lead_P = 2.0 * (chosen_P / chosen_tokens_P - rejected_P / rejected_tokens_P) - gamma
    return -logsigmoid(lead_P), {"lead": lead_P}


@pt.objective(kind="tokens", reference=True)
def near_the_start(policy: TokenLogprobs, reference_N: Tensor, weight: float = 0.0) -> Tensor:
    return -policy.logprobs_N + weight * (policy.logprobs_N - reference_N).square()


def pairwise(
    function: ObjectiveFunction, policy_N: Tensor, reference_N: Tensor | None, batch: Batch, **given: Any
) -> LossOutput:
    parameters = function.resolve(given, where="test")
    return custom_pairwise_loss(function, parameters, TokenLogprobs(policy_N), reference_N, batch, batch.count)


def tokens(
    function: ObjectiveFunction, policy_N: Tensor, reference_N: Tensor, batch: Batch, **given: Any
) -> LossOutput:
    parameters = function.resolve(given, where="test")
    return custom_token_loss(function, parameters, TokenLogprobs(policy_N), reference_N, batch, batch.count)


def slopes(loss: Loss, policy_N: Tensor) -> tuple[LossOutput, Tensor]:
    given = policy_N.clone().requires_grad_()
    out = loss(given)
    (gradient,) = torch.autograd.grad(out.loss, given)
    return out, gradient


def test_dpo_written_by_hand_is_the_row() -> None:
    batch, policy_N, reference_N = random_pairs(6)
    own, gradient = slopes(lambda given: pairwise(own_dpo, given, reference_N, batch, beta=0.3), policy_N)
    row, expected = slopes(lambda given: run("dpo", given, reference_N, batch, beta=0.3), policy_N)
    assert torch.allclose(own.loss, row.loss, rtol=1e-12) and torch.allclose(gradient, expected, rtol=1e-9)
    assert {name: pytest.approx(value) for name, value in values(own.metrics).items()} == values(row.metrics)
    assert torch.allclose(own.per_tree["rewards_chosen"], row.per_tree["rewards_chosen"])


def test_a_loss_with_lengths_has_its_own_metric() -> None:
    batch, policy_N, _ = random_pairs(5)
    own = pairwise(own_simpo, policy_N, None, batch, gamma=1.0)
    row = run("simpo", policy_N, None, batch, beta=2.0, gamma=1.0)
    assert torch.allclose(own.loss, row.loss)
    assert own.metrics["lead"].value == pytest.approx(row.metrics["reward_margin"].value - 1.0)


def test_a_ranked_list_is_the_mean_over_its_pairs() -> None:
    batch = batch_of([(2, 3, 1), (2, 2)])
    policy_N = -torch.rand(batch.count.tokens, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(
        pairwise(own_dpo, policy_N, 0.5 * policy_N, batch).loss, run("dpo", policy_N, 0.5 * policy_N, batch).loss
    )


def test_sft_written_by_hand_is_sft() -> None:
    batch, policy_N, reference_N = random_pairs(4)
    own, gradient = slopes(lambda given: tokens(near_the_start, given, reference_N, batch), policy_N)
    row, expected = slopes(lambda given: sft_loss(TokenLogprobs(given), batch, batch.count), policy_N)
    assert own.loss == row.loss and torch.equal(gradient, expected)
    pulled = tokens(near_the_start, policy_N, reference_N, batch, weight=2.0)
    difference = 2.0 * (policy_N - reference_N).square().mean()
    assert float((pulled.loss - row.loss).detach()) == pytest.approx(float(difference))
    assert pulled.metrics["loss"].value == pytest.approx(float(pulled.loss)) and "kl_k1_on_data" in pulled.metrics


def test_micro_batches_add_up_to_the_step() -> None:
    whole, policy_N, reference_N = random_pairs(2)
    first = int((whole.tree_B[whole.branch_N] == 0).sum())
    lengths = torch.bincount(whole.branch_N).tolist()
    parts = [batch_of([lengths[:2]]), batch_of([lengths[2:]])]
    places = [slice(0, first), slice(first, None)]
    outs = [
        custom_pairwise_loss(own_dpo, {"beta": 0.1}, TokenLogprobs(policy_N[at]), reference_N[at], batch, whole.count)
        for batch, at in zip(parts, places, strict=True)
    ]
    together = pairwise(own_dpo, policy_N, reference_N, whole)
    assert sum(out.loss for out in outs) == pytest.approx(float(together.loss), rel=1e-12)
    assert merge([out.metrics for out in outs])["loss"].value == pytest.approx(together.metrics["loss"].value)


def declared(function: Any, **options: Any) -> ObjectiveFunction:
    return pt.objective(**{"kind": "pairwise", **options})(function)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda chosen_P, rejected_P: (chosen_P - rejected_P).mean(), ["its losses: a tensor of shape []", "[3]"]),
        (lambda chosen_P, rejected_P: 1.0, ["its losses: a float"]),
        (lambda chosen_P, rejected_P: (chosen_P, {"odd": 2.0}), ["its metric `odd`: a float"]),
        (lambda chosen_P, rejected_P: (chosen_P, rejected_P), ["metrics without names", "a Tensor", "return losses"]),
        (lambda chosen_P, rejected_P: (chosen_P, None), ["metrics without names", "a NoneType"]),
        (lambda chosen_P, rejected_P: (chosen_P, {"loss": chosen_P}), ["`loss`, which every run has"]),
        (lambda chosen_P, rejected_P: chosen_P / None, ["raised TypeError", "test_losses_custom.py"]),
    ],
)
def test_what_a_function_may_not_give(function: Any, words: list[str]) -> None:
    batch, policy_N, _ = random_pairs(3)
    with pytest.raises(TrainingError) as caught:
        pairwise(declared(function), policy_N, None, batch)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: declared(lambda chosen_P: chosen_P), ConfigError, "chosen_P, rejected_P"),
        (lambda: declared(lambda chosen_P, rejected_P=0: chosen_P), ConfigError, "without defaults"),
        (lambda: declared(own_simpo.function, kind="pairs"), UnknownKeyError, "pairwise"),
        (lambda: declared(3), ConfigError, "above a `def`"),
        (lambda: declared(own_simpo.function, entropy=True), ConfigError, "an entropy is one of tokens"),
        (lambda: own_dpo.resolve({"bta": 1}, where="x"), UnknownKeyError, "did you mean `beta`?"),
        (lambda: own_simpo.resolve({}, where="x"), ConfigError, "needs a value for `gamma`"),
        (lambda: pt.Objective(lambda a, b: a), ConfigError, "the decorator `pt.objective`"),
    ],
)
def test_what_a_declaration_refuses(make: Any, error: type[PosttrainError], words: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)


def test_a_declared_function_is_called_as_before() -> None:
    one = torch.ones(1)
    assert own_dpo(one, one, one, one, beta=0.5) == -logsigmoid(torch.zeros(1))
    assert pt.Objective(own_dpo, parameters={"beta": 0.5}).method == "custom_pairwise"
    assert pt.Objective(near_the_start).method == "custom_tokens"
