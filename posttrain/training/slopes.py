"""Whether a loss depends on the model's figures: its slope at each, on values where rounding fakes none."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from posttrain.training.objectives import Algorithm
from posttrain.training.step import start_loss
from posttrain.types import Batch, Count

SLOPE_SHIFTS = (-50.0, 50.0, -2000.0, 2000.0)
"""Nats by which a response is moved where the loss of the probes has no gradient as they are (`slopes_of`)."""


def slopes_of(
    algorithm: Algorithm, logprobs: Any, reference_N: Tensor | None, batch: Batch, total: Count
) -> dict[str, Tensor]:
    """d (what teaches) / d of everything that the model says of the batch, by its field; empty where all are 0.

    The loss is called on copies of the model's figures, so that only what it computes of them counts. A hinge has no
    gradient on pairs that are far enough apart, which is no fault: the first branch of each tree is tried nearer and
    further too, until there is one.
    """
    for nats in (0.0, *SLOPE_SHIFTS):
        figures = _copied(logprobs, nats, batch)
        out = start_loss(algorithm, replace(logprobs, **figures), reference_N, batch, total)
        # A loss may have parts that are measured and do not teach.
        taught = out.loss if out.teaching is None else out.teaching
        if not taught.requires_grad:
            continue
        gradients = torch.autograd.grad(taught, list(figures.values()), allow_unused=True)
        slopes = {
            name: slope for name, slope in zip(figures, gradients, strict=True) if slope is not None and slope.any()
        }
        if slopes:
            return slopes
    return {}


def _copied(logprobs: Any, nats: float, batch: Batch) -> dict[str, Tensor]:
    """Every figure that has a gradient, cut off from the model; a response's log-prob moved by `nats`, spread over its
    tokens, up for the first branch of each tree and down for the others."""
    names = [entry.name for entry in fields(logprobs)]
    differentiable = {
        name: value for name in names if isinstance(value := getattr(logprobs, name), Tensor) and value.requires_grad
    }
    figures = {name: value.detach().clone() for name, value in differentiable.items()}
    if nats and "logprobs_N" in figures:
        branch_N, tree_B = batch.branch_N.to(figures["logprobs_N"].device), batch.tree_B.tolist()
        # Apart, so that a margin moves: shifted by the same amount, the branches of a pair would keep theirs.
        sign_B = figures["logprobs_N"].new_tensor(
            [1.0 if tree_B.index(tree) == i else -1.0 for i, tree in enumerate(tree_B)]
        )
        tokens_B = torch.bincount(branch_N, minlength=len(tree_B)).clamp(min=1)
        figures["logprobs_N"] += (nats * sign_B / tokens_B)[branch_N]
    return {name: value.requires_grad_() for name, value in figures.items()}
