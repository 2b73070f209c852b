"""T22: how a step is cut into micro-batches changes neither its loss nor its gradient (transformers PR#34191).

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.reference import LiveReference
from posttrain.models.tree.logprobs import Policy
from posttrain.training.objectives import ALGORITHMS, algorithm
from posttrain.training.order import RowOrder
from posttrain.training.step import accumulate
from posttrain.types import Comparison, Feedback, TokenTree
from tests.fixtures import make_tree, random_trees, tiny_model

VOCAB = 97


def rows_of_1_to_200_tokens() -> list[TokenTree]:
    rng = np.random.default_rng(0)
    lengths = [1, 3, 8, 20, 50, 90, 140, 200]
    return [make_tree([1, 5, 9], rng.integers(0, VOCAB, n).tolist(), row=i + 1) for i, n in enumerate(lengths)]


@cache
def policy_and_reference() -> tuple[Policy, LiveReference]:
    """One for all methods and splits, so that its path is proven once; no test moves its weights."""
    policy = Policy(tiny_model("llama", vocab=VOCAB))
    return policy, LiveReference(policy)


@pytest.fixture(scope="module", autouse=True)
def no_test_moves_the_policy() -> Iterator[None]:
    policy, _ = policy_and_reference()
    before = weights_fingerprint(policy.model)
    yield
    assert weights_fingerprint(policy.model) == before


def gradient(method: str, trees: list[TokenTree], budget: int) -> tuple[float, torch.Tensor]:
    policy, reference = policy_and_reference()
    policy.model.zero_grad(set_to_none=True)
    objective = algorithm(method)
    measured = accumulate(policy, reference if objective.needs_reference else None, objective, trees, budget, step=0)
    return measured.metrics["loss"].value, torch.cat([p.grad.flatten() for p in policy.parameters()])


@pytest.mark.parametrize("method", ALGORITHMS)
def test_every_split_gives_the_same_step(method: str) -> None:
    kind = algorithm(method).kind
    trees = rows_of_1_to_200_tokens()
    if kind is Comparison:
        trees = random_trees(8, vocab=VOCAB, branches=2, seed=2, margins=True)
    elif kind is Feedback:
        trees = [replace(tree, label=place % 2 == 0) for place, tree in enumerate(trees)]
    loss, whole = gradient(method, trees, 10_000)
    for budget in (1, 150, 300):
        again, split = gradient(method, trees, budget)
        assert again == pytest.approx(loss, rel=1e-5)
        assert float((split - whole).norm() / whole.norm()) < 1e-5


def test_a_partial_last_step_divides_by_what_is_there() -> None:
    """10 rows, 4 a step: the third step holds 2 rows and its loss is their mean, not half of it."""
    order = RowOrder.plan(10, 4, epochs=1, steps=None, seed=0)
    assert [len(order.at(step)) for step in range(order.steps)] == [4, 4, 2]
    rows = rows_of_1_to_200_tokens()[:2]
    loss, whole = gradient("sft", rows, 10_000)
    doubled, twice = gradient("sft", [*rows, *rows], 10_000)
    assert doubled == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(twice, whole, rtol=1e-4, atol=1e-6)


def test_each_epoch_holds_each_row_once_in_an_order_of_its_own() -> None:
    order = RowOrder.plan(10, 4, epochs=2, steps=None, seed=3)
    epochs = [[row for step in range(3 * e, 3 * e + 3) for row in order.at(step)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
