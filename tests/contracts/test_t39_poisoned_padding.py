"""T39: NaN, then 1e9, at every place that does not train changes nothing: losses, gradients, advantages, values.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from posttrain.advantages import ADVANTAGES, Rollout, advantages, gae, token_rewards, whitened
from posttrain.data.trees import collate
from posttrain.losses.online import ONLINE
from posttrain.losses.value import value_loss
from tests.online_batches import group, run

POISONS = (float("nan"), 1e9)
LENGTHS = (3, 1, 4)
NAMES = ("advantages", "old_logprobs", "reference_logprobs", "sampler_logprobs", "values", "returns")


def responses(seed: int = 0) -> list[dict[str, list[float]]]:
    generator = torch.Generator().manual_seed(seed)
    return [{name: torch.randn(length, generator=generator).tolist() for name in NAMES} for length in LENGTHS]


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("name", ONLINE)
def test_t39_losses_and_gradients(name: str, poison: float) -> None:
    found = []
    for value in (None, poison):
        leaf = torch.linspace(-2.0, -0.1, sum(LENGTHS), dtype=torch.float64).requires_grad_()
        out = run(name, leaf, collate([group(responses(), poison=value)]))
        found.append((out.loss.item(), torch.autograd.grad(out.loss, leaf)[0]))
    assert found[0][0] == found[1][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1]) and found[1][1].isfinite().all()


@pytest.mark.parametrize("poison", POISONS)
def test_t39_value_loss(poison: float) -> None:
    found = []
    for value in (None, poison):
        leaf = torch.linspace(-1.0, 1.0, sum(LENGTHS), dtype=torch.float64).requires_grad_()
        batch = collate([group(responses(), poison=value)])
        out = value_loss(leaf, batch, batch.count)
        found.append((out.loss.item(), torch.autograd.grad(out.loss, leaf)[0].tolist()))
    assert found[0] == found[1]


MASK = torch.tensor([[True, True, False, False], [True, False, True, True], [False, False, False, False]])


def rollout(poison: float | None) -> Rollout:
    """Three responses of one prompt; the third has no token, its reward was given."""
    generator = torch.Generator().manual_seed(0)

    def padded() -> Tensor:
        values = torch.randn(MASK.shape, generator=generator, dtype=torch.float64)
        return values if poison is None else values.masked_fill(~MASK, poison)

    rewards_B = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    return Rollout(rewards_B, torch.zeros(3, dtype=torch.long), MASK, padded(), padded(), padded())


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("kind", ADVANTAGES)
def test_t39_advantages(kind: str, poison: float) -> None:
    clean = advantages(kind, rollout(None), kl_beta=0.0 if kind == "maxrl" else 0.1)
    dirty = advantages(kind, rollout(poison), kl_beta=0.0 if kind == "maxrl" else 0.1)
    assert torch.equal(clean.values_BL, dirty.values_BL) and dirty.values_BL.isfinite().all()
    assert (dirty.values_BL[~MASK] == 0).all()
    if clean.returns_BL is not None and dirty.returns_BL is not None:
        assert torch.equal(clean.returns_BL, dirty.returns_BL)


@pytest.mark.parametrize("poison", POISONS)
def test_t39_token_level(poison: float) -> None:
    clean, dirty = rollout(None), rollout(poison)
    assert clean.kl_BL is not None and dirty.kl_BL is not None
    rewards = [token_rewards(each.rewards_B, MASK, each.kl_BL, 0.1) for each in (clean, dirty)]
    assert torch.equal(*rewards)
    poisoned = rewards[0].masked_fill(~MASK, poison)
    assert dirty.values_BL is not None and clean.values_BL is not None
    for ours, theirs in zip(gae(rewards[0], clean.values_BL, MASK), gae(poisoned, dirty.values_BL, MASK), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(whitened(rewards[0], MASK), whitened(poisoned, MASK))
    assert torch.equal(
        token_rewards(dirty.rewards_B.index_fill(0, torch.tensor([2]), poison), MASK),
        token_rewards(clean.rewards_B, MASK),
    )
