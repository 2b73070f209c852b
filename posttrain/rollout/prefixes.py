"""Keys and values of sequences that have ended, for prompts that begin with them.

Search asks for `prompt`, then for `prompt + step 1`, then for `prompt + step 1 + step 2`; a chat asks for each turn
after all turns before it. What such prompts have in common is computed once and copied from here.

    store = PrefixStore(tokens=32_768, tolerance=1e-3)
    store.begin(weights)
    store.keep((1, 70, 71, 52), read, weights)          # read(start, count): keys and values of those of its tokens
    store.find((1, 70, 71, 99), weights)                # -> [Span(..., start=0, length=3)]: 99 alone is to be computed

The store is a radix tree over token ids (Zheng et al. 2024, "SGLang", section 3). A node holds the keys and values of
its own tokens alone; those before them lie in its ancestors, so what a thousand beams share is held once:

    [1 70 71] --- [52 9 4]          prompt 1 70 71, answers 52 9 4 (once continued by 8 8) and 53 2
        |             `--- [8 8]
        `---- [53 2]
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from posttrain.errors import ConfigError
from posttrain.rollout.kv import KeyValue

logger = logging.getLogger(__name__)

Layers = Sequence[KeyValue | None]
"""Keys and values layer by layer; None for a layer that reads another one's."""

ReadCells = Callable[[int, int], Layers]
"""(start, count) -> a copy of the keys and values of those tokens of a sequence."""


class Span(NamedTuple):
    """Kept cells of a sequence: its tokens from `start` to `start + length` are the first `length` of `layers`."""

    layers: Layers
    start: int
    length: int


@dataclass(slots=True, eq=False)
class _Node:
    ids: tuple[int, ...]
    layers: Layers
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)
    """By their first id; no two children begin alike."""


class PrefixStore:
    """A tree of kept tokens that forgets what was used the longest time ago.

    Args:
        tokens: most tokens that are kept. Each costs what a cell of the engine's cache costs: keys and values of one
            token over all layers, 46 kB for SmolLM2-135M in fp32.
        tolerance: largest difference in nats between a log-prob after a kept prefix and one without it.
    """

    def __init__(self, tokens: int, tolerance: float):
        self.tokens = tokens
        self.tolerance = tolerance
        self.cells = 0
        """Tokens that are kept now."""
        self.proven: set[bool] = set()
        """Which uses were compared with a computation from nothing: True where tokens followed the kept ones."""
        self.weights: Hashable = None
        """Those that computed what is kept."""
        self._root = _Node((), (), None)
        # Oldest use first. A use moves a node and then its ancestors to the end, so the first is always a leaf.
        self._by_use: OrderedDict[_Node, None] = OrderedDict()

    def begin(self, weights: Hashable) -> None:
        """Say which weights compute from now on (`weights_now`): what others computed is dropped."""
        if weights != self.weights:
            self.clear()
            self.weights = weights

    def find(self, ids: tuple[int, ...], weights: Hashable) -> list[Span]:
        """The kept cells of the longest kept beginning of `ids`, in order."""
        spans: list[Span] = []
        # A decoder may outlive an update of the weights: neither what it asks nor what it brings is then of this store.
        if weights != self.weights:
            return spans
        node, length = self._root, 0
        while length < len(ids) and (child := node.children.get(ids[length])) is not None:
            shared = common_length(child.ids, ids[length : length + len(child.ids)])
            spans.append(Span(child.layers, length, shared))
            node, length = child, length + shared
            if shared < len(child.ids):
                break
        self._touch(node)
        return spans

    def keep(self, ids: tuple[int, ...], read: ReadCells, weights: Hashable) -> None:
        """Keep a sequence, or its beginning where the store is too small for all; only what is not kept yet is read."""
        if weights != self.weights or not self.tokens:
            return
        node, length = self._root, 0
        while length < len(ids) and (child := node.children.get(ids[length])) is not None:
            shared = common_length(child.ids, ids[length : length + len(child.ids)])
            length += shared
            # A sequence that ends within a node brings nothing new: the node stays whole.
            node = self._split(child, shared) if shared < len(child.ids) and length < len(ids) else child
        self._touch(node)
        room = self._make_room(len(ids) - length, node) if length < len(ids) else 0
        if room:
            added = ids[length : length + room]
            leaf = node.children[added[0]] = _Node(added, read(length, room), node)
            self.cells += room
            self._by_use[leaf] = None
            self._touch(leaf)

    def clear(self) -> None:
        self._root.children.clear()
        self._by_use.clear()
        self.cells = 0

    def disable(self, reason: str) -> None:
        """Keep nothing from now on, and say why."""
        self.clear()
        self.tokens = 0
        logger.warning("prefixes of earlier sequences are not reused: %s", reason)

    def _touch(self, node: _Node) -> None:
        while node.parent is not None:
            self._by_use.move_to_end(node)
            node = node.parent

    def _split(self, node: _Node, count: int) -> _Node:
        """Part a node's first `count` tokens from the others; gives back the upper part."""
        parent = node.parent
        assert parent is not None
        # Copies, not views: a view of a part keeps the memory of the whole, and evicting one half would free nothing.
        upper = _Node(node.ids[:count], _tokens_of(node.layers, 0, count), parent, {node.ids[count]: node})
        node.layers = _tokens_of(node.layers, count, len(node.ids))
        node.ids, node.parent = node.ids[count:], upper
        parent.children[upper.ids[0]] = upper
        self._by_use[upper] = None
        return upper

    def _make_room(self, wanted: int, parent: _Node) -> int:
        """Evict leaves, the least recently used first, for a child of `parent`; how many tokens it may have."""
        path: set[_Node] = set()
        above: _Node | None = parent
        while above is not None:
            path.add(above)
            above = above.parent
        while self.cells + wanted > self.tokens:
            oldest = next(iter(self._by_use), None)
            # The path was used just now: where it comes first, nothing else is left.
            if oldest is None or oldest in path:
                break
            del self._by_use[oldest]
            assert oldest.parent is not None and not oldest.children
            del oldest.parent.children[oldest.ids[0]]
            self.cells -= len(oldest.ids)
        return min(wanted, self.tokens - self.cells)


