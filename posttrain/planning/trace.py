"""What a forward and a backward pass hold and move, without a byte of memory: posttrain's own pass on fake tensors.

    pass_ = Tracer(config).trace(Ask(adapter=None, role="policy", compute="bf16"), trees)

`FakeTensorMode` of torch runs every operation on shapes alone. A dispatch mode above it follows each storage from the
operation that makes it to its last reference, so that the most bytes at one moment are found as an allocator would find
them: what autograd keeps, the chunk of logits, the gradients that pile up, each temporary tensor. Two short models, of
2 and of 4 layers, are traced and drawn on to all layers: a layer adds the same each time.

A pass is fullest at the vocabulary, where the backward pass begins, or where it ends: each of these moments grows in
proportion to layers and tokens, and their maximum does not, so each is drawn on by itself.

What is not seen: workspaces inside of kernels, and what an allocator keeps between blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from posttrain.config.adapters import AdapterSettings
from posttrain.data.trees import collate
from posttrain.errors import ModelError
from posttrain.models.tree.checkpointing import layers_of
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.offloading import HostActivations
from posttrain.models.tree.projection import chunk_rows
from posttrain.planning.items import HEAP_BLOCK
from posttrain.planning.skeleton import Role, build, countable, is_sparse, narrow_layers, shortened
from posttrain.types import Batch, Branch, RowRef, TokenTree, Wants

Arithmetic = Literal["fp32", "autocast", "gathered"]
"""fp32 throughout; fp32 weights that autocast multiplies in bf16; the same over layers that FSDP gathers in bf16."""

FEW, MORE = 2, 4
"""Layers of the two models that are traced."""
CHUNKS = 3
"""Chunks of the vocabulary beyond which more of them hold no more at a time."""
SHORT = 256
"""Tokens of the shorter of two micro-batches that are drawn on to a long one."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Which pass: Ask(LoRA(rank=16), "policy", "autocast", checkpointing=True, route="tree")."""

    adapter: AdapterSettings | None
    role: Role
    arithmetic: Arithmetic
    checkpointing: bool = False
    offloading: bool = False
    entropy: bool = False
    route: Literal["tree", "padded"] = "tree"


