"""The two element-wise parts of a Llama block, each as one function that keeps less for the backward pass.

Written out, RMSNorm and SwiGLU leave more tensors behind than the matrix multiplies around them. Here the backward
pass computes them again from what is kept anyway: a third less memory per token for SmolLM2, and fewer passes over it.
The linear layers that read a norm's output do not keep it either: for their weights' gradients it is made again from
the norm's input, once for all of them.

`fused_blocks` puts them into a model for the time of one forward pass. Only the tree path does so: the padded path
stays the model's own code, so that the parity check before step 1 proves these functions too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

RMS_NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Olmo2RMSNorm", "Phi3RMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
"""Classes of `transformers` that compute weight * x / sqrt(mean(x^2) + eps), and nothing else."""
SWIGLU_MLPS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
"""Classes that compute down(silu(gate(x)) * up(x)), if their activation is SiLU."""

SILU = frozenset({"SiLU", "SiLUActivation"})


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """In 16 bits the square of 256 is infinite (fp16), or a sum of squares has two digits (bf16)."""
    return torch.promote_types(dtype, torch.float32)


def normed(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """w x / rms(x) from 1 / rms(x), rounded as the models of `transformers` round it: to x's dtype before w."""
    y = (x * inverse).to(x.dtype)  # a product with fp32 is fp32
    return y.mul_(weight) if weight.dtype == y.dtype else y * weight


class RMSNorm(torch.autograd.Function):
    """y = w x / rms(x), Zhang and Sennrich 2019, eq. 4; returns y and 1 / rms(x), which is fp32 or wider whatever x is.
    Keeps x, w and 1 / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        # The norm's own dtype argument widens while it sums, without a wide copy of x.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=at_least_fp32(x.dtype))
        inverse = (norm.square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.mark_non_differentiable(inverse)
        return normed(x, inverse, weight), inverse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, _ = gradients
        x, weight, inverse = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (x * inverse).mul_(gradient).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            wide = x.to(inverse.dtype)
            grad_wide = gradient.to(inverse.dtype) * weight
            # grad_x = w g / rms - x (w g · x) / (D rms^3): the second term is how rms itself depends on x.
            along = torch.linalg.vecdot(grad_wide, wide).unsqueeze(-1).mul_(inverse**3 / x.shape[-1])
            grad_x = grad_wide.mul_(inverse).addcmul_(wide, along, value=-1).to(x.dtype)
        return grad_x, grad_weight, None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up, Shazeer 2020, eq. 6. Keeps gate and up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), silu(gate).mul_(gradient)


class SwiGLUDown(torch.autograd.Function):
    """(silu(gate) * up) W^T. Keeps gate, up and W; the product is computed again for W's gradient."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return silu(gate).mul_(up) @ weight.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        gate, up, weight = ctx.saved_tensors
        # Made again from `gate`: kept, it would be one more tensor of the block's widest size.
        activated = silu(gate)
        grad_weight = None
        if ctx.needs_input_grad[2]:
            grad_weight = gradient.flatten(0, -2).T @ (activated * up).flatten(0, -2)
        inner = gradient @ weight
        grad_up = activated.mul_(inner)
        return torch.ops.aten.silu_backward(inner.mul_(up), gate), grad_up, grad_weight


class Norm:
    """An RMSNorm's output, and what makes it again: for linear layers, which need it for their weights' gradients.

    Args:
        output: the tensor itself; a linear layer knows by it that its input is this norm's. It is not kept alive.
        inverse: 1 / rms(x), [..., 1].
    """

    def __init__(self, output: Tensor, x: Tensor, inverse: Tensor, weight: Tensor):
        self.output = ref(output)
        self.parts = (x, inverse, weight)
        self.shared = Shared()


