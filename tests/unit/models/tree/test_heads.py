"""A backbone under a head: the tree path against plain rows, where a response is scored, and what a fresh head does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.config import LoRA
from posttrain.data.trees import collate, count
from posttrain.errors import EncodingError, ModelError
from posttrain.losses.reward_rule import Pooling, RewardRule
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.tree.heads import ScoreModel, is_reward_model, with_head
from posttrain.models.tree.parity import between, leak
from posttrain.outputs import LossOutput
from posttrain.training.checks.gradient import check_gradient
from posttrain.training.objectives import reward_algorithm
from posttrain.training.stages.reward import check_start
from posttrain.training.step import accumulate, measure
from posttrain.types import TokenTree
from tests.fixtures import ARCHITECTURES, make_tree, random_trees, tiny_model

POOLINGS: tuple[Pooling, ...] = ("last", "mean", "steps")


def scorer(arch: str = "llama", pooling: Pooling = "last", path: str = "tree", **options: object) -> ScoreModel:
    model = with_head(tiny_model(arch, **options), init="normal", seed=1)  # type: ignore[arg-type]
    return ScoreModel(model, path, pooling=pooling)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_tree_scores_as_plain_rows_do(arch: str) -> None:
    gap = between(scorer(arch), random_trees(5, branches=(1, 3)), "tree", "padded")
    assert gap.holds and gap.logprob < 1e-4
    assert "scores differ" in gap.line()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling_is_the_same_on_both_paths_and_leaks_nothing(pooling: Pooling) -> None:
    trees = random_trees(5, branches=2, mask_probability=0.7)
    trees = [tree for tree in trees if all(branch.loss_mask.any() for branch in tree.branches)]
    model = scorer(pooling=pooling)
    assert between(model, trees, "tree", "padded").holds
    assert leak(model, trees).logprob == 0.0


def test_a_leak_shows_under_a_head_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores are 0 whatever leaks; the check has to look at more than them."""
    from posttrain.models.tree import attention

    model = ScoreModel(with_head(tiny_model("llama")))
    monkeypatch.setattr(attention, "_ancestors", lambda nodes, index: tuple(range(index)))
    monkeypatch.setattr("posttrain.models.tree.model.probe_backend", lambda device, dtype: "segments")
    trees = random_trees(3, branches=2)
    assert not leak(model, trees).holds
    assert not between(model, trees, "tree", "padded").holds


def test_the_score_is_the_last_masked_token_whatever_its_id() -> None:
    """The pad id at the end, inside, and as the whole response: ids decide nothing."""
    model = scorer(vocab=97)
    hidden = model.transformer.base_model
    for branch in ([9, 9, 0], [0, 0, 0], [0], [7, 0, 8]):
        tree = make_tree([1, 5, 0], branch)
        with torch.no_grad():
            expected = model.transformer.score(hidden(torch.tensor([[1, 5, 0, *branch]])).last_hidden_state[0, -1])
            assert model(collate([tree])).scores_BH[0].item() == pytest.approx(expected.item(), abs=1e-6)
    masked = make_tree([1, 5, 0], ([9, 8, 7], [True, True, False]))
    with torch.no_grad():
        assert torch.allclose(
            model(collate([masked])).scores_BH, model(collate([make_tree([1, 5, 0], [9, 8])])).scores_BH
        )


def test_mean_and_steps_by_hand() -> None:
    tree = make_tree([1, 5], ([9, 8, 7], [True, False, True]))
    mean, steps = scorer(pooling="mean"), scorer(pooling="steps")
    with torch.no_grad():
        states = mean.transformer.base_model(torch.tensor([[1, 5, 9, 8, 7]])).last_hidden_state[0]
        at = mean.transformer.score(states)[:, 0]
        assert mean(collate([tree])).scores_BH.item() == pytest.approx((at[2] + at[4]).item() / 2, abs=1e-6)
        out = steps(collate([tree]))
        assert out.steps_SH is not None and out.branch_S is not None
        assert out.steps_SH.flatten().tolist() == pytest.approx([at[2].item(), at[4].item()], abs=1e-6)
        assert out.scores_BH.item() == pytest.approx(min(at[2].item(), at[4].item()), abs=1e-6)


def test_a_response_without_a_token_is_refused() -> None:
    with pytest.raises(EncodingError, match=r"test\.jsonl, row 1"):
        scorer()(collate([make_tree([1, 5], [9], ([8], [False]))]))


def test_a_fresh_head_starts_at_ln_2_and_the_head_moves_first() -> None:
    model, trees = ScoreModel(with_head(tiny_model("llama"))), random_trees(4, branches=2)
    check = check_start(model, reward_algorithm(), trees)
    assert check.status == "pass" and "0.693147 (expected 0.693147)" in check.detail
    gradients = check_gradient(model, None, reward_algorithm(), trees)
    assert gradients.status == "pass"
    assert model.waiting() == {n for n, _ in model.model.named_parameters() if n != "score.weight"}
    warm = scorer()
    assert warm.waiting() == frozenset()
    assert check_start(warm, reward_algorithm(), trees).status == "pass"