def weights_now(model: nn.Module, version: int, autocast: torch.dtype | None) -> Hashable:
    """What keys and values depend on beside the ids: weights by their version, the adapters in use, and the precision.

    Torch counts the changes in place of each parameter (not those of `parameter.data`), so an optimizer's update is
    seen even where nobody raised the version.
    """
    changes = tuple(-1 if parameter.is_inference() else parameter._version for parameter in model.parameters())
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    adapters = tuple((tuple(layer.active_adapters), layer.disable_adapters) for layer in layers)
    return version, autocast, changes, adapters


def prefix_store(tokens: int, config: Any, tolerance: float) -> PrefixStore | None:
    """A store for a model of this config; None where nothing is to be kept, or nothing that is kept could serve.

    Raises:
        ConfigError: `tokens` is negative.
    """
    if tokens < 0:
        raise ConfigError(
            "`prefix_tokens` is a number of tokens",
            found=tokens,
            expected="0 or more",
            example="prefix_tokens=32_768",
            remedy="give 0 to keep nothing",
        )
    store = PrefixStore(tokens, tolerance)
    if tokens and (reason := _length_dependent_rope(config)) is not None:
        store.disable(reason)
    return store if store.tokens else None


def _length_dependent_rope(config: Any) -> str | None:
    """Why a model's keys depend on how long the sequence becomes, so that they cannot serve a longer one; else None."""
    parameters = getattr(config, "rope_parameters", None) or {}
    # One table, or one for each type of layer.
    tables = [parameters, *(table for table in parameters.values() if isinstance(table, dict))]
    if any(table.get("rope_type") == "longrope" for table in tables):
        return "its rotary embedding (longrope) has other frequencies for longer sequences"
    return None


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:  # the usual case, and much faster than one by one
        return length
    return next(i for i in range(length) if first[i] != second[i])


def _tokens_of(layers: Layers, start: int, end: int) -> Layers:
    return [layer and (layer[0][:, start:end].clone(), layer[1][:, start:end].clone()) for layer in layers]
