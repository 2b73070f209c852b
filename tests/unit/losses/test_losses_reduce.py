"""Sums and means over a flat batch."""

from __future__ import annotations

import torch

from posttrain.losses.reduce import (
    branch_sums,
    branch_tokens,
    mean_or_zero,
    over_denominator,
    sides,
    token_metrics,
    tree_sums,
)
from posttrain.outputs import TokenLogprobs
from tests.loss_batches import batch_of


def test_branches_and_trees_are_summed_apart() -> None:
    batch = batch_of([(2, 3), (1, 2)])
    values_N = torch.tensor([1.0, 2.0, 10.0, 20.0, 30.0, 100.0, 7.0, 8.0])
    sums_B = branch_sums(values_N, batch)
    assert sums_B.tolist() == [3.0, 60.0, 100.0, 15.0]
    assert branch_tokens(batch, values_N).tolist() == [2.0, 3.0, 1.0, 2.0]
    assert tree_sums(sums_B, batch).tolist() == [63.0, 115.0]
    chosen_P, rejected_P = sides(sums_B)
    assert chosen_P.tolist() == [3.0, 100.0]
    assert rejected_P.tolist() == [60.0, 15.0]


def test_a_branch_without_trained_tokens_sums_and_averages_to_zero_with_a_finite_gradient() -> None:
    batch = batch_of([(2, 0)])
    values_N = torch.tensor([1.0, 3.0], requires_grad=True)
    means_B = mean_or_zero(branch_sums(values_N, batch), branch_tokens(batch, values_N))
    assert means_B.tolist() == [2.0, 0.0]
    means_B.sum().backward()
    assert values_N.grad is not None
    assert values_N.grad.tolist() == [0.5, 0.5]


def test_the_global_denominator_divides_and_a_step_without_tokens_has_loss_zero() -> None:
    assert over_denominator(torch.tensor(6.0), 4).item() == 1.5
    assert over_denominator(torch.tensor(0.0), 0).item() == 0.0


def test_token_metrics_count_trained_tokens_against_all_of_them() -> None:
    batch = batch_of([(2, 3)])  # a prompt of 3, shared
    metrics = token_metrics(TokenLogprobs(torch.zeros(5), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])), batch)
    assert metrics["supervised_tokens"].value == 5
    assert metrics["supervised_share"].value == 5 / 8
    assert metrics["entropy"].value == 3.0
    assert "entropy" not in token_metrics(TokenLogprobs(torch.zeros(5)), batch)
