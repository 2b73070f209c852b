"""What a step needs in memory, item by item, before it is needed.

The program, weights, gradients, moments and the reference are counted. The activations are measured: two batches, one
twice as large as the other, go forward and backward, and every allocation on the way is followed (`working_memory`).
Their difference is what a token costs at the worst moment of a step, temporary tensors included; what does not grow
with the tokens, chunk buffers and a second gradient of the largest weight, is the working space.
`benchmarks/memory_plan.py` holds the plan against what a process takes.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import psutil
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from posttrain.data.trees import collate, to_device
from posttrain.errors import MemoryLimitError
from posttrain.models.devices import available_bytes, out_of_memory
from posttrain.models.sharding.gradients import gradients_of
from posttrain.models.tree.attention import TreeLayout, attention_windows
from posttrain.models.tree.checkpointing import layers_of
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.projection import BUFFER_ELEMENTS, chunk_rows
from posttrain.types import TokenTree

GIGABYTE = 1e9
MICROBATCH_LIMIT = {"cpu": 1024, "cuda": 16384}
"""More tokens at a time than this gain no speed: the matrix multiplies are large enough. Measured on 2 cores."""
SHARE_FOR_ACTIVATIONS = 0.5
"""Of the memory that is free after weights, gradients and moments."""

MEASURED_LIMIT = 1024
"""Tokens of the smaller of both batches that are measured."""
HEAP_BLOCK = 32 * 2**20
"""glibc gives a block of at least so many bytes back as soon as it is freed (`mallopt(3)`, M_MMAP_THRESHOLD, whose
moving bound ends there); smaller ones lie in a heap, which gives back its end alone."""
HEAP_SLACK = 2.0
"""On CPU, of activations and buffers in blocks below `HEAP_BLOCK`, which come and go in each step: the heap is full of
holes that the next block does not fit into, and takes about three times what it holds. It is so within one step: to
give free pages back between steps (`malloc_trim`) leaves the peak where it was, while with
MALLOC_MMAP_THRESHOLD_=1048576 a LoRA on 4 layers took 1.09 GB in the place of 1.74. Measured at SmolLM2's width on rows
of 2,048 tokens, glibc 2.36: from 1.6 (all weights, 30 layers) to 2.2 (all weights, 4 layers) and 2.6 (LoRA, 12)."""

STEP_REMEDY = (
    "in this order: (1) lower compute.tokens_per_microbatch, which changes no gradient; "
    "(2) set compute.activation_checkpointing: true, about a third more time; "
    "(3) train a LoRA adapter instead of all weights, or lower max_length"
)
EVALUATION_REMEDY = (
    "in this order: (1) lower sampling.max_new_tokens of the suites; (2) shorten their longest prompts; "
    "(3) evaluate on another machine: `posttrain run` goes on where it stopped"
)


@dataclass(frozen=True, slots=True)
class Item:
    """Item("activations", 1_200_000_000, "2,048 tokens x 0.59 MB")."""

    name: str
    bytes: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """MemoryPlan(items=(Item("weights", ...), ...), available_bytes=16e9); the items are there at the same time."""

    items: tuple[Item, ...]
    available_bytes: int
    reached_bytes: int = 0
    """What the process has taken already at its fullest, the checks before step 1 included; 0 where it is not known."""

    @property
    def peak_bytes(self) -> int:
        """What the whole stage takes: the checks before step 1 may need more than a small adapter's steps."""
        return max(self.total_bytes, self.reached_bytes)

    @property
    def total_bytes(self) -> int:
        return sum(item.bytes for item in self.items)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.available_bytes

    @property
    def largest(self) -> Item:
        """Of what a user can change: the program is not."""
        return max((item for item in self.items if item.name != "program"), key=lambda item: item.bytes)

    def line(self) -> str:
        """3.1 GB of 16.0 GB free; largest: activations 1.2 GB (2,048 tokens x 0.59 MB)"""
        top = self.largest
        detail = f" ({top.detail})" if top.detail else ""
        return (
            f"{self.peak_bytes / GIGABYTE:.2f} GB of {self.available_bytes / GIGABYTE:.1f} GB free; "
            f"largest: {top.name} {top.bytes / GIGABYTE:.2f} GB{detail}"
        )

    def table(self) -> str:
        rows = sorted(self.items, key=lambda item: -item.bytes)
        return "\n".join(f"  {item.name:<16} {item.bytes / 1e6:>10,.0f} MB  {item.detail}" for item in rows)


