"""Keys and values of the live completions, in one block of memory per layer that the standard cache API reads.

Layout: one slot per live row, all rows aligned at a common cursor.

    slot 0   . . p p p p a a|      p  prompt tokens      .  cells that hold other rows' leftovers, masked
    slot 1   . . . . p p a a|      a  sampled tokens     |  the cursor: the next token of every row goes here
    slot 2   p p p p p p p a|

A step writes one column and reads the columns from the oldest live row's first to the cursor: a view, no copy. Since
rows end at the same column, distances between tokens of a row are distances between columns, so the
masks that a model builds for itself (causal, sliding window) hold, given the 2-D mask of which cells are the row's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True, slots=True)
class PromptSlots:
    """Where a prefilled sequence goes.

    PromptSlots(first=8, last=16, length=40): its 40 tokens are copied to each of the slots 8 ... 15.
    """

    first: int
    last: int
    length: int
    past: int = 0
    """Of its tokens, how many the slots have already; a prefill computes the others."""


KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one sequence in one layer: [heads, tokens, head size] each."""


class _Span:
    """What all layers of a cache have in common: which cells the present forward pass reads and writes."""

    def __init__(self) -> None:
        self.slots = 0
        self.width = 0
        self.rows = 0
        self.oldest = 0
        self.cursor = 0
        self.prompts: Sequence[PromptSlots] | None = None
        """While prefilling: where row i of the forward pass goes."""

    @property
    def past(self) -> int:
        """Columns before those that the forward pass computes."""
        if self.prompts is not None:
            return max(where.past for where in self.prompts)
        return self.cursor - self.oldest


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values, [slots, heads, width, head size]."""

    def __init__(self, span: _Span):
        super().__init__()
        self.span = span
        self.keys: Tensor
        self.values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = self._block(key_states, self.span.slots, self.span.width)
        self.values = self._block(value_states, self.span.slots, self.span.width)
        self.is_initialized = True

    @staticmethod
    def _block(like: Tensor, slots: int, width: int) -> Tensor:
        # Zeros, not empty: a masked cell is multiplied by 0, and 0 x NaN would spoil the row.
        return like.new_zeros(slots, like.shape[1], width, like.shape[3])

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        span = self.span
        if span.prompts is not None:
            for index, where in enumerate(span.prompts):
                self.store(where, (key_states[index], value_states[index]), where.past, where.length - where.past)
            if not span.past:
                return key_states, value_states
            return self._after_past(self.keys, key_states), self._after_past(self.values, value_states)
        now = slice(span.cursor, span.cursor + 1)
        self.keys[: span.rows, :, now] = key_states
        self.values[: span.rows, :, now] = value_states
        # From the oldest live row on: columns before it belong to rows that have ended.
        visible = slice(span.oldest, span.cursor + 1)
        return self.keys[: span.rows, :, visible], self.values[: span.rows, :, visible]

    def _after_past(self, block: Tensor, states_RHLD: Tensor) -> Tensor:
        """The rows' earlier tokens and, after them, those of this pass: [R, heads, past + L, head size].

        row 0   . . . k k|n n n      k  kept      .  cells that the mask hides
        row 1   k k k k k|n . .      n  new       |  where the pass begins
        """
        prompts, past = self.span.prompts, self.span.past
        assert prompts is not None
        rows, heads, length, size = states_RHLD.shape
        # Zeros for the same reason as in `_block`.
        joined = states_RHLD.new_zeros(rows, heads, past + length, size)
        for index, where in enumerate(prompts):
            begin = self.span.cursor - where.length
            joined[index, :, past - where.past : past] = block[where.first, :, begin : begin + where.past]
        joined[:, :, past:] = states_RHLD
        return joined

    def store(self, where: PromptSlots, sequence: KeyValue, start: int, count: int) -> None:
        """Copy the first `count` tokens of `sequence`: those from `start` on of a row that ends at the cursor."""
        if not self.is_initialized:  # the first of a new cache, and nothing was computed for it
            self.lazy_initialization(sequence[0][None], sequence[1][None])
        # Right-aligned: all rows end at the cursor, so one column is the next token of each.
        begin = self.span.cursor - where.length + start
        self.keys[where.first : where.last, :, begin : begin + count] = sequence[0][:, :count]
        self.values[where.first : where.last, :, begin : begin + count] = sequence[1][:, :count]

    def read(self, slot: int, length: int, start: int, count: int) -> KeyValue:
        begin = self.span.cursor - length + start
        columns = slice(begin, begin + count)
        return self.keys[slot, :, columns].clone(), self.values[slot, :, columns].clone()

    def move(self, source: int, target: int, length: int) -> None:
        columns = slice(self.span.cursor - length, self.span.cursor)
        self.keys[target, :, columns] = self.keys[source, :, columns]
        self.values[target, :, columns] = self.values[source, :, columns]

    def rebuild(self, slots: int, width: int, rows: int, length: int, cursor: int) -> None:
        """A block of another size, in which the last `length` columns of the first `rows` slots end at `cursor`."""
        old, new = slice(self.span.cursor - length, self.span.cursor), slice(cursor - length, cursor)
        old_keys, old_values = self.keys, self.values
        self.keys, self.values = self._block(old_keys, slots, width), self._block(old_values, slots, width)
        self.keys[:rows, :, new] = old_keys[:rows, :, old]
        self.values[:rows, :, new] = old_values[:rows, :, old]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.span.past + query_length, 0

    def get_seq_length(self) -> int:
        return self.span.past

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """A cache of `transformers` over slots; the caller says which rows live and what a forward pass is for."""

    def __init__(self, num_layers: int):
        self.span = _Span()
        self.slot_layers = [_SlotLayer(self.span) for _ in range(num_layers)]
        super().__init__(layers=list(self.slot_layers))

    @property
    def slots(self) -> int:
        return self.span.slots

    @property
    def width(self) -> int:
        return self.span.width

    @property
    def cursor(self) -> int:
        return self.span.cursor

    @property
    def is_full(self) -> bool:
        return self.span.cursor >= self.span.width

    @property
    def num_bytes(self) -> int:
        """Bytes held by all layers."""
        layers = [layer for layer in self.slot_layers if layer.is_initialized]
        return sum(block.numel() * block.element_size() for layer in layers for block in (layer.keys, layer.values))

    def reset_to(self, slots: int, width: int, cursor: int) -> None:
        """An empty cache of `slots` x `width` cells whose rows will end at `cursor`."""
        self.span.slots, self.span.width, self.span.cursor = slots, width, cursor
        # Layers take their memory when the first keys come, with the dtype that the model gives them.
        for layer in self.slot_layers:
            if layer.is_initialized:
                layer.rebuild(slots, width, 0, 0, 0)

    def rebuild(self, slots: int, width: int, rows: int, length: int, cursor: int) -> None:
        """Move the first `rows` slots, whose longest row has `length` tokens, to a cache of another size; they end at
        its `cursor`, which stands further right where rows that are longer are to enter."""
        for layer in self.slot_layers:
            if layer.is_initialized:
                layer.rebuild(slots, width, rows, length, cursor)
        self.span.slots, self.span.width, self.span.cursor = slots, width, cursor

    def prefilling(self, prompts: Sequence[PromptSlots]) -> None:
        """The next forward pass is over right-padded prompts, row i of which goes to prompts[i]."""
        self.span.prompts = prompts

    def stepping(self, rows: int, length: int) -> None:
        """The next forward pass adds one token to each of the first `rows` slots; the longest has `length` tokens."""
        # A prefill leaves its places here, and a step would be taken for another one.
        self.span.prompts = None
        self.span.rows = rows
        self.span.oldest = self.span.cursor - length

    def advance(self) -> None:
        """The step has written its column."""
        self.span.cursor += 1

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the last `length` tokens of a slot to another slot."""
        for layer in self.slot_layers:
            if layer.is_initialized:
                layer.move(source, target, length)

    def read(self, slot: int, length: int, start: int = 0, count: int | None = None) -> list[KeyValue | None]:
        """A copy, layer by layer, of `count` tokens from `start` on of a slot whose row has `length`; None: all further
        ones. A layer that keeps nothing of its own, since it reads an earlier one's, is None."""
        count = length - start if count is None else count
        return [layer.read(slot, length, start, count) if layer.is_initialized else None for layer in self.slot_layers]

    def store(
        self, where: PromptSlots, layers: Sequence[KeyValue | None], start: int = 0, count: int | None = None
    ) -> None:
        """Put what `read` gave into slots as the tokens from `start` on of a row that ends at the cursor."""
        count = where.length - start if count is None else count
        for layer, sequence in zip(self.slot_layers, layers, strict=True):
            if sequence is not None:
                layer.store(where, sequence, start, count)


def own_cells(lengths: Sequence[int], device: torch.device) -> Tensor:
    """2-D mask [R, longest + 1]: the cells of each row, and the one that the step writes.

    own_cells([1, 3]) -> [[0, 0, 1, 1], [1, 1, 1, 1]]
    """
    longest = max(lengths)
    starts = torch.tensor([longest - length for length in lengths], device=device)
    return torch.arange(longest + 1, device=device)[None] >= starts[:, None]
