"""The step's gradient from those of the ranks, where each of them holds the whole model.

sum_gradients(parameters, world())       # afterwards every rank has the same `.grad`, bit for bit

Sums, never means: a loss is divided by the denominator of the whole step, whoever computes it, so that the parts add
up. Sharded models are summed by FSDP2 while the backward pass runs, and do not come here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from posttrain.parallel.world import World

BUCKET_ELEMENTS = 1 << 23
"""Numbers that travel at a time: 8 million, 32 MB in fp32. One call for each tensor would wait for the network once for
each; all at once would need a second copy of every gradient."""


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor], here: World) -> None:
    """Add `.grad` over all ranks, in place.

    A parameter that some ranks' rows did not reach counts as zero there; one that nobody's rows reached keeps None, as
    it would in one process: the optimizer leaves it and its moments alone.
    """
    if here.is_alone:
        return
    trained = [p for p in parameters if p.requires_grad]
    for bucket in _buckets(_with_gradient(trained, here)):
        # One flat tensor: the ranks' parts are added in the same order on all ranks, and to the same bits.
        flat = torch.cat([grad.reshape(-1) for grad in bucket])
        dist.all_reduce(flat)
        for grad, summed in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
            grad.copy_(summed.view_as(grad))


def _with_gradient(parameters: list[Tensor], here: World) -> list[Tensor]:
    """Of each parameter that any rank's rows reached, its gradient, zeros where this rank's did not reach it."""
    reached = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    anywhere = [any(flags) for flags in zip(*here.gather(reached.tolist()), strict=True)]
    gradients: list[Tensor] = []
    for parameter, wanted in zip(parameters, anywhere, strict=True):
        if not wanted:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one dtype and device, up to `BUCKET_ELEMENTS` together."""
    bucket: list[Tensor] = []
    for grad in gradients:
        alike = not bucket or (bucket[0].dtype == grad.dtype and bucket[0].device == grad.device)
        if bucket and (not alike or sum(g.numel() for g in bucket) + grad.numel() > BUCKET_ELEMENTS):
            yield bucket
            bucket = []
        bucket.append(grad)
    if bucket:
        yield bucket