class Shared:
    """What the linear layers of one norm share in the backward pass: the output made again, until the last has it."""

    def __init__(self) -> None:
        self.readers = 0
        self._left = 0
        self._again: Tensor | None = None

    def output(self, x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
        if self._again is None:
            self._again, self._left = normed(x, inverse, weight), self.readers
        again = self._again
        # The last reader lets go of it; kept longer, one normed output per block would pile up in the backward pass.
        self._left -= 1
        if self._left <= 0:
            self._again = None
        return again


class LinearOfNorm(torch.autograd.Function):
    """y W^T + b for the output y of an RMSNorm. Keeps what the norm keeps anyway, x, w and 1 / rms(x), instead of y."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        inverse: Tensor,
        norm_weight: Tensor,
        shared: Shared,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.shared = shared
        shared.readers += 1
        ctx.save_for_backward(x, inverse, norm_weight, weight)
        return linear(y, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, inverse, norm_weight, weight = ctx.saved_tensors
        y = ctx.shared.output(x, inverse, norm_weight)
        flat = gradient.flatten(0, -2)
        # The norm's inputs get no gradient here: it flows through y, to the norm's own backward.
        grad_y = gradient @ weight if ctx.needs_input_grad[0] else None
        grad_bias = flat.sum(0) if ctx.needs_input_grad[6] else None
        return grad_y, None, None, None, None, flat.T @ y.flatten(0, -2), grad_bias


@contextmanager
def fused_blocks(model: nn.Module) -> Iterator[None]:
    """Within this context the model's RMSNorm and SwiGLU modules, and the linear layers after a norm, run as the
    functions above, if they are of a kind that is known; all others stay as they are."""
    modules = list(model.modules())
    has_norms = any(type(module).__name__ in RMS_NORMS for module in modules)
    # None without a norm that is known: then no linear layer has a reason to be replaced either.
    recent: Norms | None = deque(maxlen=RECENT_NORMS) if has_norms else None
    changed = []
    try:
        for module in modules:
            forward = _fused_forward(module, recent)
            if forward is not None:
                module.forward = forward  # an attribute of the instance; the class keeps its own
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


Norms = deque[Norm]
"""The norms that ran last: what the next linear layers may be reading."""
RECENT_NORMS = 3
"""A block's own, and in some models those of queries and keys, which run before the values are made of the block's."""


def _fused_forward(module: nn.Module, recent: Norms | None) -> Any:
    """What replaces the module's forward; None for modules of other kinds."""
    kind = type(module).__name__
    if recent is not None and kind in RMS_NORMS:
        return partial(_rms_norm, module, recent)
    # Exactly nn.Linear: a LoRA layer is a subclass or a wrapper with a forward of its own. A frozen weight needs no
    # input kept.
    if recent is not None and type(module) is nn.Linear and module.weight.requires_grad:
        return partial(_linear, module, recent)
    if kind in SWIGLU_MLPS and type(module.act_fn).__name__ in SILU:
        return partial(_swiglu, module)
    return None


def _rms_norm(module: Any, recent: Norms, x: Tensor) -> Tensor:
    y, inverse = RMSNorm.apply(x, module.weight, module.variance_epsilon)
    # Without gradients nothing reads it, and the deque would keep a forward's tensors alive.
    if torch.is_grad_enabled():
        recent.append(Norm(y, x.detach(), inverse, module.weight.detach()))
    return y


def _linear(module: nn.Linear, recent: Norms, x: Tensor) -> Tensor:
    # By identity: an equal tensor that took another way (a residual, a cast) is not this norm's output.
    norm = next((norm for norm in recent if norm.output() is x), None)
    if norm is None or not torch.is_grad_enabled():
        return linear(x, module.weight, module.bias)
    return LinearOfNorm.apply(x, *norm.parts, norm.shared, module.weight, module.bias)


def _swiglu(module: Any, x: Tensor) -> Tensor:
    gate, up, down = module.gate_proj(x), module.up_proj(x), module.down_proj
    if type(down) is nn.Linear and down.bias is None:
        return SwiGLUDown.apply(gate, up, down.weight)
    return down(SwiGLU.apply(gate, up))
