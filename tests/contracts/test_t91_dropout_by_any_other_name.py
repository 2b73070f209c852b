"""T91: two calls are equal, gradients recorded, however a family implements its dropout; checkpointing on or off.

OPT, XGLM, BioGPT, BART and its kin, Falcon, DBRX and Doge call dropout in their layers' own forward, by the flag that
the activation checkpointing of `transformers` looks at too. Layer drop and a router's jitter look at it as well.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from posttrain.data.trees import collate, count
from posttrain.models.tree.logprobs import Policy
from posttrain.training.objectives import algorithm
from tests.families import VOCAB, family_model, noisy_config
from tests.fixtures import random_trees

FAMILIES = (
    *("opt", "xglm", "biogpt", "bart", "mbart", "marian", "pegasus", "blenderbot", "blenderbot-small", "plbart", "mvp"),
    *("trocr", "whisper", "bigbird_pegasus", "falcon", "dbrx", "doge"),  # dropout in the layer's own forward
    *("mixtral", "phimoe", "minimax", "deepseek_v4"),  # a router that adds noise
    *("gpt2", "gpt_neox", "bert-generation", "bert", "starcoder2", "phi", "llama"),
)
BATCH = collate(random_trees(3, vocab=VOCAB, branches=2))


def called(policy: Policy) -> tuple[Tensor, list[Tensor]]:
    logprobs_N = policy(BATCH).logprobs_N
    parameters = [p for p in policy.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(logprobs_N.sum(), parameters, allow_unused=True, materialize_grads=True)
    return logprobs_N.detach(), list(gradient)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_calls_and_their_gradients_are_equal(family: str, checkpointing: bool) -> None:
    model = family_model(family, noisy_config(family)).train()
    policy = Policy(model, "padded", activation_checkpointing=checkpointing)
    first, second = called(policy), called(policy)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    with torch.no_grad():  # what a reference, an evaluation or an old policy is computed by
        torch.testing.assert_close(policy(BATCH).logprobs_N, first[0], atol=1e-3, rtol=0)  # other kernels, no noise


@pytest.mark.parametrize("family", ["opt", "bart", "doge", "gpt2"])
def test_the_dropout_is_there_to_be_turned_off(family: str) -> None:
    """Else the test above says nothing."""
    policy = Policy(family_model(family, noisy_config(family)), "padded", dropout=True)
    assert not torch.equal(policy(BATCH).logprobs_N, policy(BATCH).logprobs_N)
    with policy.without_dropout():
        assert torch.equal(policy(BATCH).logprobs_N, policy(BATCH).logprobs_N)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("family", ["opt", "biogpt", "llama"])
def test_checkpointing_changes_no_gradient(family: str, dropout: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = family_model(family, noisy_config(family))
        policy = Policy(model, "padded", dropout=dropout, activation_checkpointing=checkpointing)
        torch.manual_seed(0)  # of the noise, where there is some: its recomputation draws the same again
        gradients.append(called(policy)[1])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_checkpointing_computes_layers_again() -> None:
    """A wrapper that checkpoints nothing would pass everything above."""
    model, runs = family_model("opt"), []
    model.model.decoder.layers[0].fc1.register_forward_hook(lambda *_: runs.append(1))
    for checkpointing, expected in ((False, 1), (True, 2)):
        policy = Policy(model, "padded", activation_checkpointing=checkpointing)
        policy(BATCH)  # proves the path, by calls of its own
        runs.clear()
        policy(BATCH).logprobs_N.sum().backward()
        assert len(runs) == expected
    runs.clear()
    with torch.no_grad():
        policy(BATCH)
    assert len(runs) == 1


def test_a_models_own_checkpointing_is_not_run_under_the_tree() -> None:
    """Its recomputation would run after the tree's attention has been taken out again, and see other branches."""
    plain = family_model("llama")
    asked = family_model("llama")
    for layer in asked.model.layers:  # as `gradient_checkpointing_enable` does
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    first, second = called(Policy(plain, "tree")), called(Policy(asked, "tree"))
    assert asked.model.layers[0].gradient_checkpointing  # left as it was
    for a, b in zip(first[1], second[1], strict=True):
        torch.testing.assert_close(b, a)


def test_dpo_starts_at_ln_2_on_opt() -> None:
    """From Python, where no preflight stands in between: the reference has no noise, so the policy may have none."""
    trees = random_trees(4, vocab=VOCAB, branches=2)
    policy = Policy(family_model("opt", noisy_config("opt")).train(), "padded", activation_checkpointing=True)
    batch, dpo = collate(trees), algorithm("dpo")
    with torch.no_grad():
        reference_N = policy(batch).logprobs_N
    loss = dpo.loss(policy(batch), reference_N, batch, count(trees)).loss
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-5)
