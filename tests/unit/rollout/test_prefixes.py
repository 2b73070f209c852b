"""The tree of kept tokens alone, against a plain list of what was kept; no model."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import replace

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.rollout.kv import PromptSlots
from posttrain.rollout.prefill import SHARED_TOKENS, Place, siblings
from posttrain.rollout.prefixes import Layers, PrefixStore, Span, common_length, prefix_store
from tests.fixtures import tiny_model

WEIGHTS = (0, None)


def cells_of(ids: tuple[int, ...]) -> Callable[[int, int], Layers]:
    """Two layers, the second of which keeps nothing; a token's key is its id and its value the number of its place, so
    that what comes back shows where it was from."""

    def read(start: int, count: int) -> Layers:
        keys = torch.tensor([ids[start : start + count]], dtype=torch.float32)[..., None]
        values = torch.arange(start, start + count, dtype=torch.float32)[None, :, None]
        return [(keys, values), None]

    return read


def store_of(*sequences: tuple[int, ...], tokens: int = 100) -> PrefixStore:
    store = PrefixStore(tokens, tolerance=1e-3)
    store.begin(WEIGHTS)
    for ids in sequences:
        store.keep(ids, cells_of(ids), WEIGHTS)
    return store


def found(store: PrefixStore, ids: tuple[int, ...], weights: Hashable = WEIGHTS) -> int:
    """How many tokens are kept of it; each of them has been proven to be the right one."""
    length = 0
    for layers, start, count in store.find(ids, weights):
        assert start == length and count > 0
        assert layers[0] is not None and layers[1] is None
        keys, values = (block[0, :count, 0].tolist() for block in layers[0])
        assert keys == list(ids[start : start + count]) and values == list(range(start, start + count))
        length += count
    return length


def test_a_node_holds_its_own_tokens_alone() -> None:
    """1 2 3 4 5 and 1 2 3 8: the first three are held once, so six cells are held and not nine."""
    store = store_of((1, 2, 3, 4, 5), (1, 2, 3, 8))
    assert store.cells == 6
    assert [found(store, ids) for ids in [(1, 2, 3, 4, 5, 6), (1, 2, 3, 8), (1, 2, 9), (2,), ()]] == [5, 4, 2, 0, 0]
    spans: list[Span] = store.find((1, 2, 3, 8), WEIGHTS)
    assert [(span.start, span.length) for span in spans] == [(0, 3), (3, 1)]


def test_what_is_kept_already_is_not_read_again() -> None:
    store, asked = store_of((1, 2, 3)), []

    def read(start: int, count: int) -> Layers:
        asked.append((start, count))
        return cells_of((1, 2, 3, 4, 5))(start, count)

    for ids in [(1, 2, 3, 4, 5), (1, 2), (1, 2, 3, 4)]:
        store.keep(ids, read, WEIGHTS)
    assert asked == [(3, 2)]


def test_evicting_half_of_a_parted_node_frees_its_memory() -> None:
    """A slice that is a view keeps the memory of all that it was cut from."""
    store = store_of((1, 2, 3, 4, 5, 6), (1, 2, 9))
    for layers, _, _ in store.find((1, 2, 3, 4, 5, 6), WEIGHTS):
        assert layers[0] is not None
        for block in layers[0]:
            assert block.untyped_storage().nbytes() == block.numel() * block.element_size()


def test_the_least_recently_used_leaf_goes_first_and_no_ancestor_before_it() -> None:
    store = store_of((1, 2, 3, 4), (1, 2, 5, 6), (7, 8), tokens=8)
    assert store.cells == 8
    found(store, (1, 2, 3, 4))  # used again, so that 5 6 is the oldest
    store.keep((9, 9), cells_of((9, 9)), WEIGHTS)
    assert [found(store, ids) for ids in [(1, 2, 5, 6), (1, 2, 3, 4), (7, 8), (9, 9)]] == [2, 4, 2, 2]


def test_a_sequence_longer_than_the_store_is_kept_from_its_beginning() -> None:
    store = store_of((7, 8), tuple(range(20, 40)), tokens=6)
    assert store.cells == 6
    assert found(store, tuple(range(20, 40))) == 6 and found(store, (7, 8)) == 0
    # What it grows from is not thrown out for its own continuation.
    store = store_of((1, 2, 3), (1, 2, 3, 4, 5, 6, 7), tokens=5)
    assert found(store, (1, 2, 3, 4, 5, 6, 7)) == 5


def test_other_weights_find_nothing_and_bring_nothing() -> None:
    store = store_of((1, 2, 3))
    newer = (1, None)
    assert found(store, (1, 2, 3), newer) == 0
    store.begin(newer)
    assert store.cells == 0
    store.keep((1, 2, 3), cells_of((1, 2, 3)), WEIGHTS)  # a decoder that has outlived the update
    assert store.cells == 0 and found(store, (1, 2, 3), newer) == 0


@pytest.mark.parametrize("tokens", [1, 7, 40, 1000])
@pytest.mark.parametrize("seed", range(8))
def test_random_sequences_are_found_as_far_as_a_plain_list_says(tokens: int, seed: int) -> None:
    """While nothing was evicted, exactly as far; afterwards never further, and never more cells than there may be."""
    rng, store, kept = random.Random(seed), store_of(tokens=tokens), []
    for _ in range(60):
        ids = tuple(rng.randrange(3) for _ in range(rng.randrange(1, 12)))
        if kept and rng.random() < 0.5:
            ids = (rng.choice(kept) + ids)[:30]
        longest = max((common_length(ids, other) for other in kept), default=0)
        length = found(store, ids)
        assert length == longest if tokens == 1000 else length <= longest
        store.keep(ids, cells_of(ids), WEIGHTS)
        kept.append(ids)
        assert found(store, ids) >= min(tokens, 1)
        assert store.cells == sum(len(node.ids) for node in store._by_use) <= tokens
    distinct = {ids[: i + 1] for ids in kept for i in range(len(ids))}
    assert tokens < 1000 or store.cells == len(distinct)


def test_a_negative_number_of_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="prefix_tokens") as refused:
        prefix_store(-1, tiny_model().config, 1e-3)
    assert refused.value.found == -1 and refused.value.remedy
    assert prefix_store(0, tiny_model().config, 1e-3) is None


def test_a_sequence_that_ends_within_a_node_leaves_it_whole() -> None:
    store = store_of((1, 2, 3, 4), (1, 2))
    assert [node.ids for node in store._by_use] == [(1, 2, 3, 4)]


def test_what_two_prompts_share_and_have_already_is_waited_for_by_nobody() -> None:
    ids = list(range(SHARED_TOKENS + 8))
    places = [Place([*ids, last], PromptSlots(last, last + 1, len(ids) + 1, past=0), None) for last in (900, 901)]
    assert [len(part) for part in siblings(places)] == [1, 1]
    kept = [Place(place.ids, replace(place.slots, past=10), None) for place in places]
    assert [len(part) for part in siblings(kept)] == [2, 0]
