"""Proof that a model computes the same twice: two calls on the same rows, gradients recorded, and both gradients.

Every comparison that training makes (policy against reference, new log-probs against old, tree against padded) reads
the difference of two calls as the difference of two models. Noise that eval mode leaves on would be read so too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from posttrain.data.trees import collate
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.parity import largest, relative, values_and_gradient
from posttrain.types import Batch, TokenTree

ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of a value, in nats, and of the gradient relative to its norm. On a CPU both are 0; on CUDA sums that are collected
by atomic additions round in another order each time. A dropout of 0.01 moves log-probs by more than 1e-2."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """Repeat(value=0.0, gradient=0.0, source=None): how far two equal calls are apart, and what makes them so."""

    value: float
    """The largest difference of a log-prob in nats (of a score or a value, for other models)."""
    gradient: float
    """Relative to its norm."""
    dtype: torch.dtype
    source: str | None = None
    """The innermost module that makes two outputs of one input: "model.layers.0.mlp (MixtralSparseMoeBlock)"."""

    @property
    def holds(self) -> bool:
        return self.value <= ALLOWED[self.dtype] and self.gradient <= ALLOWED[self.dtype]


def repeat(policy: TreeModel, trees: Sequence[TokenTree]) -> Repeat:
    """Call the policy twice on `trees`, without dropout and autocast, by the padded path, which every model has."""
    with policy.without_dropout(), _without_autocast(policy):
        # With the gradient: an op that is deterministic forward may still add up its backward in any order.
        (first, slope), (second, again) = (values_and_gradient(policy, trees, "padded") for _ in range(2))
        result = Repeat(largest(first - second), relative(again or [], slope or []), policy.dtype)
        return result if result.holds else replace(result, source=_source(policy, collate(trees)))


@contextmanager
def _without_autocast(policy: TreeModel) -> Iterator[None]:
    """In the weights' own precision: coarser rounding would have to be allowed for, and would hide a weak noise."""
    autocast, policy.autocast = policy.autocast, None
    try:
        yield
    finally:
        policy.autocast = autocast


# ---------------------------------------------------------------- where the noise comes from

Prints = dict[tuple[str, int], tuple[list[float], list[float]]]
"""For the n-th call of each module, fingerprints of what went in and of what came out, in the order of completion."""


def _source(policy: TreeModel, batch: Batch) -> str | None:
    """The first module to end whose outputs differ though its inputs are the same: children end before their parents,
    so it is the innermost. None where no forward differs, so that the noise is in the backward pass."""
    runs = []
    for _ in range(2):
        with _printed(policy.model) as prints:
            policy.compared(batch, "padded")
        runs.append(prints)
    kinds = {name: type(module).__name__ for name, module in policy.model.named_modules()}
    for call, (inputs, outputs) in runs[0].items():
        other = runs[1].get(call)
        # Same inputs and other outputs: a module that only passes on somebody's noise has other inputs already.
        if other is not None and inputs == other[0] and outputs != other[1]:
            return f"{call[0] or 'the model itself'} ({kinds[call[0]]})"
    return None


@contextmanager
def _printed(model: nn.Module) -> Iterator[Prints]:
    prints: Prints = {}
    calls: dict[str, int] = {}
    handles = []

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            prints[name, calls[name]] = (_fingerprint((args, kwargs)), _fingerprint(output))

        return hook

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(record(name), with_kwargs=True))
        yield prints
    finally:
        for handle in handles:
            handle.remove()


def _fingerprint(values: Any) -> list[float]:
    """Two sums of each tensor: equal tensors have equal ones, and nothing large is kept."""
    tensors = [leaf.detach() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    wide = [tensor.double() for tensor in tensors]
    return [float(part) for tensor in wide for part in (tensor.sum(), tensor.square().sum())]