@dataclass(frozen=True, slots=True)
class Working:
    """What a forward and a backward pass take beside weights and gradients: Working(per_token=1.4e6, fixed=2.1e8)."""

    per_token: float
    """Bytes for each token of the batch, at the moment when most is there."""
    fixed: int = 0
    """Bytes whatever the number of tokens."""
    token_blocks: tuple[float, ...] = ()
    """Bytes a token of each block that is there at that moment; empty where they are not known (a card's)."""
    fixed_blocks: tuple[int, ...] = ()

    def heap_bytes(self, tokens: int) -> int:
        """Of a batch of so many tokens, what lies in blocks below `HEAP_BLOCK`: long rows make blocks beyond it."""
        blocks = [*self.fixed_blocks, *(size * tokens for size in self.token_blocks)]
        return int(sum(size for size in blocks if size < HEAP_BLOCK))


def plan(
    policy: TreeModel,
    *,
    tokens_per_microbatch: int,
    activation_bytes_per_token: float,
    live_reference: bool,
    padded: tuple[int, int] | None = None,
    largest: TokenTree | None = None,
    working: Working | None = None,
    program: int = 0,
) -> MemoryPlan:
    """The memory of one training step on top of nothing; `available` counts what is occupied already.

    Args:
        padded: (rows, tokens of each) that the padded path computes together; the tree path keeps no logits.
        largest: the largest tree, for the attention masks, which grow with the square of its tokens.
        working: measured; in the place of `activation_bytes_per_token` and of what the logits are counted as.
        program: bytes of the process before a model was loaded (`resident`): interpreter, libraries, rows.
    """
    if working is not None:
        activation_bytes_per_token = working.per_token
    parameters = list(policy.parameters())
    # Of a sharded model a rank has one of so many parts; rounded up, so that all ranks plan alike.
    share = 1 if policy.sharding is None else policy.sharding.ranks
    weights = -(-sum(p.numel() * p.element_size() for p in parameters) // share)
    trainable = -(-sum(p.numel() for p in parameters if p.requires_grad) // share)
    vocabulary = int(policy.transformer.config.get_text_config().vocab_size)
    element = policy.dtype.itemsize
    items = [
        Item("weights", weights),
        Item("gradients", trainable * element, f"{trainable:,} parameters train"),
        Item("Adam moments", 2 * trainable * element),
        Item(
            "activations",
            int(tokens_per_microbatch * activation_bytes_per_token),
            f"{tokens_per_microbatch:,} tokens x {activation_bytes_per_token / 1e6:.2f} MB",
        ),
    ]
    if policy.sharding is not None:
        items.append(
            Item("gathered", gathered_bytes(policy), "whole at once: what is outside of layers, and two layers")
        )
    if program:
        items.insert(0, Item("program", program, "interpreter and libraries"))
    # What is occupied already is in the plan as items, so it counts as available too: else it would count twice.
    available = available_bytes(policy.device) + weights + program
    if live_reference:
        items.append(Item("reference", weights))
    if working is not None:
        items.append(Item("working space", working.fixed, "buffers that do not grow with the tokens"))
        if policy.device.type == "cpu":
            held = working.heap_bytes(tokens_per_microbatch)  # gradients stay until the step ends
            items.append(Item("allocator", int(HEAP_SLACK * held), "freed blocks that the heap keeps"))
    if largest is not None:
        items.append(mask_item(policy, largest, tokens_per_microbatch))
    if working is not None or policy.compares != "log-probs":
        return MemoryPlan(tuple(items), available, reached(policy.device) if program else 0)
    # Nothing was measured: the logits are counted by their shape.
    if policy.path == "padded":
        items.append(logits_item(*(padded or (1, tokens_per_microbatch)), vocabulary, element))
    else:
        items.append(Item("logits buffer", max(BUFFER_ELEMENTS, 16 * vocabulary) * element, "one chunk, reused"))
    return MemoryPlan(tuple(items), available)


def gathered_bytes(policy: TreeModel) -> int:
    """What a sharded model has whole at its fullest: the root's own weights, the layer that computes and the next."""
    layers = [sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers_of(policy.model)]
    total = sum(p.numel() * p.element_size() for p in policy.parameters())
    return total - sum(layers) + sum(sorted(layers)[-2:])


def logits_item(rows: int, tokens: int, vocabulary: int, bytes_per_logit: int) -> Item:
    """The logits of padded rows: 2 rows x 256 tokens x 151,665 ids are 155 MB in bf16 and 310 MB in fp32."""
    size = rows * tokens * vocabulary * bytes_per_logit
    return Item("logits", size, f"{rows} rows x {tokens:,} tokens x {vocabulary:,} ids x {bytes_per_logit} bytes")


def mask_item(policy: TreeModel, tree: TokenTree, tokens_per_microbatch: int) -> Item:
    """The attention masks of a micro-batch of such trees; kept from the forward pass to the backward pass."""
    copies = max(1, tokens_per_microbatch // tree.num_tokens)
    if policy.path == "tree":
        layout = TreeLayout(collate([tree]))
        windows = attention_windows(policy.transformer.config.get_text_config())
        mask = sum(layout.mask_bytes(window, policy.autocast or policy.dtype) for window in windows)
    else:
        mask = len(tree.branches) * max(tree.row_lengths) ** 2  # bool, a byte for each pair
    return Item("attention masks", copies * mask, f"{copies} x {tree.num_tokens:,} tokens, the largest tree")


def activation_bytes_per_token(policy: TreeModel, tree: TokenTree) -> float:
    """Bytes that autograd keeps per token of the batch, measured on one tree; parameters are not counted."""
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Autograd keeps parameters too; they are there anyway. Views of one storage count once.
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = policy.compared(collate([tree]))[0]
        size = sum(kept.values())
    del out
    return size / tree.num_tokens


def working_memory(policy: TreeModel, trees: Sequence[TokenTree]) -> Working:
    """Measured on the given trees, which should be short: forward, loss and backward of once and of twice as many."""
    batch = list(trees) * _copies(policy, trees)
    # A path that is not proven yet would be proven by the first call, and the proof measured in the place of a step.
    policy.path_of(to_device(collate([*batch, *batch]), policy.device))
    (small, of_small), (large, of_large) = (_peak(policy, trees_of) for trees_of in (batch, [*batch, *batch]))
    tokens = sum(tree.num_tokens for tree in batch)
    # The difference of both: what does not grow with the tokens falls out of it.
    per_token = max(large - small, 0) / tokens
    # A block of the same size in both batches does not grow, unless it is the double of another: a hidden layer of
    # twice the width makes blocks as large from half the tokens.
    grows = {size: size not in of_small or size / 2 in of_small for size in of_large}
    return Working(
        per_token,
        max(0, int(small - per_token * tokens)),
        tuple(size / (2 * tokens) for size in of_large.elements() if grows[size]),
        tuple(size for size in of_large.elements() if not grows[size]),
    )


def _copies(policy: TreeModel, trees: Sequence[TokenTree]) -> int:
    """How many of the trees fill a chunk of the projection onto the vocabulary, within `MEASURED_LIMIT` tokens.

    The chunk's buffers grow up to there and no further: measured below it, 116 tokens of a vocabulary of 49,152 were
    taken to cost 0.18 MB each too much. A chunk that does not fit is of a small vocabulary, and costs little.
    """
    tokens, trained = sum(tree.num_tokens for tree in trees), sum(tree.num_trained for tree in trees)
    chunk = chunk_rows(int(policy.transformer.config.get_text_config().vocab_size))
    copies = -(-chunk // max(1, trained))
    return copies if copies * tokens <= MEASURED_LIMIT else 1


def _peak(policy: TreeModel, trees: Sequence[TokenTree]) -> tuple[int, Counter[int]]:
    """The most bytes that a forward and a backward pass hold at once, beyond what was there before, and the sizes of
    the blocks that they lie in, which are followed on CPU alone.

    The backward pass goes down to one small weight near the input and makes no other gradient: these are counted by
    themselves, and of a short batch they would hide the activations.
    """
    policy.settle()
    trained = [p for p in policy.parameters() if p.requires_grad]
    if not trained:
        return 0, Counter()
    small = max(sum(p.numel() for p in trained) // 1000, min(p.numel() for p in trained))
    first = next(p for p in trained if p.numel() <= small)

    def once() -> None:
        values, _ = policy.compared(collate(trees))
        # Shards get their gradients all at once, or none: then they are measured too.
        gradients_of([values.sum()], trained if policy.is_sharded else [first])

    if policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(policy.device)
        before = torch.cuda.memory_allocated(policy.device)
        once()
        return int(torch.cuda.max_memory_allocated(policy.device)) - before, Counter()
    with _quiet_profiler(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        once()
    results = seen.profiler.kineto_results
    moves = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return _fullest([size for _, size in moves])


def _fullest(moves: Sequence[int]) -> tuple[int, Counter[int]]:
    """The most bytes that are held at once, and the blocks of that moment: _fullest([4, 8, -4, 2]) -> (12, {4, 8}).

    moves: bytes of each allocation in the order of time, negative where a block is given back. One that was there
    before is given back too; it is none of these.
    """
    totals = list(accumulate(moves))
    peak = max(totals, default=0)
    if peak <= 0:
        return 0, Counter()
    blocks: Counter[int] = Counter()
    for size in moves[: totals.index(peak) + 1]:
        if size > 0:
            blocks[size] += 1
        elif blocks[-size]:
            blocks[-size] -= 1
    return peak, +blocks


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """Without the lines that torch's profiler writes to stderr when it begins and ends."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = "99"
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]
        else:
            os.environ["KINETO_LOG_LEVEL"] = before


def reached(device: torch.device) -> int:
    """Bytes that this process took at its fullest; 0 for a card."""
    if device.type != "cpu" or sys.platform == "win32":
        return 0
    import resource  # which Windows does not have

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident(device: torch.device) -> int:
    """Bytes of this process in the machine's memory; 0 for a card, whose memory is another."""
    return int(psutil.Process().memory_info().rss) if device.type == "cpu" else 0


def program_bytes(device: torch.device, loaded: nn.Module | None = None) -> int:
    """What the process takes before its model: asked before one is loaded, or beside one that is there already.

    Asked after the checks it would count what the heap kept of them, which the steps use again.
    """
    weights = 0 if loaded is None else sum(p.numel() * p.element_size() for p in loaded.parameters())
    return max(0, resident(device) - weights)


def fitting_microbatch(
    policy: TreeModel,
    bytes_per_token: float,
    *,
    largest_tree: int,
    live_reference: bool,
    largest: TokenTree | None = None,
    wanted: int = 0,
    working: Working | None = None,
) -> int:
    """Tokens per micro-batch that the free memory holds, at least the largest tree, which cannot be cut.

    wanted: more than the usual limit is of use up to this many, where there is memory for them.
    """
    fixed = plan(
        policy,
        tokens_per_microbatch=0,
        activation_bytes_per_token=0,
        live_reference=live_reference,
        largest=largest,
        working=working,
    )
    room = SHARE_FOR_ACTIVATIONS * max(0, fixed.available_bytes - fixed.total_bytes)
    fits = int(room / max(bytes_per_token, 1.0))
    return max(largest_tree, min(fits, max(wanted, MICROBATCH_LIMIT.get(policy.device.type, 2048))), 1)


@contextmanager
def explain_out_of_memory(
    memory: MemoryPlan | None, what: str = "the step", remedy: str = STEP_REMEDY
) -> Iterator[None]:
    """Turn an out-of-memory error of torch into one that says where the memory went and what to change.

    Args:
        what: for whom the memory was too small; completes "the machine's memory does not hold ...".
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        found = None if memory is None else f"the plan was\n{memory.table()}"
        raise MemoryLimitError(f"the machine's memory does not hold {what}", found=found, remedy=remedy) from error
