"""How a step is computed: micro-batches, precision, the device, and how a model lies on several processes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.config.values import AutoInt, Int, Settings


class Mesh(Settings):
    """How many ranks hold one model together, and how many such models there are."""

    shard: Int = Field(default=1, ge=1)
    """Ranks that share one model's weights, gradients and moments; 1: every rank holds the whole model."""
    replicate: Int = Field(default=1, ge=1)
    """Groups of such ranks; `shard` x `replicate` is the number of processes."""


class Compute(Settings):
    """How a step is computed; none of it changes what is computed, but for `precision` and `gather`."""

    tokens_per_microbatch: AutoInt = "auto"
    """Tokens that go through the model at once; `auto` fits them to the machine's memory. No gradient depends on it."""
    # No fp16: without loss scaling its gradients underflow to 0, and training would go on with them.
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; the weights stay fp32. `auto`: bf16 where the hardware gains by it."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    logprobs: Literal["auto", "tree", "padded"] = "auto"
    """`tree` computes a shared prompt once, `padded` is the plain way; `auto` takes tree where the two agree."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`."""
    mesh: Literal["auto"] | Mesh = "auto"
    """How a model lies on several processes: `{shard: 8, replicate: 4}`. `auto`: on CUDA shards within a machine and
    replicates across machines; elsewhere every process holds the whole model. No number depends on it."""
    offload: Literal["none", "optimizer", "all"] = "none"
    """What lies in the machine's memory instead of the card's: Adam's moments, or with `all` the sharded weights and
    gradients too. On a CPU there is nothing to move."""
    offload_activations: bool = False
    """Keep what the backward pass needs in the machine's memory: room on the card for the time that copies take. With
    `activation_checkpointing` it is each layer's input that moves. On a CPU there is nothing to move."""
    gather: Literal["auto", "fp32", "bf16"] = "auto"
    """What a sharded layer's weights are sent and kept in while it computes; the shards stay fp32. `auto`: bf16 where
    the arithmetic on a CUDA card is; bf16 rounds the weights of norms too."""
