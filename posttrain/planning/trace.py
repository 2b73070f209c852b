"""What a forward and a backward pass hold and move, without a byte of memory: posttrain's own pass on fake tensors.

    pass_ = Tracer(config).trace(Ask(adapter=None, role="policy", compute="bf16"), trees)

`FakeTensorMode` of torch runs every operation on shapes alone. A dispatch mode above it follows each storage from the
operation that makes it to its last reference, so that the most bytes at one moment are found as an allocator would find
them: what autograd keeps, the chunk of logits, the gradients that pile up, each temporary tensor. Two short models, of
2 and of 4 layers, are traced and drawn on to all layers: a layer adds the same each time.

A backward pass is fullest where it begins, all activations being there, or where it ends, all gradients being there:
both moments grow in proportion to the layers, and their maximum does not, so each is drawn on by itself.

What is not seen: workspaces inside of kernels, and what an allocator keeps between blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from posttrain.config.adapters import AdapterSettings
from posttrain.data.trees import collate
from posttrain.errors import ModelError
from posttrain.models.tree.checkpointing import layers_to_checkpoint
from posttrain.models.tree.logprobs import Policy
from posttrain.planning.items import HEAP_BLOCK
from posttrain.planning.skeleton import Role, build, is_sparse, shortened
from posttrain.types import Batch, TokenTree, Wants

Arithmetic = Literal["fp32", "autocast", "bf16"]
"""fp32 weights and arithmetic; fp32 weights that are multiplied in bf16 (one rank); bf16 weights, as FSDP gathers."""

FEW, MORE = 2, 4
"""Layers of the two models that are traced."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Which pass: Ask(LoRA(rank=16), "policy", "autocast", checkpointing=True, route="tree")."""

    adapter: AdapterSettings | None
    role: Role
    arithmetic: Arithmetic
    checkpointing: bool = False
    entropy: bool = False
    route: Literal["tree", "padded"] = "tree"


@dataclass(frozen=True, slots=True)
class Pass:
    """Bytes of one micro-batch, beside weights: Pass(kept=1.1e9, first_begins=1.3e9, first_ends=0.9e9, ...)."""

    kept: float
    """What autograd keeps when the forward pass ends."""
    kept_small: float
    """Of it, in blocks that a heap does not give back at once (`items.HEAP_BLOCK`)."""
    first_begins: float
    """Most at one moment of a step's first micro-batch, gradients included, until the last layer went backward."""
    first_ends: float
    """The same from when all layers but the first went backward."""
    later_begins: float
    """Of a later micro-batch, beside the gradients of all that trains, which are there."""
    later_ends: float
    forward: float
    """Most at one moment of a pass without gradients."""
    moved: float
    """Bytes that the operations of a forward and backward pass read and write, but for those of matrix products."""
    moved_forward: float
    """Of a pass without gradients."""
    operations: float
    """How many operations are launched, forward and backward."""
    operations_forward: float

    @property
    def first(self) -> float:
        """Most in a step's first micro-batch, whose gradients come while activations go; with the gradients."""
        return max(self.kept, self.first_begins, self.first_ends)

    @property
    def later(self) -> float:
        """Most in a later micro-batch, beside the gradients."""
        return max(self.kept, self.later_begins, self.later_ends)


class Tracer:
    """Passes of one model, each traced once."""

    def __init__(self, config: PreTrainedConfig):
        self.config = config
        self.layers = int(config.get_text_config().num_hidden_layers)
        self._known: dict[tuple[Any, ...], Pass] = {}

    def trace(self, ask: Ask, trees: Sequence[TokenTree]) -> Pass:
        """The pass over a micro-batch of these trees, whose ids are not looked at.

        Raises:
            ModelError: the model does something that shapes alone do not tell.
        """
        shape = tuple((len(t.prompt_ids), *((len(b.ids), int(b.loss_mask.sum())) for b in t.branches)) for t in trees)
        key = (ask.arithmetic, ask.role, ask.checkpointing, ask.entropy, ask.route, repr(ask.adapter), shape)
        if key not in self._known:
            if self.layers <= MORE:
                self._known[key] = self._short(ask, trees, self.layers)
            else:
                few, more = (self._short(ask, trees, layers) for layers in (FEW, MORE))
                self._known[key] = _drawn_on(few, more, self.layers)
        return self._known[key]

    def _short(self, ask: Ask, trees: Sequence[TokenTree], layers: int) -> Pass:
        # torch's product of grouped experts knows bf16 alone when it has no memory; its other dtypes are scaled below.
        sparse = is_sparse(self.config)
        dtype = torch.bfloat16 if ask.arithmetic == "bf16" or sparse else torch.float32
        # A reward or a value model is a backbone under a head of one number: `_values` puts that one on.
        model = build(shortened(self.config, layers), ask.adapter, "policy", dtype)
        batch = collate(trees)
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                model.to_empty(device="cpu")
                found = _follow(_policy(model, ask, sparse), batch, ask)
        except ModelError:
            raise
        # The boundary to other people's models: whatever theirs trips over without values is told by its name.
        except Exception as error:
            raise ModelError(
                "the plan cannot trace this architecture: its code asks for values, where there are shapes alone",
                found=f"{self.config.model_type}: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
                remedy="run `posttrain check` where the model fits: its preflight measures what a step takes",
            ) from error
        wider = 2.0 if sparse and ask.arithmetic == "fp32" else 1.0
        *sizes, operations, operations_forward = astuple(found)
        return Pass(*(size * wider for size in sizes), operations, operations_forward)


