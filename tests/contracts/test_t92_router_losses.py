"""T92: the load-balancing loss of a mixture of experts is part of the step, and gives TRL's weights (SFT and DPO).

TRL adds `router_aux_loss_coef * outputs.aux_loss` of `transformers` on padded rows. One step here, however it is split
into micro-batches and whichever path it runs on, is that of one whole micro-batch there.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from posttrain.data.trees import collate
from posttrain.models.reference import LiveReference
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.router import RouterLoss, balance, has_router, routing_rule, why_not
from posttrain.models.tree.rows import padded_rows
from posttrain.training.objectives import Algorithm, algorithm
from posttrain.training.step import accumulate, measure
from posttrain.types import TokenTree, Wants
from tests.families import VOCAB, family_model
from tests.fixtures import random_trees

FAMILIES = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "jamba", "dbrx", "granitemoe", "granitemoeshared"),
    *("jetmoe", "gpt_oss", "flex_olmo", "minimax", "minimax_m2", "minimax_m3_vl_text", "mellum", "qwen3_next", "doge"),
)
EVERYTHING = 10**6
RATE = 0.1


def pairs(count: int = 4) -> list[TokenTree]:
    return random_trees(count, vocab=VOCAB, branches=2, seed=5)


def rows(count: int = 5) -> list[TokenTree]:
    return random_trees(count, vocab=VOCAB, branches=1, seed=6)


def oracle(model: Any, trees: list[TokenTree]) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probs [N], the branch of each, aux_loss) by `transformers` alone, on rows padded together."""
    batch = collate(trees)
    padded = padded_rows(batch)
    output = model(
        input_ids=padded.input_ids, attention_mask=padded.attention_mask, output_router_logits=True, use_cache=False
    )
    log_p = output.logits[padded.row_N, padded.predictor_N].log_softmax(dim=-1)
    return log_p.gather(1, batch.target_ids_N[:, None])[:, 0], batch.branch_N, output.aux_loss


def peer_sft(model: Any, trees: list[TokenTree], coefficient: float) -> Tensor:
    logprobs_N, _, aux_loss = oracle(model, trees)
    return -logprobs_N.mean() + coefficient * aux_loss


def peer_dpo(model: Any, trees: list[TokenTree], coefficient: float) -> Tensor:
    """The reference is the model itself: its log-probs cancel at the start, where the loss is -log sigmoid(0)."""
    logprobs_N, branch_N, aux_loss = oracle(model, trees)
    ratio_B = torch.zeros(2 * len(trees)).index_add(0, branch_N, logprobs_N - logprobs_N.detach())
    margin_P = 0.1 * (ratio_B[0::2] - ratio_B[1::2])
    return -torch.nn.functional.logsigmoid(margin_P).mean() + coefficient * aux_loss


def stepped(model: Any) -> dict[str, Tensor]:
    """One step of plain gradient descent."""
    moved = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.grad is not None:
            moved[name] = weight.detach() - RATE * weight.grad
    return moved


def trained(model: Any, objective: Algorithm, trees: list[TokenTree], budget: int, path: str) -> dict[str, Tensor]:
    policy = Policy(model, path)  # type: ignore[arg-type]
    reference = LiveReference(policy) if objective.needs_reference else None
    accumulate(policy, reference, objective, trees, budget, step=0)
    return stepped(model)


def assert_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor], start: Any) -> None:
    before = {name: weight.detach() for name, weight in start.named_parameters()}
    assert ours.keys() == theirs.keys()
    moved = torch.stack([(theirs[name] - before[name]).norm() for name in theirs]).norm()
    apart = torch.stack([(theirs[name] - ours[name]).norm() for name in theirs]).norm()
    assert float(apart / moved) < 1e-5


