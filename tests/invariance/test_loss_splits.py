"""The same gradient, loss and metrics for every way of cutting a step into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.data.trees import collate, count
from posttrain.diagnostics.metrics import merge, values
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.responses import Responses
from posttrain.outputs import LossOutput
from posttrain.training.objectives import ALGORITHMS, Algorithm, algorithm
from posttrain.types import Comparison, Count, Feedback, TokenTree
from tests.loss_batches import tree, with_collisions

POLICIES = [name for name in ALGORITHMS if name != "reward"]
"""Methods whose loss is of log-probs."""

SPLITS = ([[0, 1, 2, 3, 4, 5]], [[0], [1], [2], [3], [4], [5]], [[0, 1, 2, 3], [4, 5]], [[5, 0], [3, 1, 4], [2]])
LENGTHS = [(1, 9), (4, 2), (7, 7), (2, 1), (20, 3), (3, 5)]


def _trees(name: str) -> list[TokenTree]:
    kind = algorithm(name).kind
    branches = 2 if kind is Comparison else 1
    label = [True, False, True, True, False, True] if kind is Feedback else [None] * 6
    return [tree(lengths[:branches], margin=0.1 * i, label=label[i], row=i) for i, lengths in enumerate(LENGTHS)]


def _statistics(
    objective: Algorithm, policy: Sequence[Tensor], reference: Sequence[Tensor], trees: list[TokenTree]
) -> Any:
    """Of the whole step, one value for each of its trees."""
    coupling = objective.coupling
    if coupling is None:
        return None
    if coupling.mismatched:
        return coupling.reduce({"log_ratio": torch.linspace(-1.0, 3.0, len(trees), dtype=torch.float64)})
    batch = collate(trees)
    logprobs = with_collisions(torch.cat(list(policy)).detach(), batch)
    return coupling.reduce(coupling.observe(Responses.of(logprobs, torch.cat(list(reference)), batch), {}))


def _step(
    name: str, trees: Sequence[TokenTree], split: Sequence[Sequence[int]]
) -> tuple[list[LossOutput], list[Tensor]]:
    """The outputs of a step's micro-batches, and the gradient of each tree's log-probs."""
    generator = torch.Generator().manual_seed(0)
    policy = [-2 * torch.rand(t.num_trained, generator=generator, dtype=torch.float64) - 0.1 for t in trees]
    reference = [-2 * torch.rand(t.num_trained, generator=generator, dtype=torch.float64) - 0.1 for t in trees]
    for values_N in policy:
        values_N.requires_grad_()
    denominator, objective = count(trees), algorithm(name)
    statistics = _statistics(objective, policy, reference, list(trees))
    outputs = []
    for micro in split:
        policy_N = torch.cat([policy[i] for i in micro])
        reference_N = torch.cat([reference[i] for i in micro])
        batch = collate([trees[i] for i in micro])
        own = (
            {} if statistics is None else {"statistics": {key: values_P[micro] for key, values_P in statistics.items()}}
        )
        out = objective.loss(with_collisions(policy_N, batch), reference_N, batch, denominator, **own)
        out.loss.backward()
        outputs.append(out)
    gradients = [values_N.grad for values_N in policy]
    assert all(g is not None for g in gradients)
    return outputs, gradients  # type: ignore[return-value]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("split", SPLITS[1:], ids=["ones", "4+2", "shuffled"])
def test_micro_batches_add_up_to_the_step(name: str, split: Sequence[Sequence[int]]) -> None:
    trees = _trees(name)
    whole, expected = _step(name, trees, SPLITS[0])
    parts, got = _step(name, trees, split)
    assert sum(out.loss.item() for out in parts) == pytest.approx(whole[0].loss.item(), rel=1e-12)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    merged = values(merge(out.metrics for out in parts))
    assert merged == pytest.approx(values(whole[0].metrics), rel=1e-12)
    assert merged["loss"] == pytest.approx(whole[0].loss.item(), rel=1e-12)


@pytest.mark.parametrize("name", POLICIES)
def test_per_tree_values_do_not_depend_on_the_company(name: str) -> None:
    trees = _trees(name)
    together = _step(name, trees, SPLITS[0])[0][0].per_tree
    alone = [out.per_tree for out in _step(name, trees, SPLITS[1])[0]]
    for key, values_P in together.items():
        torch.testing.assert_close(torch.cat([each[key] for each in alone]), values_P, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_pair_weighs_the_same_whatever_the_step_holds_besides(name: str) -> None:
    """Doubling the step's pairs halves each pair's gradient: the loss is a mean over the step."""
    trees = _trees(name)[:1]
    (out,), (alone,) = _step(name, trees, [[0]])
    generator = torch.Generator().manual_seed(0)
    policy_N = -2 * torch.rand(trees[0].num_trained, generator=generator, dtype=torch.float64) - 0.1
    reference_N = -2 * torch.rand(trees[0].num_trained, generator=generator, dtype=torch.float64) - 0.1
    policy_N.requires_grad_()
    twice = Count(tokens=20, branches=4, trees=2)
    batch = collate(trees)
    shared = algorithm(name).loss(with_collisions(policy_N, batch), reference_N, batch, twice)
    shared.loss.backward()
    assert policy_N.grad is not None
    torch.testing.assert_close(policy_N.grad, alone / 2)
    assert shared.loss.item() == pytest.approx(out.loss.item() / 2)
