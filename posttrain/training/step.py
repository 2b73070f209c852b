"""One step: trees in, gradients and metrics out.

    denominator = count(trees)                     # global, before any forward
    for micro in pack(trees, budget):
        out = loss(policy(micro), reference, micro, denominator)
        out.loss.backward()                        # micro-batches add up to the step's gradient

The same trees give the same gradient whatever the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from posttrain.data.trees import collate, count, pack, to_device
from posttrain.diagnostics.metrics import merge
from posttrain.models.logprobs import Policy
from posttrain.training.algorithms import Algorithm
from posttrain.training.optimizer import non_finite
from posttrain.types import Batch, Metric, RowRef, TokenTree


class Reference(Protocol):
    """The policy's start: log-probs [N] of a batch's trained tokens, without gradient."""

    def logprobs(self, batch: Batch) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """What trees were worth under a policy.

    Measured(metrics={"loss": Mean(5.5, 8)}, per_tree={"rewards_chosen": [...]}, rows=(RowRef("pairs.jsonl", 1), ...))
    """

    metrics: dict[str, Metric]
    per_tree: dict[str, list[float]] = field(default_factory=dict)
    """One value per tree, in the order of `rows`."""
    rows: tuple[RowRef, ...] = ()
    tokens: int = 0
    """All tokens that went through the model, prompts included, each once."""


Tick = Callable[[int], None]


def accumulate(
    policy: Policy,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    *,
    step: int,
    tick: Tick = lambda tokens: None,
) -> Measured:
    """Add the step's gradient to the policy's parameters.

    Args:
        step: from 0; names the step in errors.
        tick: called with the tokens of each finished micro-batch.

    Raises:
        NonFiniteError: a micro-batch's loss is NaN or infinite; its rows are named and nothing has been updated.
    """

    def backward(loss: Tensor, batch: Batch) -> None:
        if not torch.isfinite(loss):
            raise non_finite(["loss"], step, [str(row) for row in batch.rows])
        loss.backward()

    return _run(policy, reference, algorithm, trees, tokens_per_microbatch, backward, tick)


@torch.no_grad()
def measure(
    policy: Policy,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    *,
    tick: Tick = lambda tokens: None,
) -> Measured:
    """The same figures without gradients: held-out rows, and both ends of a run."""
    return _run(policy, reference, algorithm, trees, tokens_per_microbatch, lambda loss, batch: None, tick)


def _run(
    policy: Policy,
    reference: Reference | None,
    algorithm: Algorithm,
    trees: Sequence[TokenTree],
    tokens_per_microbatch: int,
    finish: Callable[[Tensor, Batch], None],
    tick: Tick,
) -> Measured:
    denominator = count(trees)
    metrics: list[dict[str, Metric]] = []
    per_tree: dict[str, list[float]] = {}
    rows: list[RowRef] = []
    tokens = 0
    for micro in pack(trees, tokens_per_microbatch):
        batch = to_device(collate(micro), policy.device)
        reference_N = reference.logprobs(batch) if reference is not None else None
        out = algorithm.loss(policy(batch), reference_N, batch, denominator)
        finish(out.loss, batch)
        metrics.append(out.metrics)
        for name, values_P in out.per_tree.items():
            per_tree.setdefault(name, []).extend(values_P.tolist())
        rows.extend(batch.rows)
        size = int(batch.input_ids_T.shape[0])
        tokens += size
        tick(size)
    return Measured(merge(metrics), per_tree, tuple(rows), tokens)
