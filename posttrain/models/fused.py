"""The two element-wise parts of a Llama block, each as one function that keeps less for the backward pass.

Written out, RMSNorm and SwiGLU leave more tensors behind than the matrix multiplies around them. Here the backward
pass computes them again from what is kept anyway: a third less memory per token for SmolLM2, and fewer passes over it.

`fused_blocks` puts them into a model for the time of one forward pass. Only the tree path does so: the padded path
stays the model's own code, so that the parity check before step 1 proves these functions too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

RMS_NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Olmo2RMSNorm", "Phi3RMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
"""Classes of `transformers` that compute weight * x / sqrt(mean(x^2) + eps), and nothing else."""
SWIGLU_MLPS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
"""Classes that compute down(silu(gate(x)) * up(x)), if their activation is SiLU."""

SILU = frozenset({"SiLU", "SiLUActivation"})


class RMSNorm(torch.autograd.Function):
    """y = w x / rms(x), Zhang and Sennrich 2019, eq. 4. Keeps x, w and 1 / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, inverse = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (x * inverse).mul_(gradient).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            grad_x = gradient * weight
            along = torch.linalg.vecdot(grad_x, x).unsqueeze(-1).mul_(inverse**3 / x.shape[-1])
            grad_x.mul_(inverse).addcmul_(x, along, value=-1)
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
        activated = silu(gate)
        grad_weight = None
        if ctx.needs_input_grad[2]:
            grad_weight = gradient.flatten(0, -2).T @ (activated * up).flatten(0, -2)
        inner = gradient @ weight
        grad_up = activated.mul_(inner)
        return torch.ops.aten.silu_backward(inner.mul_(up), gate), grad_up, grad_weight


@contextmanager
def fused_blocks(model: nn.Module) -> Iterator[None]:
    """Within this context the model's RMSNorm and SwiGLU modules run as the functions above, if they are of a kind that
    is known; all others stay as they are."""
    changed = []
    try:
        for module in model.modules():
            forward = _fused_forward(module)
            if forward is not None:
                module.forward = forward  # an attribute of the instance; the class keeps its own
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _fused_forward(module: nn.Module) -> Any:
    """What replaces the module's forward; None for modules of other kinds."""
    kind = type(module).__name__
    if kind in RMS_NORMS:
        return partial(_rms_norm, module)
    if kind in SWIGLU_MLPS and type(module.act_fn).__name__ in SILU:
        return partial(_swiglu, module)
    return None


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    return RMSNorm.apply(x, module.weight, module.variance_epsilon)


def _swiglu(module: Any, x: Tensor) -> Tensor:
    gate, up, down = module.gate_proj(x), module.up_proj(x), module.down_proj
    if type(down) is nn.Linear and down.bias is None:
        return SwiGLUDown.apply(gate, up, down.weight)
    return down(SwiGLU.apply(gate, up))
