"""Attention over token trees: the one place that knows which token may see which.

A token sees the earlier tokens of its own node and every token of the node's ancestors. Two backends compute
exactly that behind one function that `transformers` calls as it calls any attention implementation:

- `segments`: one `scaled_dot_product_attention` per node over the keys it may see. No T x T mask, no padding;
  work and memory grow with the sum of the nodes' areas. The backend on CPU, and wherever nothing else is proven.
- `flex`: FlexAttention with a block mask made from the node table; chosen on CUDA after a probe.

The tree reaches the layers as the keyword `tree` of the model's forward. Sliding windows are measured in
*positions*, so a branch's window reaches into its prompt as it does in an ordinary row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from posttrain.types import Batch, Node

NAME = "posttrain_tree"


class TreeLayout:
    """The node table of one batch, with what every layer needs from it computed once.

    TreeLayout(batch) for the pair of `posttrain.types.Batch` has sizes (3, 2, 3) and ancestors ((), (0,), (0,)).
    """

    def __init__(self, batch: Batch, backend: str = "segments"):
        self.backend = backend
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
        reaches_all = window is None or int(queries[-1]) < window
        if reaches_all and len(spans) == 1:
            return None
        visible = keys[None, :] <= queries[:, None]
        if window is not None:
            visible &= queries[:, None] - keys[None, :] < window
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))

    def block_mask(self, window: int | None) -> Any:
        """FlexAttention's block mask of the whole tree."""
        if window not in self._block_masks:
            self._block_masks[window] = self._build_block_mask(window)
        return self._block_masks[window]

    def _build_block_mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        device = self.positions_T.device
        total = sum(self.sizes)
        node_of_T = torch.repeat_interleave(torch.arange(len(self.sizes)), torch.tensor(self.sizes)).to(device)
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

        return create_block_mask(mask_mod, None, None, total, total, device=str(device))


def _ancestors(nodes: tuple[Node, ...], index: int) -> tuple[int, ...]:
    chain: list[int] = []
    while (index := nodes[index].parent) >= 0:
        chain.insert(0, index)
    return tuple(chain)


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: TreeLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls in each layer: [1, heads, T, d] in, ([1, T, heads, d], None) out."""
    if tree.backend == "flex":
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


@contextmanager
def tree_implementation(model: nn.Module) -> Iterator[None]:
    """Within this context the model's attention layers call `tree_attention`.

    It is a context and not a setting because generation and the padded oracle use the model's own attention: a padded
    batch that met the tree function would run without its mask.
    """
    configs: list[Any] = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        for config, _ in before:
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def probe_backend(device: torch.device, dtype: torch.dtype) -> str:
    """`flex` where it is on CUDA and agrees with `segments` on a small tree, else `segments`."""
    if device.type != "cuda":
        return "segments"
    from posttrain.data.trees import collate, to_device
    from posttrain.models.probe import probe_tree

    batch = to_device(collate([probe_tree()]), device)
    total = batch.input_ids_T.shape[0]
    generator = torch.Generator(device="cpu").manual_seed(0)
    q, k, v = (torch.randn(1, heads, total, 64, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    module = nn.Identity()
    try:
        flex, _ = tree_attention(module, q, k, v, None, tree=TreeLayout(batch, "flex"))
    except RuntimeError:  # no Triton, an unsupported card: FlexAttention cannot be compiled here
        return "segments"
    exact, _ = tree_attention(module, q, k, v, None, tree=TreeLayout(batch))
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    return "flex" if torch.allclose(flex.float(), exact.float(), atol=tolerance) else "segments"
