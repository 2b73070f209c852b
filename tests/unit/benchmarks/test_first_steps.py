"""The grid of docs/first-steps.md: each epoch asks every row once, and a line of the table is what was measured."""

from __future__ import annotations

import pytest
import torch

from benchmarks.first_steps import Grid, line_of, nll, steps_of, train
from posttrain.models.tree.logprobs import Policy
from tests.fixtures import random_trees, tiny_model


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    trees = random_trees(7)
    steps = steps_of(trees, 3, 2, seed=0)
    assert [len(step) for step in steps] == [3, 3, 1, 3, 3, 1]
    first, second = ([tree.key for step in half for tree in step] for half in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == sorted(tree.key for tree in trees) and first != second
    assert [[tree.key for tree in step] for step in steps_of(trees, 3, 2, seed=0)] == [
        [tree.key for tree in step] for step in steps
    ]


def test_training_lowers_the_loss_of_its_rows() -> None:
    trees = random_trees(4)
    policy = Policy(tiny_model())
    from benchmarks.first_steps import TOKENS
    from posttrain.data.trees import collate, count, pack

    def loss() -> float:
        with torch.no_grad():
            return sum(nll(policy, collate(micro), count(trees)).item() for micro in pack(trees, TOKENS))

    before = loss()
    train(policy, steps_of(trees, 2, 5, seed=0), 1e-2, nll)
    assert loss() < before


def test_a_line_has_the_mean_and_the_ends_over_the_seeds() -> None:
    grid = Grid((10,), (1e-3,), (1, 4), most=20, run=lambda rows, rate, epochs, seed: 0.5 + 0.1 * seed, percent=True)
    assert line_of(grid, 10, 1e-3, seeds=3) == "| 10 | 0.001 | 60 (50–70) |  |"
    assert pytest.approx(0.001) == grid.rates[0]
