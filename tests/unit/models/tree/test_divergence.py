"""Exact KL and generalised JSD through the chunked projection, against the dense computation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from posttrain.data.trees import collate
from posttrain.diagnostics.metrics import METRICS, values
from posttrain.errors import ConfigError, ModelError
from posttrain.losses.distillation import distillation_loss
from posttrain.losses.kl import (
    AdaptiveKL,
    corrected_k3,
    exact_forward_kl,
    exact_reverse_kl,
    generalised_jsd,
    k3,
)
from posttrain.models.reference import AdapterOffReference, LiveReference
from posttrain.models.tree import projection
from posttrain.models.tree.divergence import sample_tokens
from posttrain.models.tree.logprobs import Policy
from posttrain.types import Against, Batch, Wants
from tests.fixtures import random_trees, tiny_model

BATCH = collate(random_trees(3, branches=2, mask_probability=0.7))


def close(found: Tensor, oracle: Tensor) -> None:
    """The models' norms compute in fp32 whatever the weights, so two paths differ by its rounding."""
    torch.testing.assert_close(found, oracle, atol=2e-6, rtol=1e-5)


def policies(arch: str = "llama", dtype: torch.dtype = torch.float64) -> tuple[Policy, Policy]:
    return Policy(tiny_model(arch, seed=0, dtype=dtype)), Policy(tiny_model(arch, seed=1, dtype=dtype))


