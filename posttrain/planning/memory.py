"""The memory of one rank, part by part, while it trains and while it samples.

Sums of `items.py` over counts of `skeleton.py` and passes of `trace.py`. What is stated and not derived are the
allowances: for the driver and its libraries, for the buffers of collectives, for a vLLM that sleeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.config.adapters import AdaLoRA, AdapterSettings, QLoRA
from posttrain.config.base import TrainingStage
from posttrain.config.engines import NativeEngineSettings, VLLMColocatedSettings
from posttrain.models.tree.projection import BUFFER_ELEMENTS
from posttrain.parallel.gradients import BUCKET_ELEMENTS
from posttrain.planning.cards import Card
from posttrain.planning.items import HEAP_SLACK, Item, MemoryPlan, fitting_tokens, training_items
from posttrain.planning.mesh import Mesh
from posttrain.planning.models import Models
from posttrain.planning.needs import Needs
from posttrain.planning.rows import Rows, Shape
from posttrain.planning.skeleton import Facts
from posttrain.planning.trace import Arithmetic, Ask, Pass

FP32, BF16 = 4, 2
PROGRAM = 450_000_000
"""On CPU: the interpreter and its libraries (`python -m benchmarks.hardware`)."""
CONTEXT = 600_000_000
"""On a card: an allowance for the driver's context, cuBLAS and the modules that are loaded."""
COLLECTIVES = 1_000_000_000
"""On a card with others: an allowance for the buffers of NCCL's channels."""
SLEEPING = 1_500_000_000
"""An allowance for a colocated vLLM at its first sleep level, whose weights and cache are not on the card."""
SCALE_BITS = {(4, True): 0.127, (4, False): 0.5, (8, True): 0.1, (8, False): 0.1}
"""Bits of scales beside a packed weight. 4 bits: Dettmers et al. 2023, arXiv:2305.14314, section 3, blocks of 64."""
PREFILL_TOKENS = 4096
"""Prompt tokens of one forward pass of the native engine (`NativeEngine`, prefill_tokens)."""
LOGITS_COPIES = 3
"""Logits of a decoding step that are there at once: the model's own, in fp32, and their softmax."""
NATIVE_ROWS = {"cpu": 64, "cuda": 256}
"""Completions that the native engine samples at a time where the recipe does not say (`NativeEngine`, max_rows)."""


WHOLE = (QLoRA, AdaLoRA)
"""Adapters whose base, or whose factors, every rank has to hold whole."""


@dataclass(frozen=True, slots=True)
class Situation:
    """One stage on one kind of card: what a remedy changes, and plans again."""

    stage: TrainingStage
    needs: Needs
    rows: Rows
    card: Card
    mesh: Mesh

    @property
    def is_whole(self) -> bool:
        """Whether training refuses to share the weights between ranks."""
        return isinstance(self.stage.adapter, WHOLE)

    @property
    def precision(self) -> str:
        """fp32 or bf16, as `compute.precision: auto` will choose."""
        asked = self.stage.compute.precision
        if asked == "auto":
            return "bf16" if self.card.bf16 else "fp32"
        return asked

    @property
    def arithmetic(self) -> Arithmetic:
        if self.precision == "fp32":
            return "fp32"
        return "gathered" if self.shards > 1 and self.gathered_bytes == BF16 else "autocast"

    @property
    def gathered_bytes(self) -> int:
        """Of a value of a sharded layer's matrices while the layer computes (`compute.gather`)."""
        return BF16 if self.precision == "bf16" and self.stage.compute.gather != "fp32" else FP32

    @property
    def offloaded(self) -> frozenset[str]:
        """Items that lie in the machine's memory (`compute.offload`)."""
        kind = self.stage.compute.offload if self.card.device != "cpu" else "none"
        if kind == "all" and self.shards > 1:
            return frozenset({"weights", "gradients", "Adam moments"})
        return frozenset() if kind == "none" else frozenset({"Adam moments"})

    @property
    def shards(self) -> int:
        """Ranks that share the weights."""
        return self.mesh.shard

    @property
    def ask(self) -> Ask:
        adapter, compute = self.stage.adapter, self.stage.compute
        padded = compute.logprobs == "padded" or (adapter is not None and adapter.VIRTUAL)
        return Ask(
            adapter,
            self.needs.role,
            self.arithmetic,
            compute.activation_checkpointing,
            compute.offload_activations and self.card.device != "cpu",
            self.needs.entropy,
            "padded" if padded else "tree",
        )

    @property
    def longest(self) -> Shape:
        """The largest tree that cannot be cut: of a group of completions, the prompt with one of them."""
        whole = self.rows.longest
        return whole if self.needs.engine is None else Shape(whole.prompt, whole.responses[:1])

    @property
    def rows_per_rank(self) -> float:
        return self.needs.prompts / self.mesh.ranks

    @property
    def tokens_per_rank(self) -> float:
        """Of one step's trees."""
        return self.rows_per_rank * self.rows.mean.tokens


