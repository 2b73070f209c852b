"""T60: small updates survive bf16 arithmetic, because the weights themselves stay fp32 (ml-by-hand PR#85).

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posttrain.config.settings import OptimizerSettings as Settings
from posttrain.config.settings import Schedule
from posttrain.errors import ConfigError
from posttrain.training.optimizer import Optimizer


class One(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, dtype=dtype))


def optimizer_of(model: nn.Module) -> Optimizer:
    return Optimizer(
        model,
        Settings(clip_norm=None),
        learning_rate=6e-4,
        schedule=Schedule(kind="constant", warmup_ratio=0),
        steps=100,
    )


def test_a_hundred_small_steps_move_the_weight() -> None:
    model = One()
    optimizer = optimizer_of(model)
    for step in range(100):
        with torch.autocast("cpu", torch.bfloat16):
            out = nn.functional.linear(torch.ones(1, 1), model.weight)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
        optimizer.step(step)
    assert 1.0 - float(model.weight.detach()) >= 0.05


def test_weights_kept_in_bf16_are_refused() -> None:
    with pytest.raises(ConfigError, match="16 bits"):
        optimizer_of(One(torch.bfloat16))
