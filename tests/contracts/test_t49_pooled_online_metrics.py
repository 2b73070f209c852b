"""T49 for online metrics: 3 clipped of 12 tokens on one rank and 3 of 4 on the other are 6 of 16.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import torch

from posttrain.data.trees import collate
from posttrain.diagnostics.metrics import merge
from tests.online_batches import group, run

CLIPPED, FREE = -0.1, -1.0  # ratios e^0.9 and 1 with a positive advantage


def rank(clipped: int, tokens: int) -> dict[str, object]:
    logprob_N = torch.tensor([CLIPPED] * clipped + [FREE] * (tokens - clipped), dtype=torch.float64)
    batch = collate([group([{"advantages": [1.0] * tokens, "old_logprobs": [-1.0] * tokens}])])
    return dict(run("dapo", logprob_N, batch).metrics)


def test_t49_clip_share() -> None:
    merged = merge([rank(3, 12), rank(3, 4)])  # type: ignore[list-item]
    assert merged["clip_share_high"].value == 0.375
    assert merged["length_generated"].value == 8.0
