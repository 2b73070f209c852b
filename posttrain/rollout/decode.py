"""From live rows to their next logits: with a cache, or by computing each sequence anew.

`CachedDecoder` is continuous batching over a bounded cache: finished rows leave, waiting rows enter, and a prompt is
prefilled once however many completions it gets. `RecomputingDecoder` runs the whole sequences at every step; it
serves models whose state is no keys and values (recurrent layers), and the first is held against it.

A prefill computes keys and values of all tokens but the last. The last token goes through the ordinary step, so
there is one place where logits come from.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn

from posttrain.models.adapters.kinds import adapter_kind, virtual_tokens
from posttrain.rollout.kv import KeyValue, PromptSlots, SlotCache, own_cells
from posttrain.rollout.rows import Row

SMALLEST_GROWTH = 64
"""Columns added at least when the cache has no room for a step; each growth copies it."""


@dataclass(slots=True)
class DecodeStats:
    """What a call of `generate` computed: DecodeStats(prefilled=400, steps=120, decoded=5_210, preempted=0)."""

    prefilled: int = 0
    """Prompt tokens whose keys and values were computed; a prompt's last token belongs to the first step."""
    steps: int = 0
    decoded: int = 0
    """Tokens that went through steps: one per live row and step."""
    preempted: int = 0
    """Rows that had to give up their cells and were computed again later."""
    peak_cells: int = 0
    """Most cells that the cache had: slots x width."""


class Decoder(Protocol):
    """Rows in, logits out."""

    rows: list[Row]
    """The live rows, in the order of the logits."""

    def enlarge(self, waiting: deque[Row]) -> None:
        """Make room for rows that came after sampling began, as far as the memory goes; `admit` then takes them."""
        ...

    def admit(self, waiting: deque[Row]) -> None:
        """Take rows from the left of `waiting` while there is room."""
        ...

    def next_logits(self, waiting: deque[Row]) -> Tensor:
        """Logits [R, V] of each live row's next token; rows that lost their room go back to `waiting`."""
        ...

    def retire(self, finished: Sequence[Row]) -> None:
        """Forget rows that have ended."""
        ...


class CausalLM:
    """One forward signature for all causal LMs of `transformers`."""

    def __init__(self, model: nn.Module):
        self.model = model
        causal_lm = model.get_base_model() if isinstance(model, PeftModel) else model
        self._virtual = _virtual_columns(model)
        # A prompt's virtual tokens have logits too, before the row's own: columns are then counted here.
        self._keeps = not self._virtual and "logits_to_keep" in inspect.signature(causal_lm.forward).parameters
        parameter = next(model.parameters())
        self.device = parameter.device

    def last_logits(self, **inputs: Any) -> Tensor:
        """Logits [R, V] after the last column of `input_ids`."""
        if self._keeps:
            inputs["logits_to_keep"] = 1
        return self.model(**inputs).logits[:, -1]

    def last_columns(self, count: int, **inputs: Any) -> Tensor:
        """Logits [count, V] after the last columns of the one row of `input_ids`."""
        if self._keeps:
            inputs["logits_to_keep"] = count
        return self.model(**inputs).logits[0, -count:]

    def logits_at(self, columns_R: Tensor, **inputs: Any) -> Tensor:
        """Logits [R, V] after column columns_R[r] of each row r."""
        if self._keeps:
            kept, index_R = columns_R.unique(return_inverse=True)
            logits = self.model(**inputs, logits_to_keep=kept).logits
        else:
            index_R = columns_R + self._virtual
            logits = self.model(**inputs).logits
        return logits[torch.arange(len(columns_R), device=logits.device), index_R]


def _virtual_columns(model: nn.Module) -> int:
    """Columns of logits before those of the row: a prompt's virtual tokens; a prefix lies in the cache and has none."""
    return 0 if adapter_kind(model) == "prefix" else virtual_tokens(model)


