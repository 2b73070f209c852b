"""Proof, on the run's own rows, that the fast path computes what the slow one does and that nothing leaks.

The models of `transformers` take what they do not know in silence, so a model that the tree cannot serve (a
recurrent state, a mask of its own) is told apart by its numbers, not by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from posttrain.data.trees import collate
from posttrain.models.logprobs import Policy
from posttrain.types import Branch, TokenTree

RELATIVE_ERROR = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""Allowed gap of the gradient, relative to its norm. Rounding in SmolLM2-135M (30 layers, fp32) measures 6e-5; a token
that sees its neighbour's prompt moves the gradient by tens of percent."""
LOGPROB_ERROR = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
"""Allowed gap of one token's log-prob, in nats."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Gap(logprob=3e-6, gradient=2e-6, tokens=412): the largest difference of a log-prob in nats, and of the gradient
    relative to its norm."""

    logprob: float
    gradient: float
    tokens: int
    dtype: torch.dtype = torch.float32

    @property
    def holds(self) -> bool:
        return self.logprob <= LOGPROB_ERROR[self.dtype] and self.gradient <= RELATIVE_ERROR[self.dtype]

    def line(self) -> str:
        return f"log-probs differ by at most {self.logprob:.1e} nats, gradients by {self.gradient:.1e} of their norm"


def tree_against_padded(policy: Policy, trees: Sequence[TokenTree]) -> Gap:
    """The tree path against ordinary rows: values and the whole gradient.

    Raises whatever the model raises when it is called with a token tree.
    """
    fast = _values_and_gradient(policy, trees, "tree")
    slow = _values_and_gradient(policy, trees, "padded")
    return Gap(
        _largest(fast[0] - slow[0]),
        _relative(fast[1], slow[1]),
        sum(tree.num_tokens for tree in trees),
        policy.autocast or policy.dtype,
    )


def leak(policy: Policy, trees: Sequence[TokenTree]) -> Gap:
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
        policy.autocast or policy.dtype,
    )


def _with_other_first_branch(policy: Policy, tree: TokenTree) -> TokenTree:
    vocabulary = int(policy.causal_lm.config.get_text_config().vocab_size)
    first = tree.branches[0]
    other = (first.ids + np.random.default_rng(0).integers(1, vocabulary, len(first.ids))) % vocabulary
    return replace(tree, branches=(Branch(other.astype(np.int32), first.loss_mask), *tree.branches[1:]))


def _values_and_gradient(
    policy: Policy, trees: Sequence[TokenTree], path: str, *, skip_first_branch: bool = False
) -> tuple[Tensor, list[Tensor]]:
    batch = collate(trees)
    logprobs_N = policy(batch, path=path).logprobs_N
    if skip_first_branch:
        logprobs_N = logprobs_N[(batch.branch_N > 0).to(logprobs_N.device)]
    parameters = [p for p in policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(logprobs_N.sum(), parameters, allow_unused=True, materialize_grads=True)
    return logprobs_N.detach(), list(gradients)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0


def _relative(gradients: list[Tensor], others: list[Tensor]) -> float:
    apart = torch.stack([(a - b).double().norm() for a, b in zip(gradients, others, strict=True)]).norm()
    size = torch.stack([b.double().norm() for b in others]).norm()
    return float(apart / size.clamp(min=1e-30))
