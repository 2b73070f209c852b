"""Attention over token trees: the one place that knows which token may see which.

A token sees the earlier tokens of its own node and every token of the node's ancestors. Three backends compute
exactly that behind one function that `transformers` calls as it calls any attention implementation:

- `segments`: one `scaled_dot_product_attention` per node over the keys it may see. No T x T mask, no padding;
  work and memory grow with the sum of the nodes' areas. The backend wherever nothing else is proven.
- `kernel`: the same on CPU by torch's kernel itself, which keeps less for the backward pass (`attention_cpu.py`);
  chosen there after a probe. Calls with a softcap, attention dropout or autocast run through `segments`.
- `flex`: FlexAttention with a block mask made from the node table; chosen on CUDA after a probe. It knows no attention
  dropout, so a call that asks for dropout runs through `segments`, which computes the same function.

The tree reaches the layers through a context (`tree_implementation`), not as a keyword of the model's forward: some
families (StableLM, Nemotron) do not hand keywords on to their layers. Sliding windows are measured in *positions*, so a
branch's window reaches into its prompt as it does in an ordinary row.

A layer may keep its window, its ALiBi bias or its sinks in arguments that this function does not know. `TreeCalls`
records what each forward asked for, so that the proof (`posttrain.models.tree.paths`) refuses such a model by name also
where the rows of the proof are too short to show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from posttrain.models.tree.attention_cpu import KernelAttention, serves
from posttrain.types import Batch, Node

NAME = "posttrain_tree"
NOT_SERVED = {
    "attention_mask": "its attention adds a bias or a mask of its own, such as ALiBi",
    "position_bias": "its attention adds a bias of its own to the scores",
    "s_aux": "its attention has sinks",
    "sinks": "its attention has sinks",
    "indices": "its attention picks a few tokens for each query",
    "block_indices": "its attention picks a few blocks of tokens for each query",
}
"""Arguments that some families pass to their attention and the tree does not take into account, in words."""
BLOCK = 128
"""Side of FlexAttention's blocks, in tokens."""


@dataclass(slots=True)
class TreeCalls:
    """What a model's layers asked of the tree in one forward.

    TreeCalls(layers=4, windows={8, None}, masks={8, None}, unknown={"s_aux"}) is gpt-oss: its sinks are not served.
    """

    layers: int = 0
    """Calls of `tree_attention`; fewer than the model has layers where some keep a state instead."""
    windows: set[int | None] = field(default_factory=set)
    """Sliding windows that the layers passed."""
    masks: set[int | None] = field(default_factory=set)
    """Windows and chunks of the masks that the model made for its layers. One that no layer passes as its window is a
    window that the tree does not see (Qwen2-MoE, PhiMoE)."""
    unknown: set[str] = field(default_factory=set)
    """Arguments with a value that this function does not know."""

    def unseen_windows(self, config: Any) -> set[int]:
        """Windows of the masks that the model made and that no layer passed on: beyond so many tokens the tree lets a
        token see what the model hides from it. Some models make a mask that none of their layers is of the type for."""
        kinds = getattr(config, "layer_types", None)
        if kinds is not None and set(kinds) == {"full_attention"}:
            return set()
        return {window for window in self.masks - self.windows if window}


