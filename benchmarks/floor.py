"""The matrix-multiply floor of a step: the FLOPs of its unique tokens over the rate that this machine multiplies at.

    python -m benchmarks.floor --model FOLDER [--tokens 1024]

Counted is what no exact implementation can leave out: for each linear layer of the backbone the forward and the two
products of the backward pass, for the output projection the same at the trained tokens only, for attention the scores
and the weighted sum over the visible pairs. A reference adds its forward. Nothing recomputed is counted, and neither
norms, activations, softmax nor the optimizer.

The rate is measured for the model's own shapes, each product in the layout in which training asks for it.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posttrain.models import Policy, load
from posttrain.types import TokenTree

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = "y = x W^T", "dx = dy W", "dW = dy^T x"
PRODUCTS = (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT)
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Shape:
    """A linear layer, and how often the backbone has it: Shape(1536, 576, 60)."""

    outputs: int
    inputs: int
    count: int

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs * self.count


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where a model's FLOPs are: Architecture(linear=(Shape(576, 576, 60), ...), head=Shape(49152, 576, 1), ...)."""

    linear: tuple[Shape, ...]
    head: Shape
    attention_width: int
    """Heads times head size, summed over the layers."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a step has to compute: Work(tokens=2200, trained=1300, pairs=410_000, reference=True)."""

    tokens: int
    trained: int
    pairs: int
    """(query, key) pairs that attention may see, the prompt's counted once."""
    reference: bool

    @classmethod
    def of(cls, trees: Sequence[TokenTree], *, reference: bool) -> Work:
        return cls(
            sum(tree.num_tokens for tree in trees),
            sum(tree.num_trained for tree in trees),
            sum(visible_pairs(tree) for tree in trees),
            reference,
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """FLOP/s of each product of each shape: Rates({(1536, 576, "y = x W^T"): 1.4e11, ...})."""

    per_second: dict[tuple[int, int, str], float]

    def seconds(self, shape: Shape, product: str, tokens: int) -> float:
        return 2 * shape.weights * tokens / self.per_second[shape.outputs, shape.inputs, product]


def visible_pairs(tree: TokenTree) -> int:
    """Prompt p and branches b: p(p+1)/2 + sum of p b + b(b+1)/2."""
    prompt = len(tree.prompt_ids)
    sizes = [len(branch.ids) for branch in tree.branches]
    return prompt * (prompt + 1) // 2 + sum(prompt * size + size * (size + 1) // 2 for size in sizes)


def read_architecture(policy: Policy) -> Architecture:
    causal_lm = policy.causal_lm
    head = causal_lm.get_output_embeddings().weight
    layers = [m for m in causal_lm.base_model.modules() if isinstance(m, nn.Linear)]
    shapes = Counter((layer.out_features, layer.in_features) for layer in layers)
    config = causal_lm.config.get_text_config()
    head_size = config.head_dim or config.hidden_size // config.num_attention_heads
    return Architecture(
        tuple(Shape(outputs, inputs, count) for (outputs, inputs), count in shapes.items()),
        Shape(head.shape[0], head.shape[1], 1),
        config.num_hidden_layers * config.num_attention_heads * head_size,
    )


def flops(architecture: Architecture, work: Work) -> float:
    """2 per weight and token, for 1 forward, 2 backward products, and 1 forward of the reference."""
    passes = 4 if work.reference else 3
    linear = 2 * sum(shape.weights for shape in architecture.linear) * work.tokens
    head = 2 * architecture.head.weights * work.trained
    return passes * (linear + head) + attention_flops(architecture, work)


def attention_flops(architecture: Architecture, work: Work) -> float:
    """Scores and weighted sum: 2 products forward, 4 backward, 2 for the reference."""
    products = 8 if work.reference else 6
    return products * 2.0 * architecture.attention_width * work.pairs


def floor_seconds(architecture: Architecture, work: Work, rates: Rates) -> float:
    """Each product at its own measured rate; attention at the mean rate of the rest."""
    passes = [FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, *([FORWARD] if work.reference else [])]
    parts = [(shape, work.tokens) for shape in architecture.linear] + [(architecture.head, work.trained)]
    seconds = sum(rates.seconds(shape, product, tokens) for shape, tokens in parts for product in passes)
    attention = attention_flops(architecture, work)
    return seconds * (1 + attention / (flops(architecture, work) - attention))


def measure_rates(architecture: Architecture, tokens: int) -> Rates:
    """The best of a few repeats for each product; other work on the machine only ever slows one down."""
    found = {}
    for shape in (*architecture.linear, architecture.head):
        x, weight = torch.randn(tokens, shape.inputs), torch.randn(shape.outputs, shape.inputs)
        y = torch.randn(tokens, shape.outputs)
        factors = {FORWARD: (x, weight.T), INPUT_GRADIENT: (y, weight), WEIGHT_GRADIENT: (y.T, x)}
        for product, (left, right) in factors.items():
            seconds = _best_seconds(left, right)
            found[shape.outputs, shape.inputs, product] = 2 * y.numel() * shape.inputs / seconds
    return Rates(found)


def _best_seconds(left: Tensor, right: Tensor) -> float:
    out = left @ right  # into memory that is there already: page faults are no part of the rate
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - started)
    return best


def table(architecture: Architecture, rates: Rates) -> str:
    lines = [f"{'layer':>14} {'count':>6} " + " ".join(f"{product:>12}" for product in PRODUCTS) + "   GFLOP/s"]
    for shape in (*architecture.linear, architecture.head):
        speeds = [rates.per_second[shape.outputs, shape.inputs, product] / 1e9 for product in PRODUCTS]
        layer = f"{shape.outputs}x{shape.inputs}"
        lines.append(f"{layer:>14} {shape.count:>6} " + " ".join(f"{speed:12.0f}" for speed in speeds))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=1024, help="rows of each product")
    given = parser.parse_args()
    architecture = read_architecture(Policy(load(given.model).model))
    print(table(architecture, measure_rates(architecture, given.tokens)))


if __name__ == "__main__":
    main()
