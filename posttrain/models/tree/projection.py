"""From hidden states to log-probs of the targets, without ever holding the logits.

The vocabulary projection is done in chunks of rows. A chunk's logits live in one reused buffer; the backward pass
computes them again. Memory is N x D plus one buffer of fixed size, whatever the vocabulary and the length, and the
gradient is exact.

When the projection's weight is frozen (LoRA), d logp / d hidden is formed in the forward pass, while the chunk's
probabilities are there anyway, and nothing is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from posttrain.models.tree.fused import at_least_fp32

BUFFER_ELEMENTS = 1 << 23
"""Logits held at a time: 8 million, 32 MB in fp32; large enough that the matrix multiply stays efficient."""


def chunk_rows(vocabulary: int) -> int:
    """Rows whose logits are held at a time: chunk_rows(49_152) -> 170."""
    # At least 16: with fewer rows a chunk's multiply does little but read the whole weight once more.
    return max(16, BUFFER_ELEMENTS // vocabulary)


@dataclass(frozen=True, slots=True)
class Head:
    """A model's output projection, and what the model does to its logits afterwards.

    Head(linear=lm_head, softcap=30.0) is Gemma 2's: logits = 30 tanh(h W^T / 30).
    """

    linear: Any
    """The module: hidden states in, logits out."""
    scale: float = 1.0
    """Cohere's logit_scale; 1 / logits_scaling of Granite."""
    softcap: float | None = None

    @property
    def is_matrix(self) -> bool:
        """One plain linear layer; false where an adapter or another wrapper sits on it."""
        return type(self.linear) in (nn.Linear, RowsHead)


@dataclass(frozen=True, slots=True)
class RowsHead:
    """A projection some rows of which train beside an adapter, those of new tokens: its whole matrix, put together
    once. `peft`'s own layer copies the matrix at every call, which here would be once for each chunk."""

    weight: Tensor
    """[V, D]; the gradient reaches the rows that train. Of the base alone where the adapter is off."""
    bias: None = None

    @classmethod
    def of(cls, layer: TrainableTokensWrapper) -> RowsHead:
        return cls(layer.weight)

    def __call__(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight)


def read_head(model: Any) -> Head:
    """The head of a causal LM of `transformers`."""
    config = model.config.get_text_config()
    linear = model.get_output_embeddings()
    if isinstance(linear, TrainableTokensWrapper):
        linear = RowsHead.of(linear)
    # Left out, log-probs of Cohere and Granite are those of another temperature, and the loss looks merely high.
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear, scale, getattr(config, "final_logit_softcapping", None))


