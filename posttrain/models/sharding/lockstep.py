"""What ranks have to do alike because each pass of a sharded layer is an exchange between all of them.

A rank that takes one pass more than the others waits for ever. So the ranks agree on the path of a forward pass, prove
it on the same rows, and where a path runs row by row, a rank with fewer rows runs one of them again for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from posttrain.models.sharding.mesh import Sharding
from posttrain.types import Batch, TokenTree


def most(number: int, sharding: Sharding | None) -> int:
    """The largest of the ranks' numbers; the number itself where the model is not sharded."""
    if sharding is None:
        return number
    largest = torch.tensor([number], dtype=torch.int64, device=sharding.mesh.device_type)
    for dim in range(sharding.mesh.ndim):
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=sharding.mesh.get_group(dim))
    return int(largest)


def trees_of_longest(trees: Sequence[TokenTree], own: int, longest: int, sharding: Sharding | None) -> list[TokenTree]:
    """The trees of the first rank whose longest row is the longest of all: proofs run on them everywhere."""
    if sharding is None:
        return list(trees)
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, list(trees) if own == longest else None)
    return next(theirs for theirs in found if theirs is not None)


def with_idle(rows: Sequence[Batch], spare: Sequence[Batch], sharding: Sharding | None) -> list[tuple[Batch, bool]]:
    """Each row with True, and as often `spare`, one row, with False as it takes to have the passes of the busiest
    rank."""
    idle = most(len(rows), sharding) - len(rows)
    return [(row, True) for row in rows] + [(row, False) for row in spare] * idle


def joined(parts: Sequence[Tensor], idle: Sequence[Tensor]) -> Tensor:
    """The parts as one. Idle passes are in its graph with weight 0, for they need a backward pass as the others do."""
    out = torch.cat(list(parts))
    return out if not idle else out + 0 * torch.stack([part.sum() for part in idle]).sum()


def without_views(value: Any) -> Any:
    """A forward's output in which no tensor with a gradient is a view: FSDP2 hangs the hook that gathers weights for
    the backward pass on these, and an operation in place would drop it in silence."""
    if isinstance(value, Tensor):
        return value.clone() if value.requires_grad and value._is_view() else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: new for name, own in fields.items() if (new := without_views(own)) is not own}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, tuple):
        return tuple(without_views(part) for part in value)
    return value
