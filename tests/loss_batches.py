"""Batches for tests of losses, written as the log-probs of their tokens; no model and no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from posttrain.data.trees import collate
from posttrain.losses.pairwise import PAIRWISE
from posttrain.losses.preference import pairwise_loss
from posttrain.losses.responses import StepStatistics
from posttrain.outputs import LossOutput, TokenLogprobs
from posttrain.types import Batch, Branch, Count, RowRef, TokenTree

Pair = tuple[Sequence[float], Sequence[float]]
"""Log-probs of the chosen response's tokens, and of the rejected one's."""


def tree(
    lengths: Sequence[int],
    *,
    prompt: int = 3,
    margin: float | None = None,
    label: bool | None = None,
    scores: tuple[float, ...] | None = None,
    row: int = 1,
) -> TokenTree:
    """A tree whose branches have so many trained tokens; length 0 is a branch of one token that does not train."""
    branches = tuple(
        Branch(np.arange(max(length, 1), dtype=np.int32), np.full(max(length, 1), length > 0)) for length in lengths
    )
    prompt_ids = np.arange(prompt, dtype=np.int32)
    return TokenTree(prompt_ids, branches, f"tree-{row}", RowRef("test", row), margin, label, scores)


def batch_of(lengths: Sequence[Sequence[int]], margins: Sequence[float] | None = None) -> Batch:
    """One tree per entry, with that many trained tokens in each branch."""
    marked = margins or [None] * len(lengths)
    return collate(
        [tree(each, margin=margin, row=i + 1) for i, (each, margin) in enumerate(zip(lengths, marked, strict=True))]
    )


def pairs(values: Sequence[Pair], margins: Sequence[float] | None = None) -> tuple[Batch, Tensor]:
    """A batch of pairs and its float64 log-probs [N], as written."""
    batch = batch_of([(len(chosen), len(rejected)) for chosen, rejected in values], margins)
    flat = [value for pair in values for side in pair for value in side]
    return batch, torch.tensor(flat, dtype=torch.float64)


def random_pairs(count: int, seed: int = 0, *, longest: int = 9) -> tuple[Batch, Tensor, Tensor]:
    """A batch of pairs of 1 to `longest` tokens a side, with margins, and log-probs of policy and reference."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count, 2), generator=generator).tolist()
    batch = batch_of(lengths, torch.rand(count, generator=generator).tolist())
    policy_N = -2 * torch.rand(batch.count.tokens, generator=generator, dtype=torch.float64) - 0.05
    reference_N = policy_N + 0.6 * torch.randn(batch.count.tokens, generator=generator, dtype=torch.float64)
    return batch, policy_N, reference_N.clamp(max=-0.01)


def run(
    name: str,
    policy_N: Tensor,
    reference_N: Tensor | None,
    batch: Batch,
    denominator: Count | None = None,
    statistics: StepStatistics | None = None,
    **parameters: float,
) -> LossOutput:
    """A row of the table on given log-probs; the batch is the whole step unless a denominator says otherwise."""
    policy = with_collisions(policy_N, batch)
    row = PAIRWISE[name]
    return pairwise_loss(
        row, row.resolve(parameters), policy, reference_N, batch, denominator or batch.count, statistics
    )


def with_collisions(policy_N: Tensor, batch: Batch) -> TokenLogprobs:
    """log sum_v p(v)^2 of -1.5 at every token of a tree's first branch and -2.5 elsewhere."""
    first_N = batch.branch_N % 2 == 0
    return TokenLogprobs(policy_N, log_collision_N=torch.where(first_N, -1.5, -2.5).to(policy_N))


def feedback(values: Sequence[Sequence[float]], labels: Sequence[bool]) -> tuple[Batch, Tensor]:
    """A batch of single responses and its float64 log-probs [N], as written."""
    trees = [
        tree((len(each),), label=label, row=i + 1) for i, (each, label) in enumerate(zip(values, labels, strict=True))
    ]
    return collate(trees), torch.tensor([value for each in values for value in each], dtype=torch.float64)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]
