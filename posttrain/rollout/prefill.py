"""What a prefill computes: which sequences, in which forward passes, with which positions and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.rollout.kv import PromptSlots
from posttrain.rollout.prefixes import common_length
from posttrain.rollout.rows import Row

SHARED_TOKENS = 32
"""Tokens that two new prompts have in common from which on one waits a forward pass for the other's."""


@dataclass(frozen=True, slots=True)
class Place:
    """A sequence to prefill, without its last token, and the neighbouring slots of the rows that begin with it."""

    ids: list[int]
    slots: PromptSlots
    fresh_prompt: tuple[int, ...] | None
    """The prompt that it is, None for a row that comes back with a part of its answer."""

    @property
    def missing(self) -> list[int]:
        """The ids whose keys and values the slots do not have yet."""
        return self.ids[self.slots.past :]


def places_of(rows: Sequence[Row], first: int) -> list[Place]:
    """Neighbouring rows with the same sequence share one place."""
    places: list[Place] = []
    start = 0
    for index in range(1, len(rows) + 1):
        if (
            index < len(rows)
            and not rows[index].answer
            and not rows[start].answer
            and rows[index].prompt == rows[start].prompt
        ):
            continue
        row = rows[start]
        slots = PromptSlots(first + start, first + index, row.cached)
        places.append(Place(row.ids[:-1], slots, None if row.answer else row.prompt))
        start = index
    return places


def batches_of(places: Sequence[Place], tokens: int) -> list[list[Place]]:
    """Cut into forward passes of at most `tokens` cells, padding and what stands before it included."""
    batches: list[list[Place]] = []
    longest = past = 0
    for place in places:
        longest, past = max(longest, len(place.missing)), max(past, place.slots.past)
        if not batches or (past + longest) * (len(batches[-1]) + 1) > tokens:
            batches.append([])
            longest, past = len(place.missing), place.slots.past
        batches[-1].append(place)
    return batches


def prefill_inputs(batch: Sequence[Place], device: torch.device) -> dict[str, Tensor]:
    """Ids, and where some rows have a past, the positions and the cells of each row.

    Right padding: causal attention never looks at it, and its keys and values are not copied.
    """
    longest = max(len(place.missing) for place in batch)
    past = max(place.slots.past for place in batch)
    padded = torch.tensor([place.missing + [0] * (longest - len(place.missing)) for place in batch], device=device)
    if not past:
        return {"input_ids": padded}
    pasts_R1 = torch.tensor([[place.slots.past] for place in batch], device=device)
    ends_R1 = torch.tensor([[len(place.missing)] for place in batch], device=device)
    return {
        "input_ids": padded,
        # The last token's own for padding: behind a long past it would stand beyond a model's last position.
        "position_ids": pasts_R1 + torch.minimum(torch.arange(longest, device=device), ends_R1 - 1),
        # A row's cells are neighbours, its past right before its new tokens, so a window spans the columns that it
        # spans in the sequence. BLOOM counts its positions in this mask.
        "attention_mask": torch.arange(-past, longest, device=device) >= -pasts_R1,
    }


def siblings(places: Sequence[Place]) -> tuple[list[Place], list[Place]]:
    """Those to compute first, and those that have `SHARED_TOKENS` or more missing tokens in common with one of them."""
    leading: list[Place] = []
    following: list[Place] = []
    before: list[int] = []
    # In the order of their ids, a sequence shares the most with its neighbour.
    for place in sorted(places, key=lambda place: place.ids):
        shared = common_length(before, place.ids)
        (following if shared - place.slots.past >= SHARED_TOKENS else leading).append(place)
        before = place.ids
    return leading, following