def dense(policy: Policy, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log softmax of each trained token's whole distribution [N, V], by ordinary rows and the model's own forward."""
    logits = policy._row_logits(batch, torch.arange(batch.count.tokens))
    return torch.log_softmax(logits / temperature, dim=-1)


@pytest.mark.parametrize("path", ["tree", "padded"])
@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_exact_kl_is_that_of_the_dense_distributions(monkeypatch: pytest.MonkeyPatch, arch: str, path: str) -> None:
    monkeypatch.setattr(projection, "BUFFER_ELEMENTS", 97 * 8 * 3)  # three rows a chunk
    policy, other = policies(arch)
    policy.path = other.path = path  # type: ignore[assignment]
    sample_S = sample_tokens(BATCH, 11, torch.Generator().manual_seed(0))
    found = policy.exact_kl(other, BATCH, sample_S, temperature=0.7)
    with torch.no_grad():
        own, theirs = (dense(each, BATCH, 0.7)[sample_S] for each in (policy, other))
    close(found.reverse_S, exact_reverse_kl(own, theirs))
    close(found.forward_S, exact_forward_kl(own, theirs))
    assert not found.reverse_S.requires_grad and (found.reverse_S > 0).all()
    assert values(found.metrics())["kl_exact_reverse"] == pytest.approx(found.reverse_S.mean().item())
    assert found.metrics().keys() <= METRICS.keys()


def test_rows_of_the_padded_path_are_the_trees_distributions() -> None:
    policy, _ = policies()
    with torch.no_grad():
        logprobs_N = policy(BATCH).logprobs_N
        index_N = torch.arange(BATCH.count.tokens)
        close(dense(policy, BATCH)[index_N, BATCH.target_ids_N], logprobs_N)


@pytest.mark.parametrize("path", ["tree", "padded", "rows"])
def test_responses_of_which_nothing_trains(path: str) -> None:
    """A micro-batch may hold nothing but masked responses: they have no distributions, and the step goes on."""
    policy, teacher = policies()
    masked = [
        replace(tree, branches=tuple(replace(b, loss_mask=np.zeros_like(b.loss_mask)) for b in tree.branches))
        for tree in random_trees(2, branches=2)
    ]
    wants = Wants(against=Against(teacher, 0.5), distributions_at=torch.empty(0, dtype=torch.long))
    out = policy(collate(masked), wants, path=path)
    assert out.divergence_N.shape == out.logprobs_N.shape == (0,)
    assert len(out.distributions.log_probs(out.distributions.states_SD)) == 0


def test_no_chunk_is_larger_than_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "BUFFER_ELEMENTS", 97 * 8 * 2)
    policy, other = policies()
    policy(BATCH)  # proves the path, and the head is called for that too
    seen: list[int] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen.append(output.shape[0])

    policy.causal_lm.lm_head.register_forward_hook(note)
    policy.exact_kl(other, BATCH)
    assert max(seen) == 2 and sum(seen) == BATCH.count.tokens
    seen.clear()
    policy.divergence(other, BATCH).sum().backward()
    assert max(seen) == 2 and sum(seen) == 2 * BATCH.count.tokens  # the backward pass computes them again


@pytest.mark.parametrize("mixture", [0.0, 0.3, 1.0])
def test_divergence_and_its_gradient_are_the_dense_ones(monkeypatch: pytest.MonkeyPatch, mixture: float) -> None:
    monkeypatch.setattr(projection, "BUFFER_ELEMENTS", 97 * 8 * 4)
    policy, teacher = policies()
    weights_N = torch.linspace(0.5, 1.5, BATCH.count.tokens, dtype=torch.float64)
    parameters = list(policy.parameters())
    found_N = policy.divergence(teacher, BATCH, mixture)
    ours = torch.autograd.grad((found_N * weights_N).sum(), parameters)
    dense_N = generalised_jsd(dense(policy, BATCH), dense(teacher, BATCH).detach(), mixture)
    theirs = torch.autograd.grad((dense_N * weights_N).sum(), parameters)
    close(found_N, dense_N)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)
    assert all(p.grad is None for p in teacher.parameters())


def test_references_that_are_models() -> None:
    """A fresh adapter: both are the policy itself. A trained one, head included: both are the base."""
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"])
    policy = Policy(get_peft_model(tiny_model(dtype=torch.float64), config))
    live, off = LiveReference(policy), AdapterOffReference(policy)
    for reference in (live, off):
        assert policy.exact_kl(reference, BATCH).reverse_S.abs().max() < 1e-12
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    first, second = (policy.exact_kl(reference, BATCH) for reference in (live, off))
    assert first.reverse_S.min() > 1e-4
    torch.testing.assert_close(first.reverse_S, second.reverse_S)
    torch.testing.assert_close(first.forward_S, second.forward_S)
    policy.divergence(off, BATCH).sum().backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


def test_other_vocabularies_and_mixtures_are_refused() -> None:
    policy, _ = policies()
    with pytest.raises(ModelError, match="97 and 50 tokens"):
        policy.exact_kl(Policy(tiny_model(vocab=50, dtype=torch.float64)), _small())
    with pytest.raises(ConfigError, match="mixture"):
        policy.divergence(policy, BATCH, 1.5)


def _small() -> Batch:
    return collate(random_trees(1, vocab=50))


def test_a_sample_is_of_the_trained_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    found = sample_tokens(BATCH, 5, generator)
    assert len(found) == 5 == len(set(found.tolist())) and found.tolist() == sorted(found.tolist())
    assert sample_tokens(BATCH, 10_000).tolist() == list(range(BATCH.count.tokens))


# ---------------------------------------------------------------- the formulas by hand


def test_generalised_jsd_by_hand() -> None:
    """Policy (1/2, 1/2), teacher (9/10, 1/10), mixture 1/2: m = (0.7, 0.3)."""
    policy, teacher = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.5, 0.5], [0.9, 0.1]))
    of_teacher = 0.9 * math.log(0.9 / 0.7) + 0.1 * math.log(0.1 / 0.3)
    of_policy = 0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3)
    assert generalised_jsd(policy, teacher, 0.5).item() == pytest.approx((of_teacher + of_policy) / 2)
    assert generalised_jsd(policy, teacher, 0.0).item() == pytest.approx(0.368064, abs=1e-6)  # KL(teacher || policy)
    assert generalised_jsd(policy, teacher, 1.0).item() == pytest.approx(0.510826, abs=1e-6)
    for small in (1e-4, 1 - 1e-4):
        scale = small if small < 0.5 else 1 - small
        limit = generalised_jsd(policy, teacher, round(small))
        assert (generalised_jsd(policy, teacher, small) / scale).item() == pytest.approx(limit.item(), rel=1e-3)


def test_generalised_jsd_takes_tokens_that_both_exclude() -> None:
    logits = torch.tensor([0.3, -0.7, -torch.inf], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    value = generalised_jsd(logits.log_softmax(0), teacher, 0.3)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite() and gradient.isfinite().all()


def test_jsd_gradcheck() -> None:
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 6, dtype=torch.float64).log_softmax(-1)
    for mixture in (0.0, 0.4, 1.0):
        assert torch.autograd.gradcheck(lambda x, b=mixture: generalised_jsd(x.log_softmax(-1), teacher, b), logits)


def test_corrected_k3_estimates_the_reverse_kl_off_policy() -> None:
    policy, reference, old = (torch.randn(7, dtype=torch.float64).log_softmax(0) for _ in range(3))
    estimate = (old.exp() * corrected_k3(policy, reference, (policy - old).exp())).sum()
    assert estimate.item() == pytest.approx(exact_reverse_kl(policy, reference).item())
    assert (old.exp() * k3(policy, reference)).sum().item() != pytest.approx(estimate.item(), rel=1e-2)


def test_adaptive_kl_by_hand() -> None:
    start = AdaptiveKL(beta=0.1, target=6.0)
    assert start.updated(12.0).beta == pytest.approx(0.102)  # error cut at 0.2
    assert start.updated(6.6).beta == pytest.approx(0.101)  # error 0.1
    assert start.updated(6.0).beta == 0.1
    assert start.updated(0.0).beta == pytest.approx(0.098)
    assert start.updated(float("nan")) == start
    with pytest.raises(ConfigError):
        AdaptiveKL(beta=0.1, target=0.0)


def test_adaptive_kl_finds_its_target() -> None:
    """A system whose KL is 1 / beta: the controller settles where that is 4."""
    controller = AdaptiveKL(beta=1.0, target=4.0)
    for _ in range(400):
        controller = controller.updated(1 / controller.beta)
    assert 1 / controller.beta == pytest.approx(4.0, rel=1e-3)


def test_distillation_loss_by_hand_and_in_parts() -> None:
    trees = random_trees(2, branches=2)
    whole = collate(trees)
    divergence_N = torch.linspace(0.1, 1.0, whole.count.tokens, dtype=torch.float64)
    means = [divergence_N[whole.branch_N == branch].mean().item() for branch in range(4)]
    out = distillation_loss(divergence_N, whole, whole.count)
    assert out.loss.item() == pytest.approx(sum(means) / 4)
    assert values(out.metrics)["teacher_divergence"] == pytest.approx(divergence_N.mean().item())
    by_token = distillation_loss(divergence_N, whole, whole.count, reduction="token_mean")
    assert by_token.loss.item() == pytest.approx(divergence_N.mean().item())
    first = trees[0].num_trained
    parts = [
        distillation_loss(divergence_N[at], collate([tree]), whole.count).loss.item()
        for tree, at in zip(trees, (slice(None, first), slice(first, None)), strict=True)
    ]
    assert sum(parts) == pytest.approx(out.loss.item())


def test_distillation_brings_the_policy_to_its_teacher() -> None:
    policy, teacher = policies(dtype=torch.float32)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        loss = distillation_loss(policy.divergence(teacher, BATCH, 0.5), BATCH, BATCH.count).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
