"""The supervised loss: hand-worked numbers, gradients, and what it reports."""

from __future__ import annotations

import math

import pytest
import torch

from posttrain.losses.sft import sft_loss
from posttrain.outputs import Mean, TokenLogprobs
from posttrain.types import Count
from tests.loss_batches import batch_of, gradient


def test_hand_worked() -> None:
    # (0.5 + 1.5 + 4.0) nats over 3 tokens = 2.0 nats per token
    batch = batch_of([(2,), (1,)])
    out = sft_loss(TokenLogprobs(torch.tensor([-0.5, -1.5, -4.0])), batch, batch.count)
    assert out.loss.item() == pytest.approx(2.0)
    assert out.metrics["loss"].value == pytest.approx(2.0)
    assert out.metrics["supervised_tokens"].value == 3
    assert out.metrics["supervised_share"].value == pytest.approx(3 / 9)
    assert out.metrics["length"].value == pytest.approx(1.5)
    assert out.per_tree["logprob"].tolist() == [-2.0, -4.0]
    assert out.per_tree["tokens"].tolist() == [2.0, 1.0]


def test_the_loss_divides_by_the_step_and_the_metric_by_what_it_saw() -> None:
    batch = batch_of([(2,)])
    out = sft_loss(TokenLogprobs(torch.tensor([-1.0, -3.0])), batch, Count(tokens=8, branches=4, trees=4))
    assert out.loss.item() == pytest.approx(4 / 8)
    assert out.metrics["loss"].value == pytest.approx(4 / 2)


def test_every_token_has_the_same_gradient() -> None:
    batch = batch_of([(1,), (3,)])
    logprobs_N = torch.tensor([-9.0, -0.1, -0.2, -0.3], requires_grad=True)
    out = sft_loss(TokenLogprobs(logprobs_N), batch, batch.count)
    assert gradient(out.loss, logprobs_N).tolist() == [-0.25] * 4


def test_gradcheck() -> None:
    batch = batch_of([(2,), (3,)])
    logprobs_N = -torch.rand(5, dtype=torch.float64) - 0.1
    assert torch.autograd.gradcheck(
        lambda x: sft_loss(TokenLogprobs(x), batch, batch.count).loss, (logprobs_N.requires_grad_(),)
    )


def test_entropy_is_reported_when_it_was_computed() -> None:
    batch = batch_of([(2,)])
    out = sft_loss(TokenLogprobs(torch.tensor([-1.0, -1.0]), torch.tensor([0.5, 1.5])), batch, batch.count)
    assert out.metrics["entropy"].value == 1.0


def test_a_row_without_trained_tokens_changes_neither_loss_nor_gradient() -> None:
    values = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    without, with_empty = batch_of([(2,), (1,)]), batch_of([(2,), (0,), (1,)])
    first = sft_loss(TokenLogprobs(values), without, without.count)
    second = sft_loss(TokenLogprobs(values), with_empty, with_empty.count)
    assert first.loss.item() == second.loss.item()
    assert torch.equal(gradient(first.loss, values), gradient(second.loss, values))
    assert second.per_tree["logprob"].tolist() == [-3.0, 0.0, -3.0]


def test_a_step_without_any_trained_token_is_finite() -> None:
    batch = batch_of([(0,)])
    logprobs_N = torch.zeros(0, requires_grad=True)
    out = sft_loss(TokenLogprobs(logprobs_N), batch, batch.count)
    out.loss.backward()
    assert out.loss.item() == 0.0
    loss = out.metrics["loss"]
    assert isinstance(loss, Mean) and (loss.value, loss.count) == (0.0, 0), "a loss of 0, over nothing"
    assert math.isnan(Mean(0.0, 0).value), "any other absent measurement is not a zero"
