"""Batches for tests of online losses: groups of responses, written as what their tokens carry; no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from posttrain.data.trees import collate
from posttrain.losses.online import ONLINE, OnlineRow
from posttrain.losses.policy import policy_loss
from posttrain.outputs import LossOutput, TokenLogprobs
from posttrain.types import Batch, Branch, Count, RowRef, TokenTree

Columns = Mapping[str, Sequence[float]]
"""What the trained tokens of one response carry."""


def group(responses: Sequence[Columns], *, row: int = 1, poison: float | None = None) -> TokenTree:
    """A prompt of three tokens and its responses, in fp64.

    poison: puts a token that does not train between any two that do, as where a tool speaks, and this value on it.
    """
    branches = tuple(_branch(columns, poison) for columns in responses)
    return TokenTree(np.arange(3, dtype=np.int32), branches, f"group-{row}", RowRef("rollout", row))


def _branch(columns: Columns, poison: float | None) -> Branch:
    trained = len(next(iter(columns.values())))
    if poison is None:
        mask = np.ones(max(trained, 1), np.bool_) if trained else np.zeros(1, np.bool_)
    else:
        mask = np.resize([False, True], 2 * trained + 1)
    carried = {}
    for name, values in columns.items():
        column = np.full(len(mask), 0.0 if poison is None else poison)
        column[mask] = values
        carried[name] = column
    return Branch(np.arange(len(mask), dtype=np.int32), mask, carried)


def spread(tree: TokenTree, values_B: Tensor) -> TokenTree:
    """The tree with each response's advantage on all of its tokens."""
    branches = [
        replace(branch, columns={**branch.columns, "advantages": np.full(len(branch.ids), value)})
        for branch, value in zip(tree.branches, values_B.tolist(), strict=True)
    ]
    return replace(tree, branches=tuple(branches))


def random_groups(count: int, size: int, seed: int = 0, *, longest: int = 7) -> tuple[list[TokenTree], list[Tensor]]:
    """Groups of responses of 1 to `longest` tokens with all columns, and the policy's fp64 log-probs of each group."""
    generator = torch.Generator().manual_seed(seed)
    trees, policies = [], []
    for index in range(count):
        responses: list[dict[str, list[float]]] = []
        logprobs = []
        for _ in range(size):
            length = int(torch.randint(1, longest + 1, (1,), generator=generator))

            def near(other: Tensor, by: float) -> Tensor:
                return other + by * torch.randn(len(other), generator=generator, dtype=torch.float64)

            old = -2 * torch.rand(length, generator=generator, dtype=torch.float64) - 0.05
            advantage = torch.randn(1, generator=generator, dtype=torch.float64).expand(length)
            responses.append(
                {
                    "advantages": advantage.tolist(),
                    "old_logprobs": old.tolist(),
                    "reference_logprobs": near(old, 0.4).tolist(),
                    "sampler_logprobs": near(old, 0.1).tolist(),
                }
            )
            logprobs.append(near(old, 0.3))
        trees.append(group(responses, row=index + 1))
        policies.append(torch.cat(logprobs))
    return trees, policies


def run(
    row: str | OnlineRow,
    logprob_N: Tensor,
    batch: Batch,
    denominator: Count | None = None,
    *,
    entropy_N: Tensor | None = None,
    on_policy: bool = False,
    **parameters: float,
) -> LossOutput:
    """A row's loss of a batch, which is the whole step unless a denominator says otherwise."""
    row = ONLINE[row] if isinstance(row, str) else row
    policy = TokenLogprobs(logprob_N, entropy_N)
    return policy_loss(row, row.resolve(parameters), policy, batch, denominator or batch.count, on_policy=on_policy)


def of_step(row: str | OnlineRow, trees: Sequence[TokenTree], logprobs: Sequence[Tensor]) -> tuple[LossOutput, Tensor]:
    """The loss of whole groups as one batch, and the gradient of each token's log-prob, [N]."""
    leaf = torch.cat(list(logprobs)).requires_grad_()
    out = run(row, leaf, collate(list(trees)))
    return out, torch.autograd.grad(out.loss, leaf)[0]