class TreeLayout:
    """The node table of one batch, with what every layer needs from it computed once.

    TreeLayout(batch) for the pair of `posttrain.types.Batch` has sizes (3, 2, 3) and ancestors ((), (0,), (0,)).
    """

    def __init__(self, batch: Batch, backend: str = "segments"):
        self.backend = backend
        self.calls = TreeCalls()
        self.nodes: tuple[Node, ...] = batch.nodes
        self.positions_T = batch.positions_T
        self.sizes = [node.end - node.start for node in batch.nodes]
        self.ancestors = [_ancestors(batch.nodes, index) for index in range(len(batch.nodes))]
        self._masks: dict[tuple[int, int | None, torch.dtype], Tensor | None] = {}
        self._block_masks: dict[int | None, Any] = {}

    def mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [L, keys] of node `index` over its ancestors and itself; None where causal is all there is."""
        key = (index, window, dtype)
        if key not in self._masks:
            self._masks[key] = self._build_mask(index, window, dtype)
        return self._masks[key]

    def _build_mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        spans = [*self.ancestors[index], index]
        keys = torch.cat([self.positions_T[self.nodes[i].start : self.nodes[i].end] for i in spans])
        queries = self.positions_T[self.nodes[index].start : self.nodes[index].end]
        # No mask where causal is all there is: it would hold [L, keys] numbers, and flash kernels of CUDA take none.
        # By sizes, not by the last position, whose value a card would have to send first.
        reaches_all = window is None or sum(self.sizes[i] for i in spans) <= window
        if reaches_all and len(spans) == 1:
            return None
        # By position: an ancestor's are all smaller, so one comparison serves ancestors and the node itself.
        visible = keys[None, :] <= queries[:, None]
        if window is not None:
            visible &= queries[:, None] - keys[None, :] < window
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))

    def mask_bytes(self, window: int | None, dtype: torch.dtype) -> int:
        """What the masks of all nodes occupy, without making them; autograd keeps them until the backward pass."""
        size = 0
        for index, ancestors in enumerate(self.ancestors):
            above = sum(self.sizes[i] for i in ancestors)
            if ancestors or (window is not None and self.sizes[index] > window):
                size += self.sizes[index] * (above + self.sizes[index]) * dtype.itemsize
        return size

    def block_mask(self, window: int | None) -> Any:
        """FlexAttention's block mask of the whole tree."""
        if window not in self._block_masks:
            self._block_masks[window] = self._build_block_mask(window)
        return self._block_masks[window]

    def _build_block_mask(self, window: int | None) -> Any:
        """From the node table: torch's `create_block_mask` evaluates all T x T pairs, 1 GB at 32,768 tokens."""
        from torch.nn.attention.flex_attention import BlockMask

        device = self.positions_T.device
        total = sum(self.sizes)
        node_of_T = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes)).to(device)
        # Node by node, so that the mask function looks a pair up in a small table however many tokens there are.
        sees = torch.eye(len(self.sizes), dtype=torch.bool)
        for index, ancestors in enumerate(self.ancestors):
            sees[index, list(ancestors)] = True
        sees = sees.to(device)
        positions_T = self.positions_T

        def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            visible = sees[node_of_T[query], node_of_T[key]] & (key <= query)
            if window is not None:
                visible = visible & (positions_T[query] - positions_T[key] < window)
            return visible

        some, whole = self.blocks(window)
        return BlockMask.from_kv_blocks(
            *_listed(some & ~whole, device),
            *_listed(whole, device),
            BLOCK_SIZE=BLOCK,
            mask_mod=mask_mod,
            seq_lengths=(total, total),
        )

    def blocks(self, window: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Which blocks of keys a block of queries sees something of, and which it sees whole: bool [blocks, blocks].

        A block that lies across two nodes is never called whole; the mask function decides it pair by pair.
        """
        count = -(-sum(self.sizes) // BLOCK)
        # In blocks FlexAttention skips, a pair that should be seen is lost in silence: `some` may be too large, never
        # too small.
        some, whole = np.zeros((2, count, count), dtype=bool)
        reach = np.inf if window is None else window
        for index, ancestors in enumerate(self.ancestors):
            queries = self._block_spans(index)
            for other in (*ancestors, index):
                keys = self._block_spans(other)
                seen = queries.first[:, None] - keys.last[None, :] < reach
                all_seen = queries.inside[:, None] & keys.inside[None, :]
                all_seen &= queries.last[:, None] - keys.first[None, :] < reach
                if other == index:
                    seen &= keys.number[None, :] <= queries.number[:, None]
                    all_seen &= keys.number[None, :] < queries.number[:, None]
                place = np.ix_(queries.number, keys.number)
                some[place] |= seen
                whole[place] |= all_seen
        return some, whole

    def _block_spans(self, index: int) -> _Spans:
        node = self.nodes[index]
        number = np.arange(node.start // BLOCK, (node.end - 1) // BLOCK + 1)
        start, end = np.maximum(number * BLOCK, node.start), np.minimum((number + 1) * BLOCK, node.end)
        shift = sum(self.sizes[i] for i in self.ancestors[index]) - node.start
        return _Spans(number, start + shift, end - 1 + shift, end - start == BLOCK)


class _Spans(NamedTuple):
    """The blocks that a node lies in: their numbers, its first and last position in each, and which ones it fills."""

    number: np.ndarray
    first: np.ndarray
    last: np.ndarray
    inside: np.ndarray


def _listed(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Bool [queries, keys] as FlexAttention takes it: how many blocks each row has, and their numbers first."""
    # Stable: the blocks that are seen come first and in order, the padding behind them is never read.
    numbers = np.argsort(~blocks, axis=1, kind="stable")
    return tuple(  # type: ignore[return-value]
        torch.from_numpy(array.astype(np.int32)).to(device)[None, None] for array in (blocks.sum(axis=1), numbers)
    )


def _ancestors(nodes: tuple[Node, ...], index: int) -> tuple[int, ...]:
    chain: list[int] = []
    while (index := nodes[index].parent) >= 0:
        chain.insert(0, index)
    return tuple(chain)


_CURRENT: ContextVar[TreeLayout | None] = ContextVar("posttrain_tree", default=None)
"""The layout of the forward pass under way, of this thread alone: rewards run their models in threads of their own."""


def current_tree() -> TreeLayout | None:
    """The layout of the forward pass under way; a recomputed layer has to be given it again."""
    return _CURRENT.get()


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: TreeLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls in each layer: [1, heads, T, d] in, ([1, T, heads, d], None) out.

    tree: the batch's layout; None takes that of the context.
    """
    tree = tree or _CURRENT.get()
    assert tree is not None, "the tree's attention runs within tree_implementation(model, layout) only"
    # Recorded before anything is computed: a model that is not served is refused by name, not by a crash in its layer.
    tree.calls.layers += 1
    tree.calls.windows.add(sliding_window)
    given = {**others, "attention_mask": attention_mask}
    tree.calls.unknown |= {name for name in NOT_SERVED if given.get(name) is not None}
    # What the kernel cannot do goes to `segments`, which computes the same function; nothing is dropped.
    if tree.backend == "kernel" and not dropout and softcap is None and serves(query, key, value):
        return KernelAttention.apply(query, key, value, tree, sliding_window, scaling), None
    if tree.backend == "flex" and not dropout:
        out = _flex(query, key, value, tree, scaling, sliding_window, softcap)
    else:
        groups = query.shape[1] // key.shape[1]
        if groups > 1 and (softcap is not None or query.is_cuda):
            # The kernel on CPU reads shared heads as they are; elsewhere a mask would send them to a slow one.
            key = key.repeat_interleave(groups, dim=1)
            value = value.repeat_interleave(groups, dim=1)
        out = _segments(query, key, value, tree, scaling, sliding_window, softcap, dropout)
    return out.transpose(1, 2).contiguous(), None


def _segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TreeLayout,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    # split, not slices: the backward of a slice writes a whole zero tensor per node, that of split is one cat.
    queries, keys, values = (tensor.split(tree.sizes, dim=2) for tensor in (query, key, value))
    outputs = []
    for index, ancestors in enumerate(tree.ancestors):
        mask = tree.mask(index, window, query.dtype)
        k, v = keys[index], values[index]
        if ancestors:
            # Root first, as in an ordinary row: the mask's columns are in this order.
            k = torch.cat([*(keys[i] for i in ancestors), k], dim=2)
            v = torch.cat([*(values[i] for i in ancestors), v], dim=2)
        if softcap is not None:
            outputs.append(_softcapped(queries[index], k, v, mask, scaling, softcap, dropout))
        else:
            outputs.append(
                scaled_dot_product_attention(
                    queries[index],
                    k,
                    v,
                    attn_mask=mask,
                    dropout_p=dropout,
                    is_causal=mask is None,
                    scale=scaling,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            )
    return torch.cat(outputs, dim=2)


def _softcapped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float,
    dropout: float,
) -> Tensor:
    """Gemma 2's attention: softcap * tanh(scores / softcap) before the mask (Gemma Team 2024, section 2)."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        # No mask means causal here as well: there is no kernel below to be told `is_causal`.
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    else:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1)
    return nn.functional.dropout(weights, dropout) @ value


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TreeLayout,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    limit = softcap or 0.0  # as a plain number, for the compiler

    def cap(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(score / limit) * limit

    call = _compiled_flex() if query.is_cuda else flex_attention
    return call(
        query,
        key,
        value,
        score_mod=None if softcap is None else cap,
        block_mask=tree.block_mask(window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


@cache
def _compiled_flex() -> Any:
    """One compilation per process, made on first use."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


AttentionInterface.register(NAME, tree_attention)


def _no_mask(*_: Any, local_size: int | None = None, **others: Any) -> None:
    """What `transformers` asks for a mask: none is made, and which one it would have been is recorded."""
    tree = _CURRENT.get()
    if tree is not None:
        tree.calls.masks.add(local_size)


AttentionMaskInterface.register(NAME, _no_mask)


def attention_windows(config: Any) -> set[int | None]:
    """The sliding windows that a model's layers use, from its text config; None stands for full attention."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None)
    if window is None or kinds is None:
        return {window}
    return {window if kind == "sliding_attention" else None for kind in kinds}


@contextmanager
def tree_implementation(model: nn.Module, tree: TreeLayout) -> Iterator[None]:
    """Within this context the model's attention layers call `tree_attention` on this tree.

    It is a context and not a setting because generation and the padded oracle use the model's own attention: a padded
    batch that met the tree function would run without its mask.
    """
    # A model may hold several configs (a text model in a multimodal one), and each layer reads its own.
    configs: list[Any] = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        for config, _ in before:
            config._attn_implementation_internal = NAME
        token = _CURRENT.set(tree)
        try:
            yield
        finally:
            _CURRENT.reset(token)
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def probe_backend(device: torch.device, dtype: torch.dtype) -> str:
    """`flex` on CUDA and `kernel` on CPU where it agrees with `segments` on a small tree, else `segments`."""
    backend = {"cuda": "flex", "cpu": "kernel"}.get(device.type)
    if backend is None:
        return "segments"
    from posttrain.data.trees import collate, to_device
    from posttrain.models.tree.probe import probe_tree

    # A branch of a branch: a backend that forgets an ancestor's ancestor agrees on flat trees.
    deep = probe_tree(lengths=(4, 3, 6), seed=1, parents=(None, 0, 0))
    batch = to_device(collate([probe_tree(), deep]), device)
    total = batch.input_ids_T.shape[0]
    generator = torch.Generator(device="cpu").manual_seed(0)
    q, k, v = (torch.randn(1, heads, total, 64, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    try:
        found = _values_and_gradients(q, k, v, TreeLayout(batch, backend))
    except torch.OutOfMemoryError:
        raise  # says nothing about the backend, and must not choose one
    except (RuntimeError, AttributeError, TypeError):  # no Triton, an unsupported card, a torch with another kernel
        return "segments"
    exact = _values_and_gradients(q, k, v, TreeLayout(batch))
    # Far above rounding at unit scale, far below what one token too many or too few would change.
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 2e-2
    near = [torch.allclose(a.float(), b.float(), atol=tolerance) for a, b in zip(found, exact, strict=True)]
    return backend if all(near) else "segments"


def _values_and_gradients(query: Tensor, key: Tensor, value: Tensor, tree: TreeLayout) -> list[Tensor]:
    """The attention's output, and the gradient of half its square in query, key and value."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        out, _ = tree_attention(nn.Identity(), inputs[0], inputs[1], inputs[2], None, tree=tree)
        return [out.detach(), *torch.autograd.grad(out, inputs, out.detach())]
