"""Cards by name: memory, peak arithmetic, and how fast bytes move, each from its maker's datasheet.

A datasheet's GB are taken as 10^9 bytes. Cards report some 5 to 7 % more (an H100 81,559 MiB, 85.5 * 10^9 bytes), which
is left to what an allocator loses between its blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch

from posttrain.errors import unknown


@dataclass(frozen=True, slots=True)
class Card:
    """Card("h100-80gb", memory=80e9, bf16=989e12, fp32=67e12, bandwidth=3.35e12, link=450e9, source="...")."""

    name: str
    memory: float
    """Bytes."""
    bf16: float | None
    """Peak operations a second, dense; None where the card has no bf16."""
    fp32: float
    """The same in fp32, without the rounding of TF32, which posttrain does not ask for."""
    bandwidth: float
    """Bytes a second from its memory."""
    link: float
    """Bytes a second to another card of the machine, one way."""
    source: str
    device: str = "cuda"

    def peak(self, precision: str) -> float:
        return self.bf16 if precision == "bf16" and self.bf16 else self.fp32


_CARDS = (
    Card("h100-80gb", 80e9, 989e12, 67e12, 3.35e12, 450e9, "NVIDIA H100 datasheet, SXM5: 1,979 bf16 with sparsity"),
    Card("h200-141gb", 141e9, 989e12, 67e12, 4.8e12, 450e9, "NVIDIA H200 datasheet, SXM: 1,979 bf16 with sparsity"),
    Card("a100-80gb", 80e9, 312e12, 19.5e12, 2.039e12, 300e9, "NVIDIA A100 datasheet, SXM 80 GB"),
    Card("a100-40gb", 40e9, 312e12, 19.5e12, 1.555e12, 300e9, "NVIDIA A100 datasheet, SXM 40 GB"),
    Card("b200", 180e9, 2250e12, 75e12, 7.7e12, 900e9, "NVIDIA DGX B200 datasheet: 8 cards, 1,440 GB, 36 PFLOPS bf16"),
    Card("mi300x", 192e9, 1307e12, 163.4e12, 5.3e12, 448e9, "AMD Instinct MI300X datasheet; 7 Infinity Fabric links"),
    Card("l40s", 48e9, 362e12, 91.6e12, 0.864e12, 32e9, "NVIDIA L40S datasheet: 733 bf16 with sparsity, PCIe 4"),
    Card("l4", 24e9, 121e12, 30.3e12, 0.3e12, 32e9, "NVIDIA L4 datasheet: 242 bf16 with sparsity, PCIe 4"),
    Card("rtx-4090", 24e9, 165.2e12, 82.6e12, 1.008e12, 32e9, "NVIDIA Ada whitepaper, appendix A, fp32 accumulate"),
    Card(
        "rtx-3090", 24e9, 71e12, 35.6e12, 0.936e12, 32e9, "NVIDIA Ampere GA102 whitepaper, appendix A, fp32 accumulate"
    ),
    Card("t4", 16e9, None, 8.1e12, 0.32e12, 16e9, "NVIDIA T4 datasheet: no bf16; PCIe 3"),
)
CARDS: Mapping[str, Card] = {card.name: card for card in _CARDS}
"""Every card that `--gpu` knows."""

DEFAULT = "h100-80gb"


def card_named(name: str) -> Card:
    """
    Raises:
        UnknownKeyError: no card has this name; names the nearest.
    """
    card = CARDS.get(name.lower())
    if card is None:
        raise unknown("card", name, CARDS, problem=f"there is no card `{name}` in the table")
    return card


SIZE, REPEATS = 768, 3
"""Of the matrices whose product is timed, and how often."""


def this_cpu() -> Card:
    """This machine as a card: its memory, and what a matrix product and a copy reach on it now."""
    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    block = torch.empty(16 * 2**20)
    product = _fastest(lambda: left @ right)
    copy = _fastest(lambda: block.clone())
    peak, bandwidth = 2 * SIZE**3 / product, 2 * block.numel() * 4 / copy
    cores = torch.get_num_threads()
    said = f"measured now on {cores} of {os.cpu_count()} cores: a {SIZE} x {SIZE} product and a copy of 64 MB in fp32"
    memory = float(psutil.virtual_memory().total)
    return Card("cpu", memory, None, peak, bandwidth, bandwidth, said, device="cpu")


def _fastest(work: object) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()  # type: ignore[operator]
        times.append(time.perf_counter() - began)
    return min(times)
