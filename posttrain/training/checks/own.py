"""The proof of an objective of the user's own, on the run's own rows: its losses are numbers where training begins and
beyond, and no split into micro-batches changes its gradient.

That it has a gradient at all, and which parameters it reaches, `gradient.py` proves for every objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from posttrain.data.trees import collate, count, to_device
from posttrain.models.tree.model import TreeModel
from posttrain.outputs import TokenLogprobs
from posttrain.training.checks.preflight import PROBE_LENGTH, Check, shortened
from posttrain.training.objectives import Algorithm
from posttrain.types import Batch, Count, TokenTree

ROWS = 4
APART = 0.5
"""Nats by which a token's log-probs differ from the reference's: where all pairs are alike, as at step 0, a loss that
looks at other rows (less their mean, divided by their largest) would give what one does that looks at none."""
RELATIVE_ERROR = 1e-3
"""Of the largest slope. Sums in another order differ by 1e-6; a loss of another row's by the size of the loss."""


def check_own(policy: TreeModel, algorithm: Algorithm, trees: Sequence[TokenTree]) -> Check:
    """Called on the model's own figures, and on ones that are half a nat apart; see the module's docstring."""
    title, name = "objective of one's own", algorithm.name
    rows = [shortened(trees[index], PROBE_LENGTH) for index in range(min(ROWS, len(trees)))]
    batch = to_device(collate(rows), policy.device)
    with torch.no_grad():
        figures = policy(batch, algorithm.wants)
    own_N = figures.logprobs_N
    draw = torch.randn(own_N.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved_N = own_N + APART * draw.to(own_N)
    total = count(rows)
    for where, logprobs_N in (("at the start", own_N), ("half a nat from the start", moved_N)):
        given = replace(figures, logprobs_N=logprobs_N)
        loss, slope_N = _slope(algorithm, given, own_N, batch, total)
        if not torch.isfinite(loss) or not torch.isfinite(slope_N).all():
            what = "loss" if not torch.isfinite(loss) else "gradient"
            return Check(
                "objective",
                title,
                "fail",
                f"the {what} of `{name}` {where} is not finite, on {', '.join(str(tree.row) for tree in rows)}",
                {"loss": float(loss)},
                "bound what overflows: a logarithm of 0, a square root at 0, an exponential of a whole response",
            )
    parts = [_of_one(algorithm, given, own_N, batch, rows, place, total) for place in range(len(rows))]
    split_N = torch.cat([slope for _, slope in parts])
    apart = float((split_N - slope_N).abs().max()) if len(slope_N) else 0.0
    largest = float(slope_N.abs().max()) if len(slope_N) else 0.0
    sums = abs(float(sum(loss for loss, _ in parts)) - float(loss))
    evidence = {"loss": float(loss), "largest_slope": largest, "slope_gap": apart, "loss_gap": sums, "rows": len(rows)}
    if apart > RELATIVE_ERROR * largest or sums > RELATIVE_ERROR * max(1.0, abs(float(loss))):
        return Check(
            "objective",
            title,
            "fail",
            f"`{name}`: {len(rows)} rows one by one have another gradient than together: {apart:.1e} apart, of "
            f"{largest:.1e}",
            evidence,
            "make each loss of its own pair or token alone; what is compared with other rows depends on how the step "
            "is cut into micro-batches",
        )
    detail = f"`{name}`: finite at the start and away from it; {len(rows)} rows have one gradient, together or apart"
    return Check("objective", title, "pass", detail, evidence)


def _slope(
    algorithm: Algorithm, given: TokenLogprobs, reference_N: Tensor, batch: Batch, total: Count
) -> tuple[Tensor, Tensor]:
    """(the loss, its slope at each log-prob)"""
    copied_N = given.logprobs_N.detach().clone().requires_grad_()
    reference = reference_N if algorithm.needs_reference else None
    loss = algorithm.loss(replace(given, logprobs_N=copied_N), reference, batch, total).loss
    if not loss.requires_grad:  # the check of the gradient says so, and why
        return loss, torch.zeros_like(copied_N)
    (slope_N,) = torch.autograd.grad(loss, copied_N, allow_unused=True)
    return loss.detach(), torch.zeros_like(copied_N) if slope_N is None else slope_N


def _of_one(
    algorithm: Algorithm,
    given: TokenLogprobs,
    reference_N: Tensor,
    batch: Batch,
    rows: Sequence[TokenTree],
    place: int,
    total: Count,
) -> tuple[Tensor, Tensor]:
    """The same of one row by itself, over the count of all of them: a micro-batch of the step."""
    of_row_N = (batch.tree_B[batch.branch_N] == place).to(reference_N.device)
    columns: dict[str, Any] = {
        entry.name: value[of_row_N]
        for entry in fields(given)
        if isinstance(value := getattr(given, entry.name), Tensor) and value.shape == reference_N.shape
    }
    alone = to_device(collate([rows[place]]), reference_N.device)
    return _slope(algorithm, replace(given, **columns), reference_N[of_row_N], alone, total)