@pytest.mark.parametrize("budget", [EVERYTHING, 30], ids=["one micro-batch", "several"])
@pytest.mark.parametrize("path", ["tree", "padded", "rows"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_one_step_has_the_weights_of_trl(method: str, path: str, budget: int) -> None:
    coefficient = 0.1  # large enough that a wrong one is seen at once
    trees, peer_loss = (rows(), peer_sft) if method == "sft" else (pairs(), peer_dpo)
    objective = replace(algorithm(method), router=RouterLoss(coefficient))
    ours, peer = family_model("qwen3_moe"), family_model("qwen3_moe")
    peer_loss(peer, trees, coefficient).backward()
    assert_weights(trained(ours, objective, trees, budget, path), stepped(peer), family_model("qwen3_moe"))


def test_without_it_the_step_is_another_one() -> None:
    """The sensitivity of the test above."""
    peer = family_model("qwen3_moe")
    peer_sft(peer, rows(), 0.1).backward()
    with pytest.raises(AssertionError):
        assert_weights(
            trained(family_model("qwen3_moe"), algorithm("sft"), rows(), EVERYTHING, "tree"),
            stepped(peer),
            family_model("qwen3_moe"),
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_number_is_that_of_transformers_in_every_family(family: str) -> None:
    model = family_model(family, **({"is_moe": True} if family == "doge" else {}))
    batch = collate(random_trees(4, vocab=VOCAB))
    # The path is named, so that none has to be proven: Doge's routing reads ahead, and a policy of it is refused.
    found = Policy(model)(batch, Wants(routing=True), path="padded").routing
    assert found is not None
    expected = oracle(model, random_trees(4, vocab=VOCAB))[2]
    torch.testing.assert_close(balance(found, found), expected)
    weights = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (
        torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        for loss in (balance(found, found), expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_models_own_coefficients() -> None:
    own = {"qwen3_moe": 0.001, "olmoe": 0.01, "jetmoe": 0.01, "dbrx": 0.01, "mixtral": 0.001}
    found = {family: routing_rule(family_model(family)) for family in own}
    assert {family: rule.coefficient for family, rule in found.items() if rule} == own


def test_families_without_a_loss_are_told_apart() -> None:
    assert not has_router(family_model("llama")) and routing_rule(family_model("llama")) is None
    biased = family_model("glm4_moe", first_k_dense_replace=0)
    assert has_router(biased) and routing_rule(biased) is None
    assert "by a bias" in why_not(biased)


def test_even_routing_is_as_many_as_a_token_chooses() -> None:
    """E * sum_e (k / E) * (1 / E) = k, whatever the coefficient and the model."""
    model = family_model("qwen3_moe")
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.mlp.gate.weight)
    found = Policy(model)(collate(rows()), Wants(routing=True)).routing
    assert found is not None and float(balance(found, found).detach()) == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_and_adapters_keep_it(checkpointing: bool) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    gradients = []
    for again in (False, checkpointing):
        torch.manual_seed(0)
        model = get_peft_model(family_model("qwen3_moe"), config)
        policy = Policy(model, "tree", activation_checkpointing=again)
        objective = replace(algorithm("sft"), router=RouterLoss(1.0))
        accumulate(policy, None, objective, rows(), EVERYTHING, step=0)
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert gradients[0] and all(g.any() for g in gradients[0])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, plain)


def test_metrics_do_not_depend_on_the_split_either() -> None:
    policy = Policy(family_model("qwen3_moe"))
    objective = replace(algorithm("sft"), router=RouterLoss(0.001))
    found = [measure(policy, None, objective, rows(), budget).metrics for budget in (EVERYTHING, 25)]
    for name in ("router_aux_loss", "router_load_max", "router_idle_share", "loss"):
        assert found[0][name].value == pytest.approx(found[1][name].value, rel=1e-5)
    expected = oracle(policy.model, rows())[2]
    assert found[0]["router_aux_loss"].value == pytest.approx(float(expected.detach()), rel=1e-5)
    plain = measure(policy, None, algorithm("sft"), rows(), EVERYTHING).metrics
    assert "router_aux_loss" not in plain and plain["loss"].value == pytest.approx(found[0]["loss"].value)


def test_dpo_still_starts_at_ln_2() -> None:
    """`loss` is the method's; the router's stands beside it."""
    policy = Policy(family_model("qwen3_moe"))
    objective = replace(algorithm("dpo"), router=RouterLoss(0.5))
    measured = measure(policy, LiveReference(policy), objective, pairs(), EVERYTHING)
    assert measured.metrics["loss"].value == pytest.approx(math.log(2), abs=1e-5)