@dataclass(frozen=True, slots=True)
class RankMemory:
    """What the fullest rank holds: RankMemory(training=MemoryPlan(...), sampling=None, microbatch=8192, ...)."""

    training: MemoryPlan
    sampling: MemoryPlan | None
    microbatch: int
    """Tokens of a micro-batch."""
    microbatches: int
    """Of one pass over a step's rows, on the rank that has most."""
    traced: Pass

    @property
    def fullest(self) -> MemoryPlan:
        plans = [self.training, *([self.sampling] if self.sampling else [])]
        return max(plans, key=lambda plan: plan.total_bytes)

    @property
    def fits(self) -> bool:
        return self.fullest.fits


def rank_memory(models: Models, where: Situation) -> RankMemory:
    """
    Raises:
        ConfigError, ModelError: the adapter or the architecture cannot be planned.
    """
    standing = standing_items(models, where)
    tokens = microbatch_tokens(models, where, standing)
    traced = pass_of(models, where, tokens)
    count = max(1, round(-(-where.tokens_per_rank // tokens)))
    training = [*standing, *_moving(models, where, traced, tokens, count)]
    available = int(where.card.memory)
    sampling = sampling_items(models, where, standing) if where.needs.engine is not None else None
    return RankMemory(
        MemoryPlan(tuple(training), available),
        MemoryPlan(tuple(sampling), available) if sampling is not None else None,
        tokens,
        count,
        traced,
    )


def pass_of(models: Models, where: Situation, tokens: int) -> Pass:
    """Of a micro-batch of so many tokens, filled with the largest rows."""
    row = _filling(where, tokens)
    if where.card.device == "cpu" or where.ask.route == "padded":
        return models.tracer.trace(where.ask, [row.tree()] * max(1, tokens // row.tokens))
    return models.tracer.trace_flat(where.ask, tokens, max(1, tokens * sum(row.responses) // row.tokens))


def _filling(where: Situation, tokens: int) -> Shape:
    """The tree that micro-batches are filled with: of a group, the prompt with as many completions as go in."""
    whole = where.rows.longest
    if where.needs.engine is None:
        return whole
    answers = max(1, (tokens - whole.prompt) // whole.responses[0])
    return Shape(whole.prompt, whole.responses[:answers])


def microbatch_tokens(models: Models, where: Situation, standing: list[Item]) -> int:
    """Tokens of a micro-batch: as the recipe says, or as `auto` will find; no less than the largest tree has."""
    asked, least = where.stage.compute.tokens_per_microbatch, where.longest.tokens
    if asked != "auto":
        return max(int(asked), least)
    once, twice = (pass_of(models, where, tokens) for tokens in (least, 2 * least))
    per_token = (twice.later - once.later) / least
    fixed = sum(item.bytes for item in standing) + max(0.0, once.later - per_token * least)
    free = where.card.memory - fixed
    most = max(least, int(where.tokens_per_rank))
    return min(fitting_tokens(free, per_token, device=where.card.device, largest_tree=least), most)


# ---------------------------------------------------------------- what is there all the time


def weight_bytes(facts: Facts, adapter: AdapterSettings | None) -> int:
    """fp32, but for the layers that a quantised base packs."""
    if not isinstance(adapter, QLoRA):
        return facts.total * FP32
    bits = adapter.bits + SCALE_BITS[adapter.bits, adapter.double_quant]
    return int(facts.quantised * bits / 8) + (facts.total - facts.quantised) * FP32


def standing_items(models: Models, where: Situation) -> list[Item]:
    """Weights, gradients, moments, other models and the allowances."""
    adapter, shards, needs = where.stage.adapter, where.shards, where.needs
    facts = models.facts(adapter, needs.role)
    whole = training_items(weight_bytes(facts, adapter), facts.trained, FP32, shards=shards)
    items = [item for item in whole if item.name not in where.offloaded]
    items += _reference(facts, where) + _value(facts, where)
    if needs.teacher is not None:
        teacher = models.other(needs.teacher)
        items.append(Item("teacher", -(-teacher.total * FP32 // shards), needs.teacher))
    for judge in needs.judges:
        items.append(Item("reward model", models.other(judge).total * FP32, judge))
    if where.card.device == "cpu":
        return [*items, Item("program", PROGRAM, "allowance: interpreter and libraries")]
    items.append(Item("driver", CONTEXT, "allowance: context, libraries"))
    if where.mesh.ranks > 1:
        items.append(Item("collectives", COLLECTIVES, "allowance: NCCL's buffers"))
    if isinstance(needs.engine, VLLMColocatedSettings):
        items.append(Item("vLLM asleep", SLEEPING, "allowance: weights and cache are not on the card"))
    return items


def _reference(facts: Facts, where: Situation) -> list[Item]:
    """A live copy shares with the policy what does not train."""
    if where.needs.reference != "live":
        return []
    return [Item("reference", -(-facts.trained * FP32 // where.shards), "live: a copy of what trains")]


def _value(facts: Facts, where: Situation) -> list[Item]:
    """PPO's value model: weights, gradients and moments of its own, but for what it shares with the policy."""
    kind = where.needs.value
    if kind == "none" or kind == "shared":
        return []
    if where.stage.adapter is not None:
        copied, said = facts.trained, "a second adapter over the same weights"
    else:
        # Tied, the projection is the embeddings, which the value model has too.
        copied = facts.total - (facts.projection if facts.root >= 2 * facts.projection else 0)
        said = "a second backbone"
    trained = copied if kind == "own" else 0
    size = copied * FP32 + trained * 3 * FP32
    return [Item("value model", -(-size // where.shards), said + (", with its optimizer" if trained else ", frozen"))]


# ---------------------------------------------------------------- while it trains


def _moving(models: Models, where: Situation, traced: Pass, tokens: int, count: int) -> list[Item]:
    """Activations, temporary tensors, and what FSDP gathers for a layer."""
    facts = models.facts(where.stage.adapter, where.needs.role)
    gradients = facts.trained * FP32
    alone = count == 1 and where.shards == 1
    # In a step's only micro-batch gradients come while activations go: never all of both.
    peak = max(0.0, traced.first - gradients) if alone else traced.later
    kept = min(traced.kept, peak)
    once = ", gradients come as they go" if alone and kept < traced.kept else ""
    again = "layers' inputs, " if where.stage.compute.activation_checkpointing else ""
    again += "most in the machine's memory; here " if where.ask.offloading else ""
    items = [
        Item("activations", int(kept), f"{again}{tokens:,} tokens x {traced.kept / tokens / 1e6:.3f} MB{once}"),
        Item("working space", int(peak - kept), "temporary tensors and a chunk of logits"),
    ]
    if where.arithmetic == "autocast":
        items[1] = Item("working space", int(peak - kept), "temporary tensors, a chunk of logits, bf16 copies")
    if where.needs.teacher is not None:
        width = models.other(where.needs.teacher).width
        size = tokens * width * FP32 + LOGITS_COPIES * BUFFER_ELEMENTS * FP32
        items.append(Item("teacher's states", size, "and a chunk of its distributions"))
    if where.card.device == "cpu":
        items.append(Item("allocator", int(HEAP_SLACK * min(kept, traced.kept_small)), "freed blocks of the heap"))
    return [*items, *_gathered(facts, where)]


def _gathered(facts: Facts, where: Situation) -> list[Item]:
    """FSDP2 holds whole, for a time: the root all along, a layer and the next one; and their gradients."""
    if where.shards == 1:
        if where.mesh.ranks == 1:
            return []
        return [
            Item("bucket of gradients", min(BUCKET_ELEMENTS, facts.trained) * FP32, "summed over the ranks at a time")
        ]
    size = where.gathered_bytes
    layers = min(2, facts.layers)
    # The root is gathered as it is kept, and stays whole from the forward to the backward pass.
    whole = facts.root * FP32 + layers * facts.layer * size
    trained = facts.trained_root * FP32 + layers * facts.trained_layer * size
    reduced = max(facts.trained_root, facts.trained_layer) * FP32
    return [
        Item("gathered layers", whole, f"the root and {layers} layers, whole"),
        Item("whole gradients", trained + reduced, "of the same, before each rank keeps its share"),
    ]


# ---------------------------------------------------------------- while it samples


@dataclass(frozen=True, slots=True)
class Cells:
    """The native engine's cache: Cells(rows=64, slots=64, width=768)."""

    rows: int
    """Completions that this rank samples in a step."""
    slots: int
    """Completions at a time."""
    width: int
    """Tokens of each."""


def cells_of(where: Situation) -> Cells:
    """As `CachedDecoder` lays its cache out for completions that take all of their tokens."""
    engine = where.needs.engine
    assert isinstance(engine, NativeEngineSettings)
    prompt, answer = where.rows.longest.prompt, where.rows.longest.responses[0]
    rows = max(1, -(-where.needs.samples // where.mesh.ranks))
    width = prompt + answer
    most = engine.rows or NATIVE_ROWS[where.card.device]
    return Cells(rows, max(1, min(rows, most, engine.tokens // width)), width)


def sampling_items(models: Models, where: Situation, standing: list[Item]) -> list[Item]:
    """What is there while completions are sampled: no gradients and no activations, but an engine."""
    there = [item for item in standing if item.name not in ("gradients", "vLLM asleep")]
    engine = where.needs.engine
    facts = models.facts(where.stage.adapter, "policy")
    if isinstance(engine, VLLMColocatedSettings):
        share = int(engine.gpu_memory * where.card.memory)
        return [*there, Item("vLLM", share, f"gpu_memory: {engine.gpu_memory:g} of the card"), _sync(facts, where)]
    if not isinstance(engine, NativeEngineSettings):
        return [*there, *_mirror(facts, where), _sync(facts, where)]
    cells = cells_of(where)
    size = BF16 if where.precision == "bf16" else FP32
    cache = facts.kv_values() * cells.slots * cells.width * size
    # `transformers` repeats keys and values for the heads that share them, where there is a mask: a layer at a time.
    repeated = 2 * facts.heads * facts.head_size * cells.slots * cells.width * size
    prompt = min(PREFILL_TOKENS, cells.slots * where.rows.longest.prompt)
    ahead = models.tracer.trace_flat(where.ask, prompt + 1, 1).forward
    return [
        *there,
        *_mirror(facts, where),
        Item("keys and values", cache, f"{cells.slots} completions x {cells.width:,} tokens, native engine"),
        Item("attention", repeated if facts.heads > facts.key_heads else cache // facts.layers, "of one layer"),
        Item("prefill", int(ahead), f"{prompt:,} prompt tokens at a time"),
        Item("logits", LOGITS_COPIES * cells.slots * facts.vocabulary * FP32, f"{cells.slots} rows, sampled from"),
    ]


def _mirror(facts: Facts, where: Situation) -> list[Item]:
    """`posttrain.models.sharding.mirror`: of a model that ranks share, what samples, or is pushed by rank 0, is a whole
    copy."""
    if where.shards == 1:
        return []
    return [Item("copy that samples", facts.total * FP32, "the whole model, plain")]


def _sync(facts: Facts, where: Situation) -> Item:
    """Weights reach an engine of its own one whole tensor after another."""
    return Item("weight sync", facts.largest * FP32, "the largest tensor, whole")
