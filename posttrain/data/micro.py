"""Which micro-batches this process computes of a step that several share, and how an error of one ends all alike.

    for micro in planned(trees, tokens_per_microbatch, is_sharded=policy.is_sharded):
        batch = collate([trees[index] for index in micro.members])

A pass of a sharded model is collective: every rank makes as many, in the same order, or all wait for ever. Where each
rank holds the whole model they meet once, when the step's gradients are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from posttrain.data.trees import packed
from posttrain.parallel.shares import shares
from posttrain.parallel.world import world
from posttrain.types import TokenTree


@dataclass(frozen=True, slots=True)
class Micro:
    """A micro-batch of this rank: Micro(members=[0, 3]), indices of the step's trees."""

    members: list[int]
    idle: bool = False
    """Computed for nothing but its part in the collectives, while other ranks have a micro-batch more: its loss counts
    zero times, and its figures nowhere."""


def planned(trees: Sequence[TokenTree], tokens_per_microbatch: int, *, is_sharded: bool) -> list[Micro]:
    """This rank's micro-batches of the step: its share by tokens, packed. Every rank could say the same of all others.

    is_sharded: of a model whose passes are collective, all ranks get equally many.
    """
    here = world()
    if here.is_alone:
        return [Micro(members) for members in packed(trees, tokens_per_microbatch)]
    of_ranks: list[list[list[int]]] = []
    for own in shares([tree.num_tokens for tree in trees], here.size):
        members = packed([trees[index] for index in own], tokens_per_microbatch)
        of_ranks.append([[own[place] for place in micro] for micro in members])
    micros = [Micro(members) for members in of_ranks[here.rank]]
    if is_sharded:
        most = max(map(len, of_ranks))
        # The smallest, for it is computed in vain; a real one, so that the backward pass reaches what the others' do.
        smallest = min(range(len(trees)), key=lambda index: trees[index].num_tokens)
        micros += [Micro([smallest], idle=True)] * (most - len(micros))
    return micros


def alike(is_sharded: bool, what: str) -> AbstractContextManager[None]:
    """An error of one rank is raised by all, where the body holds nothing collective. Within passes of a sharded model
    a rank that fails leaves the others waiting, and the watch ends the job (`posttrain.parallel.watch`)."""
    return nullcontext() if is_sharded else world().together(what)


def checked_alike(is_sharded: bool, what: str) -> AbstractContextManager[None]:
    """Around a check between two passes of a sharded model: a rank that left here alone would leave the others waiting
    in the next one. Elsewhere `alike` is around all of it."""
    return world().together(what) if is_sharded else nullcontext()