class CachedDecoder:
    """Continuous batching over `SlotCache`.

    A row can enter where the cursor stands at its length or beyond. A batch brings its rows longest first, so that each
    can; a row that comes later and is longer waits for `enlarge`, or until no row is live.

    Args:
        cache_tokens: cells (slots x width) that the cache may have; when rows outgrow it, the shortest wait again.
        prefill_tokens: tokens of one prefill forward, padding included; a longer prompt has one of its own.
    """

    def __init__(
        self, lm: CausalLM, num_layers: int, stats: DecodeStats, max_rows: int, cache_tokens: int, prefill_tokens: int
    ):
        self.lm = lm
        self.stats = stats
        self.rows: list[Row] = []
        self._cache = SlotCache(num_layers)
        self._max_rows = max_rows
        self._cache_tokens = cache_tokens
        self._prefill_tokens = prefill_tokens
        self._held: tuple[tuple[int, ...], list[KeyValue]] | None = None
        """A prompt that some of its completions still wait for, and its keys and values."""

    # ------------------------------------------------------------ rows enter

    def admit(self, waiting: deque[Row]) -> None:
        if not waiting or not self._worth_a_prefill(len(waiting)):
            return
        if not self.rows:
            self._start(waiting)
        first = len(self.rows)
        newcomers: list[Row] = []
        while waiting and first + len(newcomers) < self._cache.slots and waiting[0].cached <= self._cache.cursor:
            newcomers.append(waiting.popleft())
        if not newcomers:
            return
        self.rows += newcomers
        places = _places(newcomers, first)
        self._prefill([place for place in places if not self._copy_held(place)])
        self._hold(places[-1], waiting)

    def enlarge(self, waiting: deque[Row]) -> None:
        # Where no row is live, `admit` lays out an empty cache for those that wait.
        free = self._cache.slots - len(self.rows)
        if not self.rows or not waiting or (free and waiting[0].cached <= self._cache.cursor):
            return
        length = longest = max(row.cached for row in self.rows)
        remaining, width, cursor, rows = max(row.remaining for row in self.rows), 0, 0, len(self.rows)
        for row in islice(waiting, self._max_rows - len(self.rows)):
            longest, remaining = max(longest, row.cached), max(remaining, row.remaining)
            wider = self._width(longest, remaining, rows + 1)
            if self._cache_tokens // wider <= rows:
                break
            rows, width, cursor = rows + 1, wider, longest
        if rows == len(self.rows):
            return
        # Each change of size copies the cache: room for as many again, or rows that come one by one copy it each time.
        slots = min(self._max_rows, self._cache_tokens // width, max(rows, 2 * len(self.rows)))
        self._cache.rebuild(slots, width, len(self.rows), length, cursor)
        self.stats.peak_cells = max(self.stats.peak_cells, slots * width)

    def _worth_a_prefill(self, waiting: int) -> bool:
        """A forward pass for one prompt costs nearly what a step costs: let a few slots become free first."""
        free = self._cache.slots - len(self.rows)
        return not self.rows or free >= min(waiting, max(1, self._cache.slots // 8))

    def _start(self, waiting: deque[Row]) -> None:
        """Lay out an empty cache for the rows at hand."""
        longest = max(row.cached for row in waiting)
        remaining = max(row.remaining for row in waiting)
        rows = min(self._max_rows, len(waiting))
        width = self._width(longest, remaining, rows)
        slots = min(rows, self._cache_tokens // width)
        self._cache.reset_to(slots, width, cursor=longest)
        self.stats.peak_cells = max(self.stats.peak_cells, slots * width)

    def _prefill(self, places: list[_Place]) -> None:
        for batch in _batches([place for place in places if place.ids], self._prefill_tokens):
            longest = max(len(place.ids) for place in batch)
            # Right padding: causal attention never looks at it, and its keys and values are not copied.
            padded = [place.ids + [0] * (longest - len(place.ids)) for place in batch]
            self._cache.prefilling([place.slots for place in batch])
            self.lm.last_logits(
                input_ids=torch.tensor(padded, device=self.lm.device), past_key_values=self._cache, use_cache=True
            )
            self.stats.prefilled += sum(len(place.ids) for place in batch)

    def _copy_held(self, place: _Place) -> bool:
        if self._held is None or self._held[0] != place.fresh_prompt:
            return False
        self._cache.store(place.slots, self._held[1])
        return True

    def _hold(self, last: _Place, waiting: deque[Row]) -> None:
        """Keep the last prompt while some of its completions wait: it is not computed twice."""
        split = waiting and not waiting[0].answer and waiting[0].prompt == last.fresh_prompt
        if split and last.ids:
            if self._held is None or self._held[0] != last.fresh_prompt:
                self._held = (waiting[0].prompt, self._cache.read(last.slots.first, last.slots.length))
        elif self._held is not None and last.fresh_prompt == self._held[0]:
            self._held = None

    # ------------------------------------------------------------ rows advance

    def next_logits(self, waiting: deque[Row]) -> Tensor:
        if self._cache.is_full:
            self._make_room(waiting)
        lengths = [row.cached for row in self.rows]
        self._cache.stepping(len(self.rows), max(lengths))
        device = self.lm.device
        logits_RV = self.lm.last_logits(
            input_ids=torch.tensor([[row.last_id] for row in self.rows], device=device),
            position_ids=torch.tensor([[length] for length in lengths], device=device),
            attention_mask=own_cells(lengths, device),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache.advance()
        self.stats.steps += 1
        self.stats.decoded += len(self.rows)
        return logits_RV

    def _make_room(self, waiting: deque[Row]) -> None:
        """Widen the cache within its budget; where that cannot hold all rows, the shortest give way."""
        while True:
            longest = max(row.cached for row in self.rows)
            remaining = max(row.remaining for row in self.rows)
            width = self._width(longest, remaining, len(self.rows))
            slots = min(self._max_rows, self._cache_tokens // width)
            if slots >= len(self.rows):
                break
            # The shortest is computed again at the least cost.
            shortest = min(self.rows, key=lambda row: row.cached)
            self.retire([shortest])
            waiting.appendleft(shortest)
            self.stats.preempted += 1
        slots = min(slots, len(self.rows) + len(waiting))
        self._cache.rebuild(slots, width, len(self.rows), longest, cursor=longest)
        self.stats.peak_cells = max(self.stats.peak_cells, slots * width)

    def _width(self, longest: int, remaining: int, rows: int) -> int:
        """Columns for `rows` rows: all that they can need, if the budget has them, else some to go on with."""
        # A cache as wide as the longest answer could be would hold few rows, most of which end early.
        share = self._cache_tokens // rows
        if longest + remaining <= share:
            return longest + remaining
        wanted = longest + min(remaining, max(SMALLEST_GROWTH, longest // 2))
        least = longest + min(remaining, SMALLEST_GROWTH // 4)
        return min(max(min(wanted, share), least), self._cache_tokens)

    # ------------------------------------------------------------ rows leave

    def retire(self, finished: Sequence[Row]) -> None:
        gone = set(map(id, finished))
        for slot in reversed(range(len(self.rows))):
            if id(self.rows[slot]) not in gone:
                continue
            # The last row moves into the gap: the live rows stay the first slots, which a step then reads as one view.
            last = self.rows.pop()
            if slot < len(self.rows):
                self.rows[slot] = last
                self._cache.move(len(self.rows), slot, last.cached)


class RecomputingDecoder:
    """Every step runs every live sequence from its beginning."""

    def __init__(self, lm: CausalLM, stats: DecodeStats, max_rows: int, cache_tokens: int):
        self.lm = lm
        self.stats = stats
        self.rows: list[Row] = []
        self._max_rows = max_rows
        self._tokens = cache_tokens

    def enlarge(self, waiting: deque[Row]) -> None:
        """Nothing is laid out beforehand, so there is nothing to enlarge."""

    def admit(self, waiting: deque[Row]) -> None:
        while waiting and len(self.rows) < self._max_rows:
            longest = max(len(row.prompt) + row.limit for row in [*self.rows, waiting[0]])
            if self.rows and longest * (len(self.rows) + 1) > self._tokens:
                break
            self.rows.append(waiting.popleft())

    def next_logits(self, waiting: deque[Row]) -> Tensor:
        sequences = [row.ids for row in self.rows]
        longest = max(map(len, sequences))
        padded = [ids + [0] * (longest - len(ids)) for ids in sequences]
        device = self.lm.device
        last_R = torch.tensor([len(ids) - 1 for ids in sequences], device=device)
        # No mask: padding stands behind every row, where causal attention does not look.
        logits_RV = self.lm.logits_at(last_R, input_ids=torch.tensor(padded, device=device), use_cache=False)
        self.stats.steps += 1
        self.stats.decoded += len(self.rows)
        return logits_RV

    def retire(self, finished: Sequence[Row]) -> None:
        gone = set(map(id, finished))
        self.rows = [row for row in self.rows if id(row) not in gone]


# ---------------------------------------------------------------- prefill


@dataclass(frozen=True, slots=True)
class _Place:
    """A sequence to prefill, without its last token, and the neighbouring slots of the rows that begin with it."""

    ids: list[int]
    slots: PromptSlots
    fresh_prompt: tuple[int, ...] | None
    """The prompt that it is, None for a row that comes back with a part of its answer."""


def _places(rows: Sequence[Row], first: int) -> list[_Place]:
    """Neighbouring rows with the same sequence share one place."""
    places: list[_Place] = []
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
        places.append(_Place(row.ids[:-1], slots, None if row.answer else row.prompt))
        start = index
    return places


def _batches(places: Sequence[_Place], tokens: int) -> list[list[_Place]]:
    """Cut into forward passes of at most `tokens` cells, padding included."""
    batches: list[list[_Place]] = []
    longest = 0
    for place in places:
        longest = max(longest, len(place.ids))
        if not batches or longest * (len(batches[-1]) + 1) > tokens:
            batches.append([])
            longest = len(place.ids)
        batches[-1].append(place)
    return batches
