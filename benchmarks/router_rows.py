"""What both sides of `benchmarks.router` train: the same rows of ids, a tiny mixture of experts, one step of SGD."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

VOCAB = 97
PAD = 0
RATE = 0.1
BETA = 0.1
SHAPE: Mapping[str, int] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
}

Row = Mapping[str, Sequence[int]]


def rows(count: int = 6, seed: int = 0) -> list[Row]:
    """[{"prompt": [5, 71], "chosen": [9, 4, 33], "rejected": [8]}]; no id is the pad token's."""
    draw = random.Random(seed)
    lengths = {"prompt": (3, 12), "chosen": (2, 10), "rejected": (2, 10)}
    return [
        {side: [draw.randrange(1, VOCAB) for _ in range(draw.randint(*bounds))] for side, bounds in lengths.items()}
        for _ in range(count)
    ]