def target_logprobs(
    hidden_ND: Tensor, head: Head, targets_N: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log softmax(logits / temperature) at the targets [N], and the entropy of each row [N] if asked for; nats.

    Both are differentiable with respect to `hidden_ND` and the head. Computed in fp32, or in fp64 where the model is.
    """
    if head.is_matrix:
        logprobs_N, entropy_N = _TargetLogprobs.apply(
            hidden_ND,
            head.linear.weight,
            head.linear.bias,
            targets_N,
            head.scale,
            head.softcap,
            temperature,
            entropy,
        )
    else:
        logprobs_N, entropy_N = _through_module(hidden_ND, head, targets_N, temperature)
    return logprobs_N, entropy_N if entropy else None


@torch.no_grad()
def log_collisions(hidden_ND: Tensor, head: Head, *, temperature: float = 1.0) -> Tensor:
    """log sum_v p(v)^2 of each row's distribution [N], in nats; a second projection, without gradient."""
    if not head.is_matrix:
        rows = chunk_rows(head.linear.weight.shape[0])
        parts = [collision_of(apply_head(hidden, head), temperature) for hidden in hidden_ND.split(rows)]
        return torch.cat(parts) if parts else hidden_ND.new_empty(0)
    chunks = _Chunks(hidden_ND, head.linear.weight, head.linear.bias, head.scale, head.softcap, temperature)
    collision_N = torch.empty(hidden_ND.shape[0], dtype=chunks.dtype, device=hidden_ND.device)
    for at in chunks:
        collision_N[at] = collision_of(chunks.logits(at), 1.0)
    return collision_N


def collision_of(logits_NV: Tensor, temperature: float) -> Tensor:
    """The same from logits that exist already."""
    wide = (logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()).detach() / temperature
    wide = wide - wide.amax(dim=1, keepdim=True)  # two large numbers would cancel otherwise
    return (2 * wide).logsumexp(dim=1) - 2 * wide.logsumexp(dim=1)


def gather_logprobs(
    logits_NV: Tensor, targets_N: Tensor, temperature: float, *, entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """The same from logits that exist already: (log-probs [N], entropy [N]).

    entropy: without it, the second is empty, and neither the probabilities nor their product, each as large as the
        logits, are made and kept for the backward pass.
    """
    wide = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    log_p = torch.log_softmax(wide / temperature, dim=-1)
    entropy_N = -(log_p.exp() * log_p).sum(dim=-1) if entropy else log_p.new_empty(0)
    return log_p.gather(1, targets_N[:, None])[:, 0], entropy_N


def _through_module(hidden_ND: Tensor, head: Head, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A head that is more than a matrix: plain operations, each chunk checkpointed."""

    def chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return gather_logprobs(apply_head(hidden, head), targets, temperature)

    rows = chunk_rows(head.linear.weight.shape[0])
    pieces = [
        checkpoint(chunk, hidden, targets, use_reentrant=False)
        for hidden, targets in zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)
    ]
    logprobs_N, entropy_N = (torch.cat(part) for part in zip(*pieces, strict=True))
    return logprobs_N, entropy_N


def apply_head(hidden: Tensor, head: Head) -> Tensor:
    """Logits [N, V] of hidden states [N, D], by plain operations: differentiable, and all of them at once."""
    logits = head.linear(hidden) * head.scale
    return logits if head.softcap is None else torch.tanh(logits / head.softcap) * head.softcap


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        scale: float,
        softcap: float | None,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        chunks = _Chunks(hidden_ND, weight_VD, bias_V, scale, softcap, temperature)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # Not with the entropy: two incoming gradients need two slopes, a second [N, D] to keep.
        gradient_in_forward = wants_hidden and not wants_weight and not wants_bias and not entropy
        count = hidden_ND.shape[0]
        logprobs_N = torch.empty(count, dtype=chunks.dtype, device=hidden_ND.device)
        normaliser_N = torch.empty_like(logprobs_N)
        entropy_N = torch.empty_like(logprobs_N) if entropy else logprobs_N.new_empty(0)
        slope_ND = torch.empty_like(hidden_ND) if gradient_in_forward else None
        for rows in chunks:
            logits = chunks.logits(rows)
            normaliser = logits.logsumexp(dim=1)
            at_target = logits.gather(1, targets_N[rows, None])[:, 0]
            logprobs_N[rows] = at_target - normaliser
            normaliser_N[rows] = normaliser
            if entropy:
                entropy_N[rows] = _entropy(logits)
            if slope_ND is not None:
                # d logp / d logits = onehot - p, then through the softcap and the projection
                cap_slope = chunks.cap_slope(logits)
                slope = logits.sub_(normaliser[:, None]).exp_().neg_()
                slope.scatter_add_(1, targets_N[rows, None], torch.ones_like(slope[:, :1]))
                slope_ND[rows] = chunks.to_hidden(slope, cap_slope).to(slope_ND.dtype)
        ctx.settings = (scale, softcap, temperature, entropy, chunks.compute)
        if slope_ND is not None:
            # Only [N, D], whose product with the incoming gradient is the whole backward pass.
            ctx.save_for_backward(slope_ND)
        else:
            ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, normaliser_N, entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprobs_N, grad_entropy_N = gradients
        if len(ctx.saved_tensors) == 1:
            (slope_ND,) = ctx.saved_tensors
            return (slope_ND * grad_logprobs_N[:, None].to(slope_ND.dtype), *(None,) * 7)
        hidden_ND, weight_VD, bias_V, targets_N, normaliser_N, entropy_N = ctx.saved_tensors
        scale, softcap, temperature, entropy, compute = ctx.settings
        # Autocast is over by now, and the probabilities must be those of the forward pass.
        chunks = _Chunks(hidden_ND, weight_VD, bias_V, scale, softcap, temperature, compute)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        # Chunks are added up in fp32: in 16 bits a sum stops growing once its parts are below its last digit.
        grad_weight = torch.zeros_like(weight_VD, dtype=at_least_fp32(weight_VD.dtype)) if wants_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=chunks.dtype) if wants_bias and bias_V is not None else None
        for rows in chunks:
            logits = chunks.logits(rows)
            cap_slope = chunks.cap_slope(logits)
            log_p = logits.sub_(normaliser_N[rows, None])
            weight_of_p = -grad_logprobs_N[rows, None]
            if entropy:
                # d H / d logits = -p (log p + H)
                slope = log_p.exp()
                log_p.add_(entropy_N[rows, None]).mul_(-grad_entropy_N[rows, None]).add_(weight_of_p)
                slope.mul_(log_p)
            else:
                slope = log_p.exp_().mul_(weight_of_p)
            slope.scatter_add_(1, targets_N[rows, None], grad_logprobs_N[rows, None].to(slope.dtype))
            # In place, and needed without `project` too: it turns the slope into that of h W^T, which the weight's
            # gradient reads.
            to_hidden = chunks.to_hidden(slope, cap_slope, project=wants_hidden)
            if grad_hidden is not None:
                grad_hidden[rows] = to_hidden.to(grad_hidden.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, slope.T.to(weight_VD.dtype), hidden_ND[rows].to(weight_VD.dtype))
            if grad_bias is not None:
                grad_bias.add_(slope.sum(dim=0))
        grad_weight = None if grad_weight is None else grad_weight.to(weight_VD.dtype)
        grad_bias = None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype)
        return grad_hidden, grad_weight, grad_bias, *(None,) * 5


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the product in its factors' dtype, where the fast kernels are."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _entropy(logits: Tensor) -> Tensor:
    """Of each row [R, V], which is overwritten. The largest logit is taken off first: the normaliser and the mean logit
    both grow with an offset that all logits share, and their difference would keep its rounding."""
    logits.sub_(logits.amax(dim=1, keepdim=True))
    normaliser = logits.logsumexp(dim=1)
    probabilities = (logits - normaliser[:, None]).exp_()
    return normaliser - probabilities.mul_(logits).sum(dim=1)


class _Chunks:
    """Row ranges of one projection, and the arithmetic of one range; the logits share one buffer."""

    def __init__(
        self,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        scale: float,
        softcap: float | None,
        temperature: float,
        compute: torch.dtype | None = None,
    ):
        self.hidden_ND, self.weight_VD, self.bias_V = hidden_ND, weight_VD, bias_V
        self.scale, self.softcap, self.temperature = scale, softcap, temperature
        device_type = hidden_ND.device.type
        # Autocast does not cast what is multiplied into a buffer (`out=`), so its dtype is asked for here.
        autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        self.compute = compute or autocast or weight_VD.dtype
        self.dtype = torch.float64 if weight_VD.dtype == torch.float64 else torch.float32
        self.rows = chunk_rows(weight_VD.shape[0])
        shape = (min(self.rows, hidden_ND.shape[0]), weight_VD.shape[0])
        self._buffer = torch.empty(shape, dtype=self.compute, device=hidden_ND.device)

    def __iter__(self) -> Any:
        total = self.hidden_ND.shape[0]
        return (slice(start, min(start + self.rows, total)) for start in range(0, total, self.rows))

    def logits(self, rows: slice) -> Tensor:
        """[rows, V] after scale, softcap and temperature; the buffer's memory, free to be overwritten."""
        out = self._buffer[: rows.stop - rows.start]
        torch.mm(self.hidden_ND[rows].to(self.compute), self.weight_VD.T.to(self.compute), out=out)
        # The multiply may be in 16 bits; softmax and its sum over a vocabulary may not.
        logits = out.to(self.dtype)
        if self.bias_V is not None:
            logits.add_(self.bias_V)
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.temperature != 1.0:
            logits.div_(self.temperature)
        return logits

    def cap_slope(self, logits: Tensor) -> Tensor | None:
        """d softcap(x) / dx from its output: 1 - (y / softcap)^2. Taken before `logits` is overwritten."""
        if self.softcap is None:
            return None
        return 1.0 - (logits * (self.temperature / self.softcap)).square_()

    def to_hidden(self, slope: Tensor, cap_slope: Tensor | None, *, project: bool = True) -> Tensor:
        """From d / d logits, changed in place to d / d (h W^T), to d / d hidden."""
        if self.temperature != 1.0:
            slope.div_(self.temperature)
        if cap_slope is not None:
            slope.mul_(cap_slope)
        if self.scale != 1.0:
            slope.mul_(self.scale)
        if not project:
            return slope
        return slope.to(self.compute) @ self.weight_VD.to(self.compute)
