"""Comparisons, on the run's own rows, of the fast path with the slow one, of a row with and without its neighbours, and
of a token with and without the tokens after it. What is made of them stands in `posttrain.models.tree.paths`.

The models of `transformers` take what they do not know in silence, so a model that the tree cannot serve (a
recurrent state, a mask of its own) is told apart by its numbers, not by its name. All comparisons compute in fp32,
whatever the model trains in (`posttrain.models.tree.exact`).
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
from posttrain.models.sharding.gradients import gradients_of
from posttrain.models.sharding.shards import whole
from posttrain.models.tree.exact import exact
from posttrain.models.tree.provable import ProvableModel, Route
from posttrain.types import Batch, Branch, RowRef, TokenTree

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
    largest: float = 0.0
    """Of the compared values, by size: rounding grows with them. A diverging run has log-probs of -10,000 nats."""

    @property
    def holds(self) -> bool:
        # Rounding is relative to the value: without this a run that diverges would be stopped as one that leaks.
        allowed = LOGPROB_ERROR[self.dtype] * max(1.0, self.largest / 100)
        return self.logprob <= allowed and self.gradient <= RELATIVE_ERROR[self.dtype]

    def line(self) -> str:
        nats = " nats" if self.compared == "log-probs" else ""
        return (
            f"{self.compared} differ by at most {self.logprob:.1e}{nats}, gradients by {self.gradient:.1e} of their "
            f"norm, computed in {str(self.dtype).removeprefix('torch.')}"
        )


def between(
    policy: ProvableModel, trees: Sequence[TokenTree], fast: Route, slow: Route, *, gradient: bool = True
) -> Gap:
    """One path against another; without `gradient`, values alone, and nothing is kept for a backward pass.

    Raises whatever the model raises on either path.
    """
    with exact(policy):
        oracle, slope = values_and_gradient(policy, trees, slow, gradient=gradient)
        return against(policy, trees, fast, oracle, slope, computed_in(policy, trees))


def against(
    policy: ProvableModel,
    trees: Sequence[TokenTree],
    path: Route,
    oracle: Tensor,
    slope: list[Tensor] | None,
    dtype: torch.dtype,
) -> Gap:
    """A path against values (and, with `slope`, their gradient) that are known, in the precision that is set."""
    values, gradient = values_and_gradient(policy, trees, path, gradient=slope is not None)
    return Gap(
        largest(values - oracle),
        0.0 if slope is None or gradient is None else relative(gradient, slope),
        sum(tree.num_tokens for tree in trees),
        dtype,
        policy.compares,
        largest(oracle),
    )


def leak(policy: ProvableModel, trees: Sequence[TokenTree]) -> Gap:
    """What changing the first branch's tokens does to all others: 0 but for rounding, if nothing leaks.

    The log-probs compared are those of all other branches of all trees, and the gradient is that of their sum.
    """
    # Only the ids change, never a length: positions and shapes stay, so anything that moves has seen those ids.
    changed = [_with_other_first_branch(policy, trees[0]), *trees[1:]]
    with exact(policy):
        before = values_and_gradient(policy, trees, policy.path, skip_first_branch=True)
        after = values_and_gradient(policy, changed, policy.path, skip_first_branch=True)
        return Gap(
            largest(after[0] - before[0]),
            relative(after[1] or [], before[1] or []),
            sum(tree.num_tokens for tree in trees),
            computed_in(policy, trees),
            policy.compares,
            largest(before[0]),
        )


@torch.no_grad()
def beside(policy: ProvableModel, trees: Sequence[TokenTree], longer: TokenTree) -> Gap:
    """What a longer row in the same micro-batch does to `trees`: 0 but for rounding, where rows are kept apart."""
    with exact(policy):
        alone, _ = policy.compared(collate(trees), policy.path)
        together, _ = policy.compared(collate([*trees, longer]), policy.path)
        tokens = longer.num_tokens + sum(tree.num_tokens for tree in trees)
        return Gap(largest(together[: len(alone)] - alone), 0.0, tokens, computed_in(policy, trees), policy.compares)


LOOKED_AHEAD = 1e-5
"""By how much a later token may move what the model gives at an earlier place, relative to its size, in fp32. Rows of
one shape are computed alike, so that a causal model gives 0, or the rounding of experts whose groups of tokens change.
"""


@torch.no_grad()
def looks_ahead(policy: ProvableModel, tree: TokenTree, *, tokens: int = 128) -> tuple[float, int] | None:
    """Whether the model's output before a token moves with that token: (by how much, index of the changed token).

    One row of at most `tokens` is tried, with its last token changed, one in its middle, and its third: a model may see
    its whole prompt at once and be causal after it. The place that predicts the changed token is looked at too: a model
    that sees one token ahead sees just its answer. None: nothing moved, or the numbers are not finite or noise.
    """
    vocabulary = int(policy.transformer.config.get_text_config().vocab_size)
    generator = np.random.default_rng(0)
    ids = _longest_row(tree)[:tokens]
    if len(ids) < 8:  # too short to have a middle
        ids = np.concatenate([ids, generator.integers(0, vocabulary, 8 - len(ids))])
    with exact(policy) as wide:
        before = policy.row_outputs(_row(ids))
        size = float(before.square().mean().sqrt())
        allowed = LOOKED_AHEAD if wide else LOGPROB_ERROR[policy.autocast or policy.dtype] / 100
        if largest(policy.row_outputs(_row(ids)) - before) > allowed * size:
            return None  # whatever is changed in a noisy model, everything moves
        for place in (len(ids) - 1, len(ids) // 2, 2):
            changed = ids.copy()
            changed[place] = (ids[place] + generator.integers(1, vocabulary)) % vocabulary
            # Up to and without the changed place: that it moves its own output is no fault.
            moved = largest((policy.row_outputs(_row(changed)) - before)[:place])
            if moved > allowed * size:
                return moved / size, place
    return None


def _longest_row(tree: TokenTree) -> np.ndarray:
    lengths = tree.row_lengths
    index: int | None = max(range(len(lengths)), key=lambda index: lengths[index])
    parts: list[np.ndarray] = []
    while index is not None:
        parts.insert(0, tree.branches[index].ids)
        index = tree.branches[index].parent
    return np.concatenate([tree.prompt_ids, *parts])


def _row(ids: np.ndarray) -> Batch:
    branch = Branch(ids[1:].astype(np.int32), np.ones(len(ids) - 1, dtype=bool))
    return collate([TokenTree(ids[:1].astype(np.int32), (branch,), key="row", row=RowRef("probe", 1))])


def computed_in(policy: ProvableModel, trees: Sequence[TokenTree]) -> torch.dtype:
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
def _some_gradient(policy: ProvableModel) -> Iterator[None]:
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


def _with_other_first_branch(policy: ProvableModel, tree: TokenTree) -> TokenTree:
    vocabulary = int(policy.transformer.config.get_text_config().vocab_size)
    first = tree.branches[0]
    # Each id moves by 1 to V - 1, so that every one of them is another token.
    other = (first.ids + np.random.default_rng(0).integers(1, vocabulary, len(first.ids))) % vocabulary
    changed = replace(first, ids=other.astype(np.int32))
    return replace(tree, branches=(changed, *tree.branches[1:]))


def values_and_gradient(
    policy: ProvableModel,
    trees: Sequence[TokenTree],
    path: Route,
    *,
    skip_first_branch: bool = False,
    gradient: bool = True,
) -> tuple[Tensor, list[Tensor] | None]:
    """The values that a loss would see, and the gradient of their sum in all that trains."""
    batch = collate(trees)
    policy.settle()
    parameters = [p for p in policy.parameters() if p.requires_grad]
    with torch.set_grad_enabled(gradient):
        values, branches = policy.compared(batch, path)
    if skip_first_branch:
        changed = torch.tensor(_from_first_branch(batch), device=branches.device)
        values = values[~torch.isin(branches, changed).to(values.device)]
    if not gradient:
        return values, None
    if not parameters:
        return values.detach(), []
    # A proof in the middle of a run must leave the parameters' own gradients as they are.
    found = gradients_of([values.sum()], parameters)
    pairs = zip(parameters, found, strict=True)
    return values.detach(), [torch.zeros_like(p) if slope is None else slope for p, slope in pairs]


def _from_first_branch(batch: Batch) -> list[int]:
    """The first branch, and those that go on from it: they see its tokens."""
    nodes = {batch.branch_nodes[0]}
    for index, node in enumerate(batch.nodes):  # children come after their parents
        if node.parent in nodes:
            nodes.add(index)
    return [branch for branch, node in enumerate(batch.branch_nodes) if node in nodes]


def largest(difference: Tensor) -> float:
    """Of all entries, by size; 0 where there is none."""
    return float(difference.abs().max()) if difference.numel() else 0.0


def _norm(gradient: Tensor) -> Tensor:
    """Summed in fp64 without a copy in it: the gradient of an embedding is the largest tensor there is."""
    return whole(torch.linalg.vector_norm(gradient, dtype=torch.float64))


def relative(gradients: list[Tensor], others: list[Tensor]) -> float:
    """The norm of the difference of two gradients, over that of the second."""
    if not gradients:  # nothing trains
        return 0.0
    apart = torch.stack([_norm(a - b) for a, b in zip(gradients, others, strict=True)]).norm()
    size = torch.stack([_norm(b) for b in others]).norm()
    return float(apart / size.clamp(min=1e-30))
