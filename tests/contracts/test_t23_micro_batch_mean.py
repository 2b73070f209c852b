"""T23: the token mean of unequal micro-batches is a mean over tokens, not a mean of means.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import pytest
import torch

from posttrain.diagnostics.metrics import merge
from posttrain.losses.sft import sft_loss
from posttrain.outputs import TokenLogprobs
from posttrain.types import Count
from tests.loss_batches import batch_of


def test_t23() -> None:
    step = Count(tokens=1000, branches=2, trees=2)
    micro = [(100, -0.5), (900, -0.3)]
    outputs = [sft_loss(TokenLogprobs(torch.full((n,), value)), batch_of([(n,)]), step) for n, value in micro]
    assert sum(out.loss.item() for out in outputs) == pytest.approx(0.32)
    assert merge(out.metrics for out in outputs)["loss"].value == pytest.approx(0.32)
