"""Which model fits where: `python -m benchmarks.hardware [--only 0.5B]` prints the table of docs/hardware.md.

Weights, gradients, moments and the reference are counted from the shapes of well-known models. Activations are
measured as the preflight measures them (`working_memory`), on the same shapes with one and with three layers, and
drawn on to all layers: each layer keeps the same, and what does not depend on the layers (the vocabulary) is the rest.
On CPU in fp32; random weights; a row of 128 tokens, half of which train.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.config import LoRA
from posttrain.models.adapters.kinds import add_adapter
from posttrain.models.tree.logprobs import Policy
from posttrain.training.checks.memory import HEAP_SLACK, Working, working_memory
from posttrain.types import Branch, RowRef, TokenTree

TOKENS = 1024
"""Of a micro-batch on CPU; fewer only where a row is shorter."""
PROGRAM = 0.45e9
"""Interpreter and libraries."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape("135M", vocabulary=49152, width=576, hidden=1536, layers=30, heads=9, key_heads=3, tied=True)."""

    name: str
    like: str
    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    tied: bool

    def config(self, layers: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.hidden,
            num_hidden_layers=layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            tie_word_embeddings=self.tied,
        )


SHAPES = (
    Shape("135M", "SmolLM2-135M", 49_152, 576, 1536, 30, 9, 3, True),
    Shape("0.5B", "Qwen2.5-0.5B", 151_936, 896, 4864, 24, 14, 2, True),
    Shape("1.7B", "SmolLM2-1.7B", 49_152, 2048, 8192, 24, 32, 32, True),
    Shape("3B", "Llama-3.2-3B", 128_256, 3072, 8192, 28, 24, 8, True),
)


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes of one shape, with all weights or with a LoRA: Needs(weights=5.4e8, trained=5.4e8, activations=1.1e9)."""

    weights: float
    trained: float
    activations: float

    def step(self, *, reference: bool = False) -> float:
        """Weights, gradients, two moments and activations; a live copy of the start beside them if `reference`."""
        return PROGRAM + self.weights * (1 + reference) + 3 * self.trained + self.activations


def parameters(shape: Shape, layers: int, rank: int | None) -> tuple[int, int]:
    """(all, trained) parameters, counted on a model without memory behind it."""
    with torch.device("meta"):
        model = LlamaForCausalLM(shape.config(layers))
    counted = sum(p.numel() for p in model.parameters())
    if rank is None:
        return counted, counted
    linear = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    low = sum(rank * (m.in_features + m.out_features) for m in linear)
    return counted + low, low


def working(shape: Shape, layers: int, rank: int | None) -> Working:
    model = LlamaForCausalLM(shape.config(layers))
    policy = Policy(model if rank is None else add_adapter(model, LoRA(rank=rank)))
    ids = np.arange(1, 65, dtype=np.int32)
    response = Branch(ids, np.ones(64, dtype=bool))
    return working_memory(policy, [TokenTree(ids, (response,), key="measured", row=RowRef("memory", 1))])


def needs(shape: Shape, rank: int | None) -> Needs:
    one, three = (working(shape, layers, rank) for layers in (1, 3))
    sizes = [w.per_token * TOKENS + w.fixed + HEAP_SLACK * w.heap_bytes(TOKENS) for w in (one, three)]
    activations = sizes[0] + (sizes[1] - sizes[0]) / 2 * (shape.layers - 1)
    counted, trained = parameters(shape, shape.layers, rank)
    return Needs(4.0 * counted, 4.0 * trained, activations)


def row(shape: Shape) -> str:
    full, low = needs(shape, None), needs(shape, 16)
    columns = (low.step(), full.step(), full.step(reference=True))
    sizes = " | ".join(f"{size / 1e9:,.1f}" for size in columns)
    return f"| {shape.name} | {shape.like} | {full.weights / 1e9:,.1f} | {sizes} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", help="one size by name")
    wanted = parser.parse_args(arguments).only
    print("| size | such as | weights | LoRA of rank 16 | all weights | all weights, live reference |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        if wanted in (None, shape.name):
            print(row(shape), flush=True)


if __name__ == "__main__":
    main()
