"""What stands beside a sharded policy: its optimizer, its reference, its value model, and copies that are whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.ranks import ranks
from tests.unit.models.sharding.scenes import Scene, beside, memory_of_reference, read_whole, refused, trained

SCENES = {
    "2 ranks": Scene(),
    "2 x 2, tied": Scene(replicate=2, fields={"tie_word_embeddings": True}),
    "lora": Scene(adapter="lora"),
    "experts": Scene("qwen3_moe", shard=4),
    "padded": Scene(path="padded"),
    "rows": Scene(path="rows"),
}
QUICK_AND_LONG = [
    pytest.param(name, marks=() if name in ("2 x 2, tied", "lora") else pytest.mark.long) for name in SCENES
]
NARROW = Scene(dtype=torch.float32, autocast=torch.bfloat16, gather=torch.bfloat16)


def alone(scene: Scene) -> Scene:
    return replace(scene, shard=1, replicate=1)


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], error: float) -> None:
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=error, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", ["2 ranks", "2 x 2, tied", "lora", "experts"])
def test_steps_of_adamw_are_those_of_one_process(name: str) -> None:
    norms, weights = trained(alone(SCENES[name]))
    assert min(norms) > 0.5  # clipping is at work
    for own_norms, own_weights in ranks(SCENES[name].ranks).run(trained, SCENES[name]):
        assert own_norms == pytest.approx(norms, rel=1e-12)
        assert_close(own_weights, weights, 1e-9)  # Adam divides by a root: small gradients have larger errors


def test_a_gradient_that_is_not_finite_on_one_rank_is_refused_by_all() -> None:
    bad = "model.layers.1.mlp.up_proj.weight"
    for text, tensors, _ in ranks(2).run(refused, Scene(), bad):
        assert tensors == (bad,)
        assert "the step was not taken" in text


@pytest.mark.parametrize("name", QUICK_AND_LONG)
def test_references_values_and_divergences(name: str) -> None:
    """A live reference keeps the start, a value model its own copy, and both compute in parts as the policy does."""
    wanted = beside(alone(SCENES[name]))
    assert not torch.allclose(wanted["policy after a step"], wanted["reference after a step"])
    for found in ranks(SCENES[name].ranks).run(beside, SCENES[name]):
        assert_close(found, wanted, 1e-9)


def test_a_reference_shares_the_frozen_weights() -> None:
    wide = {"vocab_size": 512, "intermediate_size": 256}
    for shared, own in ranks(2).run(memory_of_reference, Scene(adapter="lora", fields=wide)):
        assert shared > 5 * own > 0


@pytest.mark.parametrize("name", ["2 ranks", "2 x 2, tied", "lora", "experts", "narrow"])
def test_whole_again(name: str) -> None:
    """Its fingerprint is that of the whole model, and reading it leaves it as it was."""
    scene = NARROW if name == "narrow" else SCENES[name]
    fingerprint, tensors, logits, before, after = read_whole(alone(scene))
    for own in ranks(scene.ranks).run(read_whole, scene):
        assert own[0] == fingerprint
        assert [place for place, _ in own[1]] == [place for place, _ in tensors]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(own[1], tensors, strict=True))
        torch.testing.assert_close(own[2], logits, rtol=0, atol=0)
        torch.testing.assert_close(own[3], before, rtol=0, atol=1e-10)
        torch.testing.assert_close(own[4], after, rtol=0, atol=1e-10)
