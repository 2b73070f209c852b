"""From live rows to their next logits: with a cache, or by computing each sequence anew.

`CachedDecoder` is continuous batching over a bounded cache: finished rows leave, waiting rows enter, and a prompt is
prefilled once however many completions it gets. `RecomputingDecoder` runs the whole sequences at every step; it
serves models whose state is no keys and values (recurrent layers), and the first is held against it.

A prefill computes keys and values of all tokens but the last. The last token goes through the ordinary step, so
there is one place where logits come from. What is kept of earlier sequences (`posttrain.rollout.prefixes`) is copied
instead: a sequence that continues one that has ended begins with all that was computed of it.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn

from posttrain.models.adapters.kinds import adapter_kind, virtual_tokens
from posttrain.rollout.kv import SlotCache, own_cells
from posttrain.rollout.prefill import Place, batches_of, places_of, prefill_inputs, siblings
from posttrain.rollout.prefixes import Layers, PrefixStore
from posttrain.rollout.rows import Row

SMALLEST_GROWTH = 64
"""Columns added at least when the cache has no room for a step; each growth copies it."""
PROVEN_IDS = 8
"""Likeliest next tokens whose log-probs are compared with and without a kept prefix."""


@dataclass(slots=True)
class DecodeStats:
    """What a call of `generate` computed: DecodeStats(prefilled=400, reused=0, steps=120, decoded=5_210)."""

    prefilled: int = 0
    """Prompt tokens whose keys and values were computed; a prompt's last token belongs to the first step."""
    reused: int = 0
    """Prompt tokens whose keys and values were kept from earlier sequences (`prefix_tokens`), and so not computed."""
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
        prefixes: what is kept of earlier sequences; None computes every prompt from its first token.
    """

    def __init__(
        self,
        lm: CausalLM,
        num_layers: int,
        stats: DecodeStats,
        max_rows: int,
        cache_tokens: int,
        prefill_tokens: int,
        prefixes: PrefixStore | None = None,
    ):
        self.lm = lm
        self.stats = stats
        self.rows: list[Row] = []
        self._cache = SlotCache(num_layers)
        self._max_rows = max_rows
        self._cache_tokens = cache_tokens
        self._prefill_tokens = prefill_tokens
        self._held: tuple[tuple[int, ...], Layers] | None = None
        """A prompt that some of its completions still wait for, and its keys and values."""
        self._prefixes = prefixes
        self._weights = prefixes.weights if prefixes is not None else None
        self._to_prove: dict[bool, Row] = {}
        """Rows that begin with kept tokens in a way (`PrefixStore.proven`) that nothing was compared for yet."""

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
        places = places_of(newcomers, first)
        missing = [place for place in places if place.ids and not self._copy_held(place)]
        if self._prefixes is None:
            self._prefill(missing)
        else:
            self._prefill_after_kept(missing, self._prefixes)
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

    def _prefill_after_kept(self, places: Sequence[Place], store: PrefixStore) -> None:
        """Copy what is kept of each sequence, compute the others' tokens, and keep the prompts for those that come."""
        leading, following = siblings([self._copy_kept(place, store) for place in places])
        self._prefill_and_keep(leading, store)
        # By now what they share is kept; what was copied before is a part of what is found.
        following = [self._copy_kept(place, store) for place in following]
        self._prefill_and_keep(following, store)
        for place in (*leading, *following):
            self.stats.reused += len(place.ids) - len(place.missing)

    def _copy_kept(self, place: Place, store: PrefixStore) -> Place:
        past = 0
        for span in store.find(tuple(place.ids), self._weights):
            self._cache.store(place.slots, span.layers, span.start, span.length)
            past += span.length
        return replace(place, slots=replace(place.slots, past=past))

    def _prefill_and_keep(self, places: Sequence[Place], store: PrefixStore) -> None:
        # Apart, so that sequences without a past go the way that they go without a store; the others by what is
        # missing, since it is what padding is computed for.
        self._prefill([place for place in places if not place.slots.past])
        continued = [place for place in places if place.slots.past and place.missing]
        self._prefill(sorted(continued, key=lambda place: len(place.missing)))
        for place in places:
            slots = place.slots
            if slots.past and (continues := bool(place.missing)) not in store.proven:
                self._to_prove.setdefault(continues, self.rows[slots.first])
            if place.fresh_prompt is not None:
                store.keep(tuple(place.ids), partial(self._cache.read, slots.first, slots.length), self._weights)

    def _prefill(self, places: Sequence[Place]) -> None:
        for batch in batches_of(places, self._prefill_tokens):
            self._cache.prefilling([place.slots for place in batch])
            self.lm.last_logits(**prefill_inputs(batch, self.lm.device), past_key_values=self._cache, use_cache=True)
            self.stats.prefilled += sum(len(place.missing) for place in batch)

    def _copy_held(self, place: Place) -> bool:
        if self._held is None or self._held[0] != place.fresh_prompt:
            return False
        self._cache.store(place.slots, self._held[1])
        return True

    def _hold(self, last: Place, waiting: deque[Row]) -> None:
        """Keep the last prompt while some of its completions wait: it is not computed twice."""
        split = waiting and not waiting[0].answer and waiting[0].prompt == last.fresh_prompt
        if split and last.ids:
            if self._held is None or self._held[0] != last.fresh_prompt:
                self._held = (waiting[0].prompt, self._cache.read(last.slots.first, last.slots.length))
        elif self._held is not None and last.fresh_prompt == self._held[0]:
            self._held = None

    # ------------------------------------------------------------ rows advance

    def next_logits(self, waiting: deque[Row]) -> Tensor:
        logits_RV = self._step(waiting)
        if self._to_prove and self._prefixes is not None and self._kept_differs(logits_RV, self._prefixes):
            # Nothing was drawn from these logits yet: all rows enter again, and are computed from their first token.
            waiting.extendleft(reversed(self.rows))
            self.rows.clear()  # the same list: the caller may have taken it before it asked for logits
            self.admit(waiting)
            logits_RV = self._step(waiting)
        return logits_RV

    def _kept_differs(self, logits_RV: Tensor, store: PrefixStore) -> bool:
        """The first time that a row begins with kept tokens, and the first time that computed ones follow them: score
        it without a cache; True if the store had to be disabled."""
        rows, self._to_prove = self._to_prove, {}
        for continues, row in rows.items():
            if row not in self.rows:  # it had to give its cells back; another one will come
                continue
            ids_1T = torch.tensor([row.ids], device=self.lm.device)
            logprobs_V = self.lm.last_logits(input_ids=ids_1T, use_cache=False)[0].float().log_softmax(0)
            kept_V = logits_RV[self.rows.index(row)].float().log_softmax(0)
            # Of the likeliest alone: far down, rounding is as large as log-probs are.
            ids = logprobs_V.topk(min(PROVEN_IDS, len(logprobs_V))).indices
            gap = float((logprobs_V - kept_V)[ids].abs().max())
            if logprobs_V.isnan().any():  # broken weights, which no store is to blame for
                continue
            if not gap <= store.tolerance:
                store.disable(f"log-probs after a kept prefix differ by {gap:.2g} from those without")
                self._held = None
                return True
            store.proven.add(continues)
        return False

    def _step(self, waiting: deque[Row]) -> Tensor:
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
        self._keep(gone)
        for slot in reversed(range(len(self.rows))):
            if id(self.rows[slot]) not in gone:
                continue
            # The last row moves into the gap: the live rows stay the first slots, which a step then reads as one view.
            last = self.rows.pop()
            if slot < len(self.rows):
                self.rows[slot] = last
                self._cache.move(len(self.rows), slot, last.cached)

    def _keep(self, gone: set[int]) -> None:
        """Keep those that have come to an end: what was given up half-way, or is not finite, nobody continues."""
        if self._prefixes is None:
            return
        for slot, row in enumerate(self.rows):
            if id(row) in gone and row.finish is not None:
                self._prefixes.keep(tuple(row.ids[:-1]), partial(self._cache.read, slot, row.cached), self._weights)


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