def test_a_head_whose_scores_are_all_negative_is_not_at_zero() -> None:
    """Its largest score is below 0: without the absolute value it would be told that all scores are 0."""
    model = ScoreModel(with_head(tiny_model("llama")))
    trees = random_trees(4, branches=2)
    with torch.no_grad():
        batch = collate(trees)
        direction = model.transformer.base_model(batch.input_ids_T[None]).last_hidden_state[0].mean(0)
        model.transformer.score.weight.copy_(-100 * direction[None])
        assert float(model(batch).scores_BH.max()) < 0
    check = check_start(model, reward_algorithm(), trees)
    assert check.evidence["largest_score"] > 0
    assert "expected_loss" not in check.evidence and check.status == "pass"


def test_a_start_that_is_not_chance_fails() -> None:
    trees = [make_tree([1], [5], [6], margin=2.0)]
    model = ScoreModel(with_head(tiny_model("llama")))
    settled = reward_algorithm("bradley_terry", {"margin_scale": 0.5, "label_smoothing": 0.1})
    check = check_start(model, settled, trees)
    assert check.evidence["expected_loss"] == pytest.approx(0.9 * 1.313262 + 0.1 * 0.313262, abs=1e-6)
    assert check.status == "pass"

    plain = reward_algorithm()

    def off(*arguments: Any) -> LossOutput:
        out = plain.loss(*arguments)
        return replace(out, loss=out.loss + 1e-4)

    assert check_start(model, replace(plain, loss=off), trees).status == "fail"


@pytest.mark.parametrize("adapter", [False, True])
def test_it_learns_and_micro_batches_change_no_gradient(adapter: bool) -> None:
    trees = random_trees(6, branches=2, seed=4)
    model: torch.nn.Module = with_head(tiny_model("llama"), init="normal")
    if adapter:
        model = add_adapter(model, LoRA(rank=2), seed=0)
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        assert any("modules_to_save" in name and "score" in name for name in names)
        assert all("lora_" in name or "score" in name for name in names)
        assert not any("score" in name and "lora_" in name for name in names)
    policy = ScoreModel(model)
    gradients = []
    for budget in (10_000, 30, 1):
        policy.zero_grad()
        measured = accumulate(policy, None, reward_algorithm(), trees, budget, step=0)
        gradients.append((measured.metrics["loss"].value, [p.grad for p in policy.parameters() if p.grad is not None]))
    for loss, gradient in gradients[1:]:
        assert loss == pytest.approx(gradients[0][0], rel=1e-5)
        for one, other in zip(gradient, gradients[0][1], strict=True):
            assert torch.allclose(one, other, atol=1e-5)
    policy.zero_grad()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for step in range(25):
        accumulate(policy, None, reward_algorithm(), trees, 10_000, step=step)
        optimizer.step()
        optimizer.zero_grad()
    assert measure(policy, None, reward_algorithm(), trees, 10_000).metrics["reward_accuracy"].value == 1.0


def test_members_of_an_ensemble_start_apart() -> None:
    rule = RewardRule(heads=("a", "b", "c"))
    model = with_head(tiny_model("llama"), rule.heads, init="normal")
    tree = make_tree([1], [5, 6])
    scores = ScoreModel(model)(collate([tree])).scores_BH[0]
    assert scores.shape == (3,) and len(set(scores.tolist())) == 3
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_bf16_keeps_the_head_in_full_precision() -> None:
    model = scorer()
    model.autocast = torch.bfloat16
    scores = model(collate(random_trees(3, branches=2))).scores_BH
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_what_cannot_be_a_reward_model_is_refused() -> None:
    assert not is_reward_model(tiny_model("llama"))
    with pytest.raises(ModelError, match="no reward head"):
        ScoreModel(tiny_model("llama"))


def test_the_backbone_is_shared_and_the_causal_model_keeps_working() -> None:
    causal = tiny_model("gpt2")
    model = with_head(causal)
    assert model.base_model is causal.base_model
    assert model.get_input_embeddings() is causal.get_input_embeddings()
    assert float(causal(torch.tensor([[1, 2]])).logits.abs().sum().detach()) > 0


def test_a_step_counts_what_it_measures() -> None:
    trees: list[TokenTree] = random_trees(4, branches=2)
    measured = measure(scorer(), None, reward_algorithm(), trees, 40)
    assert measured.metrics["reward_mean"].count == count(trees).branches == 8
    assert np.isfinite(measured.metrics["reward_std"].value)
