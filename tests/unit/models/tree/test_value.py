"""The value model: what a state is worth, read where its next token is predicted."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posttrain.data.trees import collate
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.value import ValueModel, value_model
from tests.fixtures import random_trees, tiny_model


def headed(policy: Policy, scale: float = 1.0) -> ValueModel:
    """With a head that says something."""
    model = value_model(policy)
    torch.manual_seed(0)
    with torch.no_grad():
        model.transformer.score.weight.normal_(std=scale)
    return model


def test_every_first_value_is_zero() -> None:
    batch = collate(random_trees(3, branches=2))
    assert not value_model(Policy(tiny_model()))(batch).any()


@pytest.mark.parametrize("path", ["padded", "rows"])
def test_tree_and_rows_agree(path: str) -> None:
    model, batch = headed(Policy(tiny_model())), collate(random_trees(4, branches=3, mask_probability=0.7))
    assert torch.allclose(model(batch, path="tree"), model(batch, path=path), atol=1e-5)  # type: ignore[arg-type]


def test_the_value_of_a_state_does_not_know_the_token_after_it() -> None:
    model = headed(Policy(tiny_model()))
    (tree,) = random_trees(1, branches=1)
    before = model(collate([tree]))
    ids = tree.branches[0].ids.copy()
    ids[-1] = (ids[-1] + 1) % 90
    changed = tree.__class__(
        tree.prompt_ids, (tree.branches[0].__class__(ids, tree.branches[0].loss_mask),), "k", tree.row
    )
    assert torch.equal(model(collate([changed])), before)  # the last token is no state that is valued
    ids[0] = (ids[0] + 1) % 90
    after = model(collate([changed]))
    assert after[0] == before[0] and not torch.equal(after, before)


def test_siblings_begin_with_the_same_value() -> None:
    model, trees = headed(Policy(tiny_model())), random_trees(1, branches=3, mask_probability=1.0)
    batch = collate(trees)
    firsts = [model(batch)[batch.branch_N == branch][0] for branch in range(3)]
    assert torch.equal(firsts[0], firsts[1]) and torch.equal(firsts[1], firsts[2])


def test_training_it_leaves_the_policy_as_it_was() -> None:
    config = LoraConfig(r=4, target_modules="all-linear")
    for model in (tiny_model(), get_peft_model(tiny_model(), config)):
        policy, batch = Policy(model), collate(random_trees(2, branches=2))
        value, kept = headed(policy), [p.detach().clone() for p in policy.parameters()]
        optimizer = torch.optim.SGD([p for p in value.parameters() if p.requires_grad], lr=1.0)
        value(batch).square().sum().backward()
        optimizer.step()
        assert all(torch.equal(p, before) for p, before in zip(policy.parameters(), kept, strict=True))
        assert all(p.grad is None for p in policy.parameters())
