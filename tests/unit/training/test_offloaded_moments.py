"""Moments that lie elsewhere and come for one tensor at a time: the same weights, bit for bit."""

from __future__ import annotations

import pytest
import torch

from posttrain.config.settings import OptimizerSettings, Schedule
from posttrain.training.optimizer import Optimizer
from tests.fixtures import tiny_model


def steps(offload: bool, first: int, count: int, model: torch.nn.Module, state: object = None) -> Optimizer:
    settings = OptimizerSettings(weight_decay=0.1, clip_norm=0.5)
    optimizer = Optimizer(model, settings, learning_rate=1e-2, schedule=Schedule(), steps=4, offload=offload)
    if state is not None:
        optimizer.load_state_dict(state)  # type: ignore[arg-type]
    for step in range(first, first + count):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step(step)
    return optimizer


@pytest.mark.parametrize("resumed", [False, True])
def test_the_weights_are_the_same(resumed: bool) -> None:
    whole, offloaded = tiny_model(), tiny_model()
    wanted = steps(False, 0, 4, whole)
    if resumed:
        kept = steps(True, 0, 2, offloaded).state_dict()
        found = steps(True, 2, 2, offloaded, kept)
    else:
        found = steps(True, 0, 4, offloaded)
    pairs = zip(whole.named_parameters(), offloaded.parameters(), strict=True)
    assert [name for (name, a), b in pairs if not torch.equal(a, b)] == []
    assert {name: set(parts) for name, parts in found.state_dict().items()} == {
        name: set(parts) for name, parts in wanted.state_dict().items()
    }
    assert [len(group["params"]) for group in found.adamw.param_groups] == [
        len(group["params"]) for group in wanted.adamw.param_groups
    ]
