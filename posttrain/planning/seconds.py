"""Seconds of a step and bytes between the ranks, from a card's datasheet and efficiencies that are stated here.

A roofline in four parts: matrix products at a share of the peak, everything else at a share of the memory's speed (the
bytes that the traced operations read and write), one launch after another where operations are small, and collectives
beside the computing. No figure of it was measured on a card: `python -m benchmarks.plan_published` holds it against
what others have published.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config.engines import NativeEngineSettings, VLLMColocatedSettings
from posttrain.planning.flops import Operations
from posttrain.planning.memory import BF16, FP32, RankMemory, Situation, cells_of
from posttrain.planning.models import Models
from posttrain.planning.skeleton import Facts

MATMUL_EFFICIENCY = 0.6
"""Of a card's dense peak that matrix products of a language model's sizes reach."""
CPU_EFFICIENCY = 0.5
"""Of a product that was timed on this CPU (`posttrain.starting.expectation`)."""
BANDWIDTH_EFFICIENCY = 0.75
"""Of a memory's datasheet speed."""
LAUNCH_SECONDS = {"cuda": 8e-6, "cpu": 2e-6}
"""From one operation of eager torch to the next."""
LINK_EFFICIENCY = 0.7
NETWORK = 50e9
"""Bytes a second and card between machines: 400 Gbit/s for each card, as in NVIDIA's DGX H100 reference."""
MOMENT_BYTES = 28
"""AdamW reads weight, gradient and moments, and writes all but the gradient, in fp32."""
VLLM_ROWS = 256
"""Completions that a vLLM decodes at a time (`max_num_seqs`)."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one rank receives in a step: Traffic(gathered=1.2e11, reduced=6.1e10, replicas=0, weight_sync=0)."""

    gathered: float = 0.0
    """Weights of layers, of the others of its shard group, forward and again backward."""
    reduced: float = 0.0
    """Gradients, of the same."""
    replicas: float = 0.0
    """Gradients, summed over the replicas."""
    weight_sync: float = 0.0
    """Weights for an engine of its own, from one rank."""

    @property
    def total(self) -> float:
        return self.gathered + self.reduced + self.replicas + self.weight_sync


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds(products=0.8, memory=0.3, launches=0.2, optimizer=0.01, sampling=4.1, collectives=0.2), of one step."""

    products: float
    """Matrix products and attention of all passes, with and without gradients."""
    memory: float
    """All other operations of these passes."""
    launches: float
    """What they would take if nothing but launching them took time; counted where it is more than both."""
    optimizer: float
    sampling: float
    collectives: float
    """Counted where it is more than the computing that hides it."""

    @property
    def training(self) -> float:
        return max(self.products + self.memory, self.launches, self.collectives) + self.optimizer

    @property
    def total(self) -> float:
        return self.training + self.sampling


def traffic_of(models: Models, where: Situation, memory: RankMemory) -> Traffic:
    """A ring's volume: of N ranks each receives (N - 1) / N of what is gathered, twice that of what is summed."""
    facts = models.facts(where.stage.adapter, where.needs.role)
    shards, replicas = where.shards, where.mesh.ranks // where.shards
    passes = memory.microbatches * where.needs.updates
    size = where.gathered_bytes
    shared = (shards - 1) / shards
    layers = facts.total - facts.root
    trained = facts.trained * FP32
    sync = 0.0
    if where.needs.engine is not None and not isinstance(where.needs.engine, NativeEngineSettings):
        sync = float(facts.total * BF16)
    # Sharded, every micro-batch sums its gradients; whole, a step sums them once.
    sums = passes if shards > 1 else where.needs.updates
    return Traffic(
        gathered=shared * (2 * layers * size + facts.root * FP32) * passes,
        reduced=shared * trained * passes,
        replicas=2 * (replicas - 1) / replicas * trained / shards * sums,
        weight_sync=sync,
    )


def seconds_of(
    models: Models, where: Situation, memory: RankMemory, operations: Operations, traffic: Traffic
) -> Seconds:
    card, ranks = where.card, where.mesh.ranks
    facts = models.facts(where.stage.adapter, where.needs.role)
    speed = card.peak(where.precision) * (CPU_EFFICIENCY if card.device == "cpu" else MATMUL_EFFICIENCY)
    bandwidth = card.bandwidth * (1.0 if card.device == "cpu" else BANDWIDTH_EFFICIENCY)
    traced = memory.traced
    # As many tokens as a rank has, at what a token of the traced micro-batch moves.
    passes = where.tokens_per_rank / memory.microbatch
    ahead = _passes_without_gradients(where)
    moved = traced.moved * passes * where.needs.updates + traced.moved_forward * passes * ahead
    launched = memory.microbatches * (traced.operations * where.needs.updates + traced.operations_forward * ahead)
    computed = operations.total - operations.prefill - operations.decode
    return Seconds(
        products=computed / ranks / speed,
        memory=moved / bandwidth,
        launches=launched * LAUNCH_SECONDS[card.device],
        optimizer=MOMENT_BYTES * facts.trained / where.shards * where.needs.updates / bandwidth,
        sampling=_sampling(facts, where, memory, operations, (speed, bandwidth)),
        collectives=_between(where, traffic),
    )


def _passes_without_gradients(where: Situation) -> float:
    needs = where.needs
    reference = {"none": 0.0, "cached": 1 / needs.epochs, "live": 1.0, "adapter_off": 1.0}[needs.reference]
    return reference + needs.measured_again + (needs.value != "none") + (needs.teacher is not None)


def _between(where: Situation, traffic: Traffic) -> float:
    """Within a machine over its links, across machines over the network."""
    mesh, link = where.mesh, where.card.link * LINK_EFFICIENCY
    network = NETWORK * LINK_EFFICIENCY
    within = link if where.shards <= mesh.per_node else network
    across = link if mesh.nodes == 1 else network
    return (traffic.gathered + traffic.reduced) / within + traffic.replicas / across + traffic.weight_sync / link


def _sampling(
    facts: Facts, where: Situation, memory: RankMemory, operations: Operations, speeds: tuple[float, float]
) -> float:
    """A step of decoding reads every weight and all keys and values: bound by the memory, unless rows are many."""
    engine = where.needs.engine
    if engine is None:
        return 0.0
    speed, bandwidth = speeds
    gather = 0.0
    prompt, answer = where.rows.mean.prompt, max(where.rows.mean.responses)
    size = BF16 if where.precision == "bf16" else FP32
    if isinstance(engine, NativeEngineSettings):
        cells = cells_of(where)
        rows, at_once = cells.rows, cells.slots
        launch = memory.traced.operations_forward * LAUNCH_SECONDS[where.card.device]
        if where.shards > 1:  # every step gathers every layer anew
            within = where.card.link if where.shards <= where.mesh.per_node else NETWORK
            gather = facts.total * where.gathered_bytes * (where.shards - 1) / where.shards / (within * LINK_EFFICIENCY)
    else:
        # Served elsewhere it is one server; colocated, every rank has one. CUDA graphs launch a step at once.
        ranks = where.mesh.ranks if isinstance(engine, VLLMColocatedSettings) else 1
        rows, launch = max(1, -(-where.needs.samples // ranks)), 0.0
        at_once = min(rows, VLLM_ROWS)
    share = rows / where.needs.samples
    keys = facts.kv_values() * size * at_once * (prompt + answer / 2)
    weights = (facts.active if at_once == 1 else facts.total) * size
    read = (weights + keys) / bandwidth
    computed = operations.decode * share * at_once / rows / answer / speed
    steps = answer * -(-rows // at_once)
    return steps * max(read, computed, launch, gather) + operations.prefill * share / speed
