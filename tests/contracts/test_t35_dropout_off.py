"""T35: two log-prob calls agree, whatever mode the model is in and wherever it has dropout (trl#744).

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from posttrain.data.trees import collate
from posttrain.models.tree.logprobs import Policy
from tests.fixtures import random_trees, tiny_model


def model_with_dropout(lora: bool) -> torch.nn.Module:
    model = tiny_model("gpt2", vocab=97, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    if not lora:
        return model
    config = LoraConfig(r=4, target_modules=["c_attn"], lora_dropout=0.1, init_lora_weights=False, fan_in_fan_out=True)
    return get_peft_model(model, config)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("path", ["tree", "padded"])
def test_two_calls_are_equal_in_train_mode(lora: bool, path: str) -> None:
    policy = Policy(model_with_dropout(lora), path)  # type: ignore[arg-type]
    policy.train()
    policy.model.train()
    batch = collate(random_trees(4, vocab=97))
    assert torch.equal(policy(batch).logprobs_N, policy(batch).logprobs_N)


def test_dropout_is_there_where_it_is_asked_for() -> None:
    policy = Policy(model_with_dropout(lora=True), dropout=True)
    batch = collate(random_trees(4, vocab=97))
    assert not torch.equal(policy(batch).logprobs_N, policy(batch).logprobs_N)
    with torch.no_grad():  # measuring is never noisy
        assert torch.equal(policy(batch).logprobs_N, policy(batch).logprobs_N)


@pytest.mark.parametrize("path", ["tree", "padded"])
def test_checkpointing_draws_the_same_dropout_again(path: str) -> None:
    """The backward pass computes the layers again; with other dropout its gradient would be of another function."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = model_with_dropout(lora=True)
        torch.manual_seed(4)
        policy = Policy(model, path, dropout=True, activation_checkpointing=checkpointing)  # type: ignore[arg-type]
        policy(collate(random_trees(4, vocab=97))).logprobs_N.sum().backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)