@dataclass(frozen=True, slots=True)
class Pass:
    """Bytes of one micro-batch, beside weights: Pass(kept=1.1e9, first_head=1.3e9, first_ends=0.9e9, ...).

    `first_`: of a step's first micro-batch, with the gradients, which come while activations go. `later_`: of another,
    beside the gradients of all that trains, which are there. Each is the most at one moment, in three parts of the
    pass: until the vocabulary is left behind (`head`), in the last layer's backward pass (`last`), and in the first
    layer's, where all gradients are there (`ends`).
    """

    kept: float
    """What autograd keeps when the forward pass ends."""
    kept_small: float
    """Of it, in blocks that a heap does not give back at once (`items.HEAP_BLOCK`)."""
    first_head: float
    first_last: float
    first_ends: float
    later_head: float
    later_last: float
    later_ends: float
    forward_layers: float
    """Of a pass without gradients, in its layers."""
    forward_head: float
    moved: float
    """Bytes that the operations of a forward and backward pass read and write, but for those of matrix products."""
    moved_forward: float
    """Of a pass without gradients."""
    operations: float
    """How many operations are launched, forward and backward."""
    operations_forward: float

    @property
    def first(self) -> float:
        return max(self.kept, self.first_head, self.first_last, self.first_ends)

    @property
    def later(self) -> float:
        return max(self.kept, self.later_head, self.later_last, self.later_ends)

    @property
    def forward(self) -> float:
        """Most at one moment of a pass without gradients."""
        return max(self.forward_layers, self.forward_head)

    def towards(self, other: Pass, share: float) -> Pass:
        """On the line through this pass and another, `share` of the way: 3.0 is as far again, twice."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Pass(*(here + (there - here) * share for here, there in pairs))


class Tracer:
    """Passes of one model, each traced once."""

    def __init__(self, config: PreTrainedConfig):
        self.config = config
        text = config.get_text_config()
        self.layers = int(text.num_hidden_layers)
        self._chunk = chunk_rows(int(text.vocab_size))
        self._known: dict[tuple[Any, ...], Pass] = {}

    def trace(self, ask: Ask, trees: Sequence[TokenTree]) -> Pass:
        """The pass over a micro-batch of these trees, whose ids are not looked at.

        Raises:
            ModelError: the model does something that shapes alone do not tell.
        """
        shape = tuple((len(t.prompt_ids), *((len(b.ids), b.loss_mask.sum()) for b in t.branches)) for t in trees)
        adapter = repr(ask.adapter and countable(ask.adapter))
        key = (ask.arithmetic, ask.role, ask.checkpointing, ask.offloading, ask.entropy, ask.route, adapter, shape)
        if key not in self._known:
            if self.layers <= MORE:
                self._known[key] = self._short(ask, trees, self.layers)
            else:
                few, more = (self._short(ask, trees, layers) for layers in (FEW, MORE))
                self._known[key] = few.towards(more, (self.layers - FEW) / (MORE - FEW))
        return self._known[key]

    def trace_flat(self, ask: Ask, tokens: int, trained: int) -> Pass:
        """The same over so many tokens without a mask between them, as a card's kernels take them.

        Two short micro-batches are traced and drawn on to `tokens`, each long enough for several chunks of the
        vocabulary where the whole one has several: there the growth with the tokens has its only bend.
        """
        if trained == 1:  # a prefill asks for the last logits alone, however long the prompt is
            share, least = 0.0, SHORT
        else:
            # Rounded, so that micro-batches of nearly the same rows are drawn from the same two.
            share = max(round(trained / tokens, 2), 0.01)
            few = trained < CHUNKS * self._chunk
            least = SHORT if few else max(SHORT, int(CHUNKS * self._chunk / share))
        if tokens < least or (share and trained < CHUNKS * self._chunk):
            return self.trace(ask, [_row(tokens, trained)])
        low, high = (self.trace(ask, [_row(n, max(1, round(share * n)))]) for n in (least, 2 * least))
        return low.towards(high, (tokens - least) / least)

    def _short(self, ask: Ask, trees: Sequence[TokenTree], layers: int) -> Pass:
        # torch's product of grouped experts knows bf16 alone when it has no memory; its other dtypes are scaled below.
        sparse = is_sparse(self.config)
        dtype = torch.bfloat16 if sparse else torch.float32
        # A reward or a value model is a backbone under a head of one number: `_values` puts that one on.
        model = build(shortened(self.config, layers), ask.adapter, "policy", dtype)
        if ask.arithmetic == "gathered" and not sparse:
            narrow_layers(model)
        batch = collate(trees)
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                model.to_empty(device="cpu")
                found = follow(_policy(model, ask, sparse), batch, ask)
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
        names = [field.name for field in fields(Pass) if not field.name.startswith("operations")]
        return replace(found, **{name: wider * size for name, size in asdict(found).items() if name in names})


def _row(tokens: int, trained: int) -> TokenTree:
    """One node, of which the last tokens train; the first has none before it that would predict it."""
    mask = np.arange(tokens) >= max(1, tokens - trained)
    branch = Branch(np.ones(tokens, dtype=np.int32), mask)
    return TokenTree(np.empty(0, dtype=np.int32), (branch,), key="planned", row=RowRef("plan", 1))


def _policy(model: nn.Module, ask: Ask, sparse: bool) -> Policy:
    autocast = torch.bfloat16 if ask.arithmetic != "fp32" and not sparse else None
    policy = Policy(model, ask.route, autocast=autocast, activation_checkpointing=ask.checkpointing)
    if ask.offloading:
        policy.activations = HostActivations(model, policy.device, away=_forgotten, back=_empty, least=1)
    # What a card's fused kernels keep, too: query, key, value, output, and a sum for each query.
    policy.backend = "kernel"
    return policy


def _forgotten(bytes_n: Tensor) -> None:
    """`offloading.Away` where bytes have no values: off the card they are no memory of it."""


def _empty(kept: None, part: slice, device: torch.device) -> Tensor:
    return torch.empty(part.stop - part.start, dtype=torch.uint8, device=device)


def _values(policy: Policy, batch: Batch, ask: Ask) -> Callable[[], Tensor]:
    """The pass to follow."""
    if ask.role == "policy":
        wants = Wants(entropy=ask.entropy)
        return lambda: policy(batch, wants, path=ask.route).logprobs_N
    head = nn.Linear(policy.transformer.config.get_text_config().hidden_size, 1, bias=False)
    return lambda: policy(batch, Wants(logprobs=False, value_head=head), path=ask.route).values_N


def follow(policy: Policy, batch: Batch, ask: Ask) -> Pass:
    """Two passes with gradients and one without over this batch, on tensors with or without memory."""
    values = _values(policy, batch, ask)
    first_block, *_, last_block = (*layers_of(policy.model),) * 2
    with Storages([*policy.model.parameters(), *policy.model.buffers()]) as live:
        hooks = [
            last_block.register_forward_hook(partial(_mark, live, "last", "output")),
            last_block.register_forward_pre_hook(partial(_mark_input, live, "between"), with_kwargs=True),
            first_block.register_forward_hook(partial(_mark, live, "ends", "output")),
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
        policy.model.zero_grad(set_to_none=True)
        before = live.now
        live.restart()
        with torch.no_grad():
            values()
        alone = live.peaks
        for hook in hooks:
            hook.remove()
    return Pass(
        kept=kept,
        kept_small=kept_small,
        first_head=first["head"],
        first_last=first["last"],
        first_ends=first["ends"],
        later_head=max(later["head"] - gradients, 0),
        later_last=max(later["last"] - gradients, 0),
        later_ends=max(later["ends"] - gradients, 0),
        forward_layers=alone["head"] - before,
        forward_head=max(alone["last"] - before, 0),
        moved=moved,
        moved_forward=live.moved,
        operations=operations,
        operations_forward=live.operations,
    )


def _mark_input(live: Storages, part: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    _mark(live, part, "input", module, args, [*args, *kwargs.values()])


def _mark(live: Storages, part: str, side: str, module: nn.Module, args: Any, tensors: Any) -> None:
    """When the gradient of a layer's input or output comes, another part of the backward pass begins; without
    gradients, another part of the forward pass begins when the last layer is done."""
    hidden = next((tensor for tensor in tree_leaves(tensors) if isinstance(tensor, Tensor)), None)
    if hidden is not None and hidden.requires_grad:
        hidden.register_hook(lambda gradient: live.enter(part))
    elif part == "last" and side == "output":
        live.enter(part)


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
        self.peaks, self.moved, self.operations = {"head": self.now, "last": 0, "between": 0, "ends": 0}, 0, 0
        self._part = "head"

    def enter(self, part: str) -> None:
        """From here on it is this part of the backward pass."""
        # With two layers both marks are of the same tensor; the later part is the one to be in.
        if self._part != "ends":
            self._part = part
            self.peaks[part] = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WITH_COPY:
            self._note(args[0].numel() * args[0].element_size())
        out = func(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        for tensor in made:
            self._enter(tensor)
        if not func.is_view:
            self.operations += 1
            if name not in NOT_BY_BYTES and "scaled_dot_product" not in name:
                read = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
                self.moved += sum(tensor.numel() * tensor.element_size() for tensor in [*read, *made])
        return out

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self._note()
            weakref.finalize(storage, self._leave, key)

    def _note(self, beside: int = 0) -> None:
        self.peaks[self._part] = max(self.peaks[self._part], self.now + beside)

    def _leave(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


NOT_BY_BYTES = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "linear", "empty", "empty_like", "new_empty")
"""Operations whose time is that of their multiplications, beside those of attention, or that touch no byte."""
WITH_COPY = ("logsumexp",)
"""Operations that hold another tensor as large as their input while they run, which no dispatch shows."""
