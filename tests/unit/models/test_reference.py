"""Three kinds of reference, one set of numbers; a cache that is resumed, and never used for other weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from posttrain.data.trees import collate
from posttrain.errors import ConfigError, ModelError, NonFiniteError
from posttrain.models.adapters.kinds import LoRA, add_adapter
from posttrain.models.reference import (
    AdapterOffReference,
    CachedReference,
    LiveReference,
    reference,
    reference_key,
)
from posttrain.models.tree.logprobs import Policy
from posttrain.types import PLAIN, TokenTree, Wants
from tests.fixtures import make_tree, random_trees, tiny_model

TREES = random_trees(12, branches=2, mask_probability=0.7, seed=4)


def lora_policy(trained: float = 0.0, **options: Any) -> Policy:
    model = add_adapter(tiny_model(), LoRA(rank=2, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(trained)
    return Policy(model)


def disturb(policy: Policy) -> None:
    """What training does to the parameters that train."""
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05)


def build(policy: Policy, store: Path, trees: Sequence[TokenTree] = TREES, **options: Any) -> CachedReference:
    return CachedReference.build(policy, trees, store, tokens_per_microbatch=64, **options)


class Counting:
    """Counts the trees that go through a policy."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch):
        self.trees = 0
        forward = policy.forward

        def counted(batch: Any, wants: Wants = PLAIN, **options: Any) -> Any:
            self.trees += 0 if wants.probe else batch.num_trees  # the proof of a path is no log-prob of a reference
            return forward(batch, wants, **options)

        monkeypatch.setattr(policy, "forward", counted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_three_kinds_agree_and_stay_where_the_policy_started(tmp_path: Path, dtype: torch.dtype) -> None:
    policy = lora_policy()
    policy.model.to(dtype)
    batch = collate([TREES[7], TREES[0], TREES[3]])
    start = policy(batch).logprobs_N.detach()
    kinds = [build(policy, tmp_path), AdapterOffReference(policy), LiveReference(policy)]
    disturb(policy)
    assert not torch.allclose(policy(batch).logprobs_N, start, atol=1e-3)
    for kind in kinds:
        values = kind.logprobs(batch)
        torch.testing.assert_close(values, start, atol=1e-12 if dtype == torch.float64 else 2e-6, rtol=0)
        assert values.dtype == dtype and not values.requires_grad


@pytest.mark.parametrize("kind", ["cached", "live"])
def test_an_adapter_that_was_trained_before_is_part_of_the_reference(tmp_path: Path, kind: Any) -> None:
    policy = lora_policy(trained=0.3)
    batch = collate(TREES[:4])
    start = policy(batch).logprobs_N.detach()
    frozen = reference(kind, policy, trees=TREES, store=tmp_path)
    disturb(policy)
    torch.testing.assert_close(frozen.logprobs(batch), start, atol=2e-6, rtol=0)
    with policy.model.disable_adapter():  # what trl#1340 took for the reference
        assert not torch.allclose(policy(batch).logprobs_N, start, atol=1e-3)


# ---------------------------------------------------------------- which kind


def test_auto_takes_the_cheapest_that_is_right(tmp_path: Path) -> None:
    fresh, trained, full = lora_policy(), lora_policy(trained=0.1), Policy(tiny_model())
    assert reference("auto", fresh, trees=TREES, store=tmp_path).kind == "cached"
    assert reference("auto", fresh, trees=TREES, store=tmp_path, passes=0.5).kind == "adapter_off"
    assert reference("auto", trained, trees=TREES, store=tmp_path, passes=0.5).kind == "live"
    assert reference("auto", fresh).kind == "adapter_off"
    assert reference("auto", full).kind == "live"


def test_kinds_that_would_be_wrong_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adapter is not fresh"):
        reference("adapter_off", lora_policy(trained=0.1))
    with pytest.raises(ConfigError, match="adapter is not fresh"):
        reference("adapter_off", Policy(tiny_model()))
    with pytest.raises(ConfigError, match="needs all trees before the first step"):
        reference("cached", lora_policy(), store=tmp_path)
    with pytest.raises(ConfigError, match="no such kind"):
        reference("frozen", lora_policy())  # type: ignore[arg-type]


# ---------------------------------------------------------------- cached


def test_each_content_is_computed_once_and_again_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = lora_policy()
    counter = Counting(policy, monkeypatch)
    seen: list[tuple[int, int]] = []
    build(policy, tmp_path, [*TREES, *TREES[:5]], progress=lambda done, total: seen.append((done, total)))
    assert counter.trees == len(TREES)
    assert seen[-1] == (sum(tree.num_tokens for tree in TREES),) * 2 and seen == sorted(seen)
    build(policy, tmp_path, TREES[::-1])
    assert counter.trees == len(TREES)
    build(policy, tmp_path, random_trees(2, seed=9))
    assert counter.trees == len(TREES) + 2


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = lora_policy()
    counter = Counting(policy, monkeypatch)
    calls = iter(range(100))

    def stop_at_third(done: int, total: int) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(policy, tmp_path, progress=stop_at_third)
    before = counter.trees
    assert 0 < before < len(TREES)
    # kill -9 in the middle of a write: half a number and half a record at the ends of the files
    for path in (*tmp_path.rglob("*.values"), *tmp_path.rglob("*.index")):
        path.write_bytes(path.read_bytes()[:-3])
    cached = build(policy, tmp_path)
    assert counter.trees == len(TREES) + 1  # only the torn entry was computed again
    batch = collate(TREES)
    torch.testing.assert_close(cached.logprobs(batch), policy(batch).logprobs_N, atol=2e-6, rtol=0)


def test_the_key_knows_weights_scale_path_and_precision() -> None:
    keys = {
        reference_key(policy)
        for policy in (
            lora_policy(),
            lora_policy(trained=1e-3),
            lora_policy(alpha=31),
            Policy(add_adapter(tiny_model(), LoRA(rank=2)), "padded"),
            Policy(add_adapter(tiny_model(), LoRA(rank=2)), autocast=torch.bfloat16),
            Policy(add_adapter(tiny_model(rope_parameters={"rope_type": "default", "rope_theta": 9e3}), LoRA(rank=2))),
            Policy(tiny_model()),
        )
    }
    assert len(keys) == 7
    assert reference_key(lora_policy()) in keys


def test_a_cache_of_other_weights_is_never_used(tmp_path: Path) -> None:
    first, second = lora_policy(), lora_policy(trained=0.2)
    build(first, tmp_path)
    batch = collate(TREES[:3])
    torch.testing.assert_close(build(second, tmp_path).logprobs(batch), second(batch).logprobs_N.detach())
    # even if somebody gives the one folder the other's name
    folders = {reference_key(policy)[:32]: tmp_path / reference_key(policy)[:32] for policy in (first, second)}
    one, other = folders.values()
    other.rename(tmp_path / "aside")
    one.rename(other)
    with pytest.raises(ModelError, match="computed with other weights"):
        build(second, tmp_path)


def test_altered_numbers_are_refused(tmp_path: Path) -> None:
    policy = lora_policy()
    cached = build(policy, tmp_path)
    path = next(tmp_path.rglob("*.values"))
    values = np.fromfile(path, np.float32)
    (values * 1.001).astype(np.float32).tofile(path)
    reopened = CachedReference(tmp_path, cached.key)
    with pytest.raises(ModelError, match="were altered"):
        reopened.logprobs(collate(TREES[:1]))


def test_a_resumed_run_opens_its_cache_by_the_key_it_kept(tmp_path: Path) -> None:
    policy = lora_policy()
    key = build(policy, tmp_path).key
    batch = collate(TREES[:2])
    start = policy(batch).logprobs_N.detach()
    disturb(policy)
    torch.testing.assert_close(CachedReference(tmp_path, key).logprobs(batch), start, atol=2e-6, rtol=0)


def test_a_tree_that_was_never_cached_is_refused_by_row(tmp_path: Path) -> None:
    cached = build(lora_policy(), tmp_path)
    stranger = random_trees(1, seed=77)[0]
    with pytest.raises(ModelError, match=r"test.jsonl, row 1: .* never computed"):
        cached.logprobs(collate([TREES[0], stranger]))


def test_trees_that_train_nothing_have_no_numbers(tmp_path: Path) -> None:
    silent = make_tree([1, 2], ([3, 4], [False, False]), ([5], [False]))
    cached = build(lora_policy(), tmp_path, [silent])
    assert cached.logprobs(collate([silent])).shape == (0,)
    mixed = build(lora_policy(), tmp_path, [silent, TREES[0]])
    assert len(mixed.logprobs(collate([TREES[0], silent]))) == TREES[0].num_trained


def test_log_probs_that_are_not_finite_name_their_rows(tmp_path: Path) -> None:
    policy = Policy(tiny_model())
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[96] = float("nan")
    bad = make_tree([1, 96], [5, 6], [7], row=41)
    with pytest.raises(NonFiniteError, match=r"test.jsonl, row 41"):
        build(policy, tmp_path, [TREES[0], bad])


# ---------------------------------------------------------------- live


def test_a_live_copy_shares_what_does_not_train() -> None:
    policy = lora_policy()
    live = LiveReference(policy)
    mine = {p.data_ptr(): p.numel() for p in policy.parameters()}
    theirs = {p.data_ptr(): p.numel() for p in live._policy.parameters()}
    adapter = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert sum(count for place, count in theirs.items() if place not in mine) == adapter
    next(p for p in policy.parameters() if not p.requires_grad).requires_grad_(True)
    with pytest.raises(ModelError, match="have begun to train"):
        live.logprobs(collate(TREES[:1]))


def test_a_live_copy_of_a_full_model_shares_nothing_and_keeps_ties() -> None:
    policy = Policy(tiny_model(tie_word_embeddings=True))
    live = LiveReference(policy)
    mine = {p.data_ptr() for p in policy.parameters()}
    assert not any(p.data_ptr() in mine or p.requires_grad for p in live._policy.parameters())
    copied = live._policy.causal_lm
    assert copied.get_output_embeddings().weight is copied.get_input_embeddings().weight
