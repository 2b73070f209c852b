"""The items of a memory plan, and the sums that the preflight's plan (`training/checks/memory.py`) and this one share.

Nothing here imports torch: a formula stands once, whoever fills it in, a measured step or a traced one.
"""

from __future__ import annotations

from dataclasses import dataclass

GIGABYTE = 1e9
MICROBATCH_LIMIT = {"cpu": 1024, "cuda": 16384}
"""More tokens at a time than this gain no speed: the matrix multiplies are large enough. Measured on 2 cores."""
SHARE_FOR_ACTIVATIONS = 0.5
"""Of the memory that is free after weights, gradients and moments."""

HEAP_BLOCK = 32 * 2**20
"""glibc gives a block of at least so many bytes back as soon as it is freed (`mallopt(3)`, M_MMAP_THRESHOLD, whose
moving bound ends there); smaller ones lie in a heap, which gives back its end alone."""
HEAP_SLACK = 2.0
"""On CPU, of activations and buffers in blocks below `HEAP_BLOCK`, which come and go in each step: the heap is full of
holes that the next block does not fit into, and takes about three times what it holds. It is so within one step: to
give free pages back between steps (`malloc_trim`) leaves the peak where it was, while with
MALLOC_MMAP_THRESHOLD_=1048576 a LoRA on 4 layers took 1.09 GB in the place of 1.74. Measured at SmolLM2's width on rows
of 2,048 tokens, glibc 2.36: from 1.6 (all weights, 30 layers) to 2.2 (all weights, 4 layers) and 2.6 (LoRA, 12)."""


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


def training_items(weights: int, trained: int, bytes_per_value: int, *, shards: int = 1) -> list[Item]:
    """What is there between two steps and in them: weights, their gradients, and AdamW's two moments.

    Args:
        weights: bytes of all weights.
        trained: how many values train.
        bytes_per_value: of a trained value, its gradient and each of its moments.
        shards: ranks that hold a share each.
    """
    share = -(-trained // shards)
    of = f", over {shards} ranks" if shards > 1 else ""
    return [
        Item("weights", -(-weights // shards), of.removeprefix(", ")),
        Item("gradients", share * bytes_per_value, f"{trained:,} parameters train{of}"),
        Item("Adam moments", 2 * share * bytes_per_value),
    ]


def logits_item(rows: int, tokens: int, vocabulary: int, bytes_per_logit: int) -> Item:
    """The logits of padded rows: 2 rows x 256 tokens x 151,665 ids are 155 MB in bf16 and 310 MB in fp32."""
    size = rows * tokens * vocabulary * bytes_per_logit
    return Item("logits", size, f"{rows} rows x {tokens:,} tokens x {vocabulary:,} ids x {bytes_per_logit} bytes")


def fitting_tokens(free: float, per_token: float, *, device: str, largest_tree: int, wanted: int = 0) -> int:
    """Tokens of a micro-batch where the recipe says `auto`, at least the largest tree, which cannot be cut.

    Args:
        free: bytes that are left after all that does not grow with the tokens.
        per_token: bytes of each further token.
        device: cpu or cuda, for the limit beyond which more tokens gain nothing.
        wanted: more than that limit is of use up to so many, where there is memory for them.
    """
    fits = int(SHARE_FOR_ACTIVATIONS * max(0.0, free) / max(per_token, 1.0))
    return max(largest_tree, min(fits, max(wanted, MICROBATCH_LIMIT.get(device, 2048))), 1)
