"""Tree attention on CPU by torch's own kernel, called node by node, keeping each key, value and output once.

Through autograd, every branch keeps a copy of its prompt's keys and values, and every node's output is kept beside the
whole one that the next layer keeps. Here the forward pass keeps query, key, value and output of the flat sequence, and
the backward pass puts the copies together again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
BACKWARD = "_scaled_dot_product_flash_attention_for_cpu_backward"


class Layout(Protocol):
    """What is needed of `posttrain.models.tree.attention.TreeLayout`."""

    sizes: Sequence[int]
    ancestors: Sequence[tuple[int, ...]]

    def mask(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor | None: ...


def serves(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes these as they are; autocast would have to choose a dtype first."""
    tensors = (query, key, value)
    return (
        not torch.is_autocast_enabled("cpu")
        and len({(tensor.dtype, tensor.shape[-1]) for tensor in tensors}) == 1
        and all(tensor.stride(-1) == 1 for tensor in tensors)
    )


class KernelAttention(torch.autograd.Function):
    """softmax(q k^T scale + mask) v of each node: [1, heads, T, d] in (k and v with fewer), [1, T, heads, d] out."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: Layout, window: int | None, scaling: float | None
    ) -> Tensor:
        out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
        call = getattr(torch.ops.aten, FORWARD)
        sums = []
        for index, (queries, keys, values, into) in enumerate(_nodes(tree, query, key, value, out)):
            mask = tree.mask(index, window, query.dtype)
            result, log_sum = call(queries, keys, values, 0.0, mask is None, attn_mask=mask, scale=scaling)
            into.copy_(result)
            sums.append(log_sum)
        ctx.settings = tree, window, scaling
        ctx.save_for_backward(query, key, value, out, *sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *sums = ctx.saved_tensors
        tree, window, scaling = ctx.settings
        call = getattr(torch.ops.aten, BACKWARD)
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        outputs = gradients[0].transpose(1, 2).split(tree.sizes, dim=2)
        into_queries = grad_query.split(tree.sizes, dim=2)
        into_keys, into_values = grad_key.split(tree.sizes, dim=2), grad_value.split(tree.sizes, dim=2)
        for index, (queries, keys, values, result) in enumerate(_nodes(tree, query, key, value, out)):
            mask = tree.mask(index, window, query.dtype)
            settings = {"attn_mask": mask, "scale": scaling}
            found = call(outputs[index], queries, keys, values, result, sums[index], 0.0, mask is None, **settings)
            into_queries[index].copy_(found[0])
            spans = [*tree.ancestors[index], index]
            sizes = [tree.sizes[i] for i in spans]
            for i, from_key, from_value in zip(spans, found[1].split(sizes, 2), found[2].split(sizes, 2), strict=True):
                into_keys[i].add_(from_key)
                into_values[i].add_(from_value)
        return grad_query, grad_key, grad_value, None, None, None


def _nodes(tree: Layout, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> Any:
    """For each node its queries, the keys and values it may see, and its place in `out` as [1, heads, L, d]."""
    queries, keys, values = (tensor.split(tree.sizes, dim=2) for tensor in (query, key, value))
    places = out.transpose(1, 2).split(tree.sizes, dim=2)
    for index, ancestors in enumerate(tree.ancestors):
        k, v = keys[index], values[index]
        if ancestors:
            k = torch.cat([*(keys[i] for i in ancestors), k], dim=2)
            v = torch.cat([*(values[i] for i in ancestors), v], dim=2)
        yield queries[index], k, v, places[index]
