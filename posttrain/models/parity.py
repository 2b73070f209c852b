"""Proof, on the run's own rows, that the fast path computes what the slow one does and that nothing leaks.

The models of `transformers` take what they do not know in silence, so a model that the tree cannot serve (a
recurrent state, a mask of its own) is told apart by its numbers, not by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from posttrain.data.trees import collate
from posttrain.models.logprobs import Path, TreeModel
from posttrain.types import TokenTree

RELATIVE_ERROR = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Allowed gap of the gradient, relative to its norm. Rounding in SmolLM2-135M (30 layers, fp32) measures 6e-5; a token
that sees its neighbour's prompt moves the gradient by tens of percent."""
LOGPROB_ERROR = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
"""Allowed gap of one token's log-prob, in nats."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Gap(logprob=3e-6, gradient=2e-6, tokens=412): the largest difference of a log-prob in nats (of a score, for a
    reward model), and of the gradient relative to its norm."""

    logprob: float
    gradient: float
    tokens: int
    dtype: torch.dtype = torch.float32
    """What the model computes in; see `computed_in`."""
    compared: str = "log-probs"

    @property
    def holds(self) -> bool:
        return self.logprob <= LOGPROB_ERROR[self.dtype] and self.gradient <= RELATIVE_ERROR[self.dtype]

    def line(self) -> str:
        nats = " nats" if self.compared == "log-probs" else ""
        return (
            f"{self.compared} differ by at most {self.logprob:.1e}{nats}, gradients by {self.gradient:.1e} of their "
            f"norm, computed in {str(self.dtype).removeprefix('torch.')}"
        )


def tree_against_padded(policy: TreeModel, trees: Sequence[TokenTree]) -> Gap:
    """The tree path against ordinary rows: values and the whole gradient.

    Raises whatever the model raises when it is called with a token tree.
    """
    fast = _values_and_gradient(policy, trees, "tree")
    slow = _values_and_gradient(policy, trees, "padded")
    return Gap(
        _largest(fast[0] - slow[0]),
        _relative(fast[1], slow[1]),
        sum(tree.num_tokens for tree in trees),
        computed_in(policy, trees),
        policy.compares,
    )


def leak(policy: TreeModel, trees: Sequence[TokenTree]) -> Gap:
    """What changing the first branch's tokens does to all others: 0 but for rounding, if nothing leaks.

    The log-probs compared are those of all other branches of all trees, and the gradient is that of their sum.
    """
    changed = [_with_other_first_branch(policy, trees[0]), *trees[1:]]
    before = _values_and_gradient(policy, trees, policy.path, skip_first_branch=True)
    after = _values_and_gradient(policy, changed, policy.path, skip_first_branch=True)
    return Gap(
        _largest(after[0] - before[0]),
        _relative(after[1], before[1]),
        sum(tree.num_tokens for tree in trees),
        computed_in(policy, trees),
        policy.compares,
    )


@torch.no_grad()
def beside(policy: TreeModel, trees: Sequence[TokenTree], longer: TokenTree) -> Gap:
    """What a longer row in the same micro-batch does to `trees`: 0 but for rounding, where rows are kept apart."""
    alone, _ = policy.compared(collate(trees))
    together, _ = policy.compared(collate([*trees, longer]))
    tokens = longer.num_tokens + sum(tree.num_tokens for tree in trees)
    return Gap(_largest(together[: len(alone)] - alone), 0.0, tokens, computed_in(policy, trees), policy.compares)


def computed_in(policy: TreeModel, trees: Sequence[TokenTree]) -> torch.dtype:
    """The dtype that bounds the rounding: the narrowest that anything on the way to the log-probs is turned into.

    Many models of `transformers` compute norms and softmax in fp32 also where the weights are fp64, so two paths agree
    to fp32 rounding there, and no better.
    """
    if policy.autocast or policy.dtype != torch.float64:
        return policy.autocast or policy.dtype
    with torch.enable_grad(), _some_gradient(policy), _Narrowings() as seen:
        policy.compared(collate(trees[:1]), "padded")
    return seen.narrowest


@contextmanager
def _some_gradient(policy: TreeModel) -> Iterator[None]:
    """A model whose weights are all frozen has the gradient of its embeddings looked at."""
    if any(p.requires_grad for p in policy.parameters()):
        yield
        return
    weight = policy.transformer.get_input_embeddings().weight
    weight.requires_grad_(True)
    try:
        yield
    finally:
        weight.requires_grad_(False)


class _Narrowings(TorchFunctionMode):
    """Watches for tensors with a gradient that are turned from fp64 into something narrower.

    Constants, such as the angles of a rotary embedding, have none: they are the same on every path.
    """

    narrowest = torch.float64

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if source is not None and isinstance(out, Tensor) and source.requires_grad and out.is_floating_point():
            self.narrowest = min(self.narrowest, out.dtype, key=lambda dtype: dtype.itemsize)
        return out


def _with_other_first_branch(policy: TreeModel, tree: TokenTree) -> TokenTree:
    vocabulary = int(policy.transformer.config.get_text_config().vocab_size)
    first = tree.branches[0]
    other = (first.ids + np.random.default_rng(0).integers(1, vocabulary, len(first.ids))) % vocabulary
    changed = replace(first, ids=other.astype(np.int32))
    return replace(tree, branches=(changed, *tree.branches[1:]))


def _values_and_gradient(
    policy: TreeModel, trees: Sequence[TokenTree], path: Path, *, skip_first_branch: bool = False
) -> tuple[Tensor, list[Tensor]]:
    batch = collate(trees)
    values, branches = policy.compared(batch, path)
    if skip_first_branch:
        values = values[(branches > 0).to(values.device)]
    parameters = [p for p in policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(values.sum(), parameters, allow_unused=True, materialize_grads=True)
    return values.detach(), list(gradients)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


def _relative(gradients: list[Tensor], others: list[Tensor]) -> float:
    wide: dict[str, Any] = {
        "dtype": torch.float64
    }  # summed in fp64 without a copy in it: an embedding's is the largest
    apart = torch.stack(
        [torch.linalg.vector_norm(a - b, **wide) for a, b in zip(gradients, others, strict=True)]
    ).norm()
    size = torch.stack([torch.linalg.vector_norm(b, **wide) for b in others]).norm()
    return float(apart / size.clamp(min=1e-30))
