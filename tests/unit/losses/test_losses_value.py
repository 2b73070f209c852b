"""The value model's loss by hand, its clip, and how much of the returns it explains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from posttrain.data.trees import collate
from posttrain.diagnostics.metrics import METRICS, merge, values
from posttrain.errors import ConfigError
from posttrain.losses.value import value_loss
from posttrain.outputs import Deviation, EffectiveSize, ExplainedVariance
from tests.online_batches import group

# V_old 0, 0, 0; R 1, 1, -1
BATCH = collate([group([{"values": [0.0, 0.0], "returns": [1.0, 1.0]}, {"values": [0.0], "returns": [-1.0]}])])


def test_by_hand() -> None:
    """V = 0.1 within the clip: 0.81. V = 0.5 beyond it, towards R: max(0.25, 0.64). V = 0.5 away from R: 2.25."""
    leaf = torch.tensor([0.1, 0.5, 0.5], dtype=torch.float64, requires_grad=True)
    out = value_loss(leaf, BATCH, BATCH.count, clip=0.2)
    assert out.loss.item() == pytest.approx((0.81 + 0.64 + 2.25) / 6)
    assert torch.autograd.grad(out.loss, leaf)[0].tolist() == pytest.approx([-0.9 / 3, 0.0, 1.5 / 3])
    metrics = values(out.metrics)
    assert metrics["value_loss"] == pytest.approx((0.81 + 0.64 + 2.25) / 6)
    assert metrics["value_clip_share"] == pytest.approx(1 / 3)
    assert metrics["value_mean"] == pytest.approx(1.1 / 3) and metrics["return_mean"] == pytest.approx(1 / 3)
    assert out.metrics.keys() <= METRICS.keys()


def test_no_gradient_reaches_what_was_carried() -> None:
    """Old values and returns are targets: a gradient through them would pull the target to the estimate."""
    leaves = {name: torch.tensor([0.2, 0.4, 0.3], requires_grad=True) for name in ("values", "returns")}
    batch = replace(BATCH, columns_N=leaves)
    estimate_N = torch.tensor([0.1, 0.5, 0.5], requires_grad=True)
    value_loss(estimate_N, batch, batch.count).loss.backward()
    assert estimate_N.grad is not None and all(leaf.grad is None for leaf in leaves.values())


def test_no_clip_and_a_weight() -> None:
    values_N = torch.tensor([0.1, 0.5, 0.5], dtype=torch.float64)
    out = value_loss(values_N, BATCH, BATCH.count, clip=0.0, weight=0.1)
    assert out.loss.item() == pytest.approx(0.1 * (0.81 + 0.25 + 2.25) / 6)
    assert values(out.metrics)["value_loss"] == pytest.approx((0.81 + 0.25 + 2.25) / 6)


def test_gradcheck() -> None:
    values_N = torch.tensor([0.1, 0.5, 0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda leaf: value_loss(leaf, BATCH, BATCH.count).loss, values_N)


def test_micro_batches_add_up() -> None:
    trees = [
        group([{"values": [0.1, 0.2, 0.3], "returns": [1.0, 0.0, 0.5]}], row=1),
        group([{"values": [0.0], "returns": [2.0]}], row=2),
    ]
    whole = collate(trees)
    values_N = torch.tensor([0.5, -0.4, 0.3, 0.9], dtype=torch.float64)
    step = value_loss(values_N, whole, whole.count)
    parts = [
        value_loss(values_N[at], collate([tree]), whole.count)
        for tree, at in zip(trees, (slice(0, 3), slice(3, 4)), strict=True)
    ]
    assert sum(part.loss.item() for part in parts) == pytest.approx(step.loss.item())
    assert values(merge(part.metrics for part in parts)) == pytest.approx(values(step.metrics))


def test_explained_variance() -> None:
    trees = [group([{"values": [0.0] * 4, "returns": [1.0, 2.0, 3.0, 4.0]}])]
    batch = collate(trees)

    def explained(values_N: list[float]) -> float:
        out = value_loss(torch.tensor(values_N, dtype=torch.float64), batch, batch.count)
        return out.metrics["value_explained_variance"].value

    assert explained([1.0, 2.0, 3.0, 4.0]) == pytest.approx(1.0)
    assert explained([11.0, 12.0, 13.0, 14.0]) == pytest.approx(1.0)  # a constant error is no variance
    assert explained([7.0] * 4) == pytest.approx(0.0)
    assert explained([4.0, 3.0, 2.0, 1.0]) == pytest.approx(-3.0)


def test_metrics_that_need_more_than_a_mean_merge_exactly() -> None:
    parts = [EffectiveSize(2.0, 4.0, 1), EffectiveSize(2.0, 2.0, 2)]
    assert merge([{"n": part} for part in parts])["n"].value == pytest.approx(16 / 18)
    assert EffectiveSize(0.0, 0.0, 0).value != EffectiveSize(0.0, 0.0, 0).value
    constant = ExplainedVariance(Deviation(2, 0.0, 1.0), Deviation(2, 1.0, 0.0))
    assert constant.value != constant.value
    with pytest.raises(TypeError, match="both"):
        merge([{"n": parts[0]}, {"n": constant}])


def test_missing_columns_are_named() -> None:
    batch = collate([group([{"values": [0.0]}])])
    with pytest.raises(ConfigError, match="no returns"):
        value_loss(torch.zeros(1), batch, batch.count)