def _drawn_on(few: Pass, more: Pass, layers: int) -> Pass:
    pairs = zip(astuple(few), astuple(more), strict=True)
    return Pass(*(low + (high - low) / (MORE - FEW) * (layers - FEW) for low, high in pairs))


def _policy(model: nn.Module, ask: Ask, sparse: bool) -> Policy:
    autocast = torch.bfloat16 if ask.arithmetic == "autocast" and not sparse else None
    policy = Policy(model, ask.route, autocast=autocast, activation_checkpointing=ask.checkpointing)
    # What a card's fused kernels keep, too: query, key, value, output, and a sum for each query.
    policy.backend = "kernel"
    return policy


def _values(policy: Policy, batch: Batch, ask: Ask) -> Callable[[], Tensor]:
    """The pass to follow."""
    if ask.role == "policy":
        wants = Wants(entropy=ask.entropy)
        return lambda: policy(batch, wants, path=ask.route).logprobs_N
    head = nn.Linear(policy.transformer.config.get_text_config().hidden_size, 1, bias=False)
    return lambda: policy(batch, Wants(logprobs=False, value_head=head), path=ask.route).values_N


def _follow(policy: Policy, batch: Batch, ask: Ask) -> Pass:
    values = _values(policy, batch, ask)
    blocks = layers_to_checkpoint(policy.model)
    with Storages([*policy.model.parameters(), *policy.model.buffers()]) as live:
        hooks = [
            blocks[-1].register_forward_pre_hook(partial(_on_gradient_of_input, live), with_kwargs=True),
            blocks[0].register_forward_hook(partial(_on_gradient_of_output, live)),
        ]
        value = values()
        kept, kept_small = live.now, live.small
        value.sum().backward()
        first = live.peaks
        del value
        gradients = live.now
        live.restart()
        value = values()
        value.sum().backward()
        later, moved, operations = live.peaks, live.moved, live.operations
        del value
        for hook in hooks:
            hook.remove()
        policy.model.zero_grad(set_to_none=True)
        before = live.now
        live.restart()
        with torch.no_grad():
            values()
    return Pass(
        *(kept, kept_small),
        *(first["begins"], first["ends"]),
        *(max(later["begins"] - gradients, 0), max(later["ends"] - gradients, 0)),
        max(live.peaks.values()) - before,
        *(moved, live.moved, operations, live.operations),
    )


def _on_gradient_of_input(live: Storages, module: nn.Module, args: Any, kwargs: Any) -> None:
    _when_gradient_comes([*args, *kwargs.values()], lambda: live.enter("between"))


def _on_gradient_of_output(live: Storages, module: nn.Module, args: Any, output: Any) -> None:
    _when_gradient_comes([output] if isinstance(output, Tensor) else output, lambda: live.enter("ends"))


def _when_gradient_comes(tensors: Sequence[Any], act: Callable[[], None]) -> None:
    hidden = next((tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.requires_grad), None)
    if hidden is not None:
        hidden.register_hook(lambda gradient: act())


class Storages(TorchDispatchMode):
    """Follows the storages of all tensors that are made inside: with Storages(known) as live: ...; live.peaks.

    Args:
        known: tensors that are there already; they and their views count as nothing.
    """

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.now = 0
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.restart()

    @property
    def small(self) -> int:
        """Bytes in blocks below `HEAP_BLOCK`."""
        return sum(size for size in self._sizes.values() if size < HEAP_BLOCK)

    def restart(self) -> None:
        """Look for the next peaks, and count anew."""
        self.peaks, self.moved, self.operations = {"begins": self.now, "between": 0, "ends": 0}, 0, 0
        self._part = "begins"

    def enter(self, part: str) -> None:
        """From here on it is this part of the backward pass."""
        # With two layers both marks are of the same tensor; the later part is the one to be in.
        if self._part != "ends":
            self._part = part
            self.peaks[part] = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        for tensor in made:
            self._enter(tensor)
        if not func.is_view:
            self.operations += 1
            if not _is_product(func):
                read = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
                self.moved += sum(tensor.numel() * tensor.element_size() for tensor in [*read, *made])
        return out

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peaks[self._part] = max(self.peaks[self._part], self.now)
            weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "linear")


def _is_product(func: Any) -> bool:
    """Whether an operation's time is that of its multiplications, and not of its bytes."""
    name = func.overloadpacket.__name__
    return name in PRODUCTS or "scaled_dot_product" in name
