"""What to change where a stage does not fit, and by how much: every remedy is planned itself before it is told.

remedies(models, where)     # (Remedy("sft.compute.tokens_per_microbatch=4096", "no gradient ...", 61e9, True), ...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from pydantic import ValidationError

from posttrain.config.adapters import QLoRA
from posttrain.config.base import TrainingStage
from posttrain.config.engines import NativeEngineSettings, VLLMColocatedSettings
from posttrain.config.online import SamplingStage
from posttrain.errors import ConfigError, ModelError
from posttrain.planning.cards import CARDS
from posttrain.planning.memory import RankMemory, Situation, cells_of, rank_memory
from posttrain.planning.mesh import mesh_of
from posttrain.planning.models import Models
from posttrain.planning.needs import needs_of
from posttrain.planning.rows import Rows, Shape

MOST_CARDS = 1024
"""Beyond which no further cards are tried."""
LEAST_CACHE, LEAST_SHARE = 1024, 0.2
"""Of an engine: tokens of the native cache, and share of a card that vLLM can begin to work with."""
Change = Callable[[Situation], Situation | None]


@dataclass(frozen=True, slots=True)
class Remedy:
    """Remedy("compute.activation_checkpointing=true", "about a third more time", total_bytes=52e9, fits=True)."""

    change: str
    """As it is written on the command line; several settings of one remedy are side by side."""
    cost: str
    total_bytes: int
    """Of the fullest rank with it."""
    fits: bool


@dataclass(frozen=True, slots=True)
class _Knob:
    """One thing to turn: its words, what it costs, and the situation with it."""

    change: str
    cost: str
    where: Situation


def remedies(models: Models, where: Situation) -> tuple[Remedy, ...]:
    """Those that make the stage fit, the cheapest first; where none does by itself, several together; then more cards
    and larger ones. Empty where it fits as it is."""
    now = rank_memory(models, where)
    if now.fits:
        return ()
    # Each as far as it goes: a knob that is turned in steps stops at the first that fits.
    alone = [_best(models, choices) for knob in KNOBS if (choices := list(knob(models, where, now)))]
    found = [tried for _, tried in alone if tried.fits]
    if not found and (combined := _together(models, where)) is not None:
        found.append(combined)
    return (*found, *_hardware(models, where))


def _best(models: Models, choices: list[_Knob]) -> tuple[_Knob, Remedy]:
    """The first of the choices that fits, else the last."""
    for knob in choices:
        remedy = _tried(models, knob)
        if remedy.fits:
            break
    return knob, remedy


def _tried(models: Models, knob: _Knob) -> Remedy:
    memory = rank_memory(models, knob.where)
    return Remedy(knob.change, knob.cost, memory.fullest.total_bytes, memory.fits)


def _together(models: Models, where: Situation) -> Remedy | None:
    """All knobs that change no result, one after the other, until it fits; then those that do."""
    changes: list[str] = []
    costs: list[str] = []
    for knob in KNOBS:
        choices = list(knob(models, where, rank_memory(models, where)))
        if not choices:
            continue
        turned, remedy = _best(models, choices)
        where = turned.where
        changes.append(turned.change)
        costs.append(turned.cost)
        if remedy.fits:
            return Remedy(" ".join(changes), "; ".join(costs), remedy.total_bytes, True)
    return None


# ---------------------------------------------------------------- knobs


def _microbatch(models: Models, where: Situation, now: RankMemory) -> Iterator[_Knob]:
    tokens = now.microbatch // 2
    while tokens >= where.longest.tokens:
        yield from _set(where, "compute.tokens_per_microbatch", tokens, "no gradient depends on it")
        tokens //= 2
    if now.microbatch > where.longest.tokens:
        yield from _set(where, "compute.tokens_per_microbatch", where.longest.tokens, "no gradient depends on it")


def _checkpointing(models: Models, where: Situation, now: RankMemory) -> Iterator[_Knob]:
    if not where.stage.compute.activation_checkpointing:
        yield from _set(where, "compute.activation_checkpointing", True, "about a third more time")


def _activations(models: Models, where: Situation, now: RankMemory) -> Iterator[_Knob]:
    if where.card.device != "cpu" and not where.stage.compute.offload_activations:
        cost = "activations travel to the machine's memory and back"
        yield from _set(where, "compute.offload_activations", True, cost)


def _cached(models: Models, where: Situation, now: RankMemory) -> Iterator[_Knob]:
    if where.needs.reference == "live" and where.needs.engine is None:
        yield from _set(where, "reference.kind", "cached", "the start's log-probs are computed once, and kept on disk")


def _engine(models: Models, where: Situation, now: RankMemory) -> Iterator[_Knob]:
    engine = where.needs.engine
    if now.sampling is None or now.sampling.fits:
        return
    if isinstance(engine, NativeEngineSettings):
        tokens = cells_of(where).slots * cells_of(where).width // 2
        while tokens >= max(LEAST_CACHE, cells_of(where).width):
            yield from _set(where, "engine.tokens", tokens, "fewer completions at a time")
            tokens //= 2
    if isinstance(engine, VLLMColocatedSettings):
        over = now.sampling.total_bytes - now.sampling.available_bytes
        share = int(100 * (engine.gpu_memory - over / where.card.memory)) / 100
        if share >= LEAST_SHARE:
            yield from _set(where, "engine.gpu_memory", share, "fewer completions at a time")


def _sharded(models: Models, where: Situation, now: RankMemory) -> Iterator[_Knob]:
    mesh = where.mesh
    if mesh.replicate > 1 and where.card.device != "cpu" and not where.is_whole:
        wider = mesh_of(f"shard={mesh.ranks}", gpus=mesh.ranks, nodes=mesh.nodes)
        cost = "layers are gathered over the network" if mesh.nodes > 1 else "layers are gathered from all cards"
        yield _Knob(f"--mesh shard={mesh.ranks}", cost, replace(where, mesh=wider))


def _offloaded(models: Models, where: Situation, now: RankMemory) -> Iterator[_Knob]:
    if where.card.device == "cpu":
        return
    if where.stage.compute.offload == "none":
        cost = "Adam's moments lie in the machine's memory, and every update fetches them"
        yield from _set(where, "compute.offload", "optimizer", cost)
    if where.stage.compute.offload != "all" and where.shards > 1:
        cost = "weights, gradients and moments lie in the machine's memory, and every layer fetches its share"
        yield from _set(where, "compute.offload", "all", cost)


def _adapter(models: Models, where: Situation, now: RankMemory) -> Iterator[_Knob]:
    if where.stage.adapter is None:
        yield from _set(where, "adapter", {"kind": "lora", "rank": 16}, "an adapter trains in place of all weights")
    if not isinstance(where.stage.adapter, QLoRA) and where.card.device == "cuda" and where.mesh.ranks == 1:
        yield from _set(where, "adapter", {"kind": "qlora", "rank": 16}, "over a base that is rounded to 4 bits")


def _shorter(models: Models, where: Situation, now: RankMemory) -> Iterator[_Knob]:
    """Only where rows are planned as long as they may be: of encoded ones, others would be dropped."""
    if where.needs.engine is not None:
        new = where.rows.longest.responses[0] // 2
        while new >= 64:
            yield from _set(where, "sampling.max_new_tokens", new, "completions are cut there", share=0.5)
            new //= 2
        return
    length = (where.stage.max_length or where.rows.longest.tokens) // 2
    while length >= 256:
        yield from _set(where, "max_length", length, "longer rows are dropped or cut")
        length //= 2


KNOBS = (_microbatch, _checkpointing, _cached, _engine, _sharded, _activations, _offloaded, _adapter, _shorter)
"""In the order of what they cost: time first, then the network, then what is trained."""


def _set(where: Situation, key: str, value: Any, cost: str, share: float | None = None) -> Iterator[_Knob]:
    """The situation with one setting changed, if the recipe's own checks admit it."""
    stage = changed(where.stage, key, value)
    if stage is None:
        return
    rows = _cut(where, stage)
    written = str(value).lower() if isinstance(value, bool) else _flow(value)
    change = f"{where.stage.name}.{key}={written}"
    yield _Knob(change, cost, replace(where, stage=stage, needs=needs_of(stage), rows=rows))


def _flow(value: Any) -> str:
    """{"kind": "lora", "rank": 16} as YAML in one word of the shell."""
    if not isinstance(value, Mapping):
        return f"{value:,}".replace(",", "") if isinstance(value, int) else str(value)
    return "'{" + ", ".join(f"{key}: {inner}" for key, inner in value.items()) + "}'"


def changed(stage: TrainingStage, key: str, value: Any) -> TrainingStage | None:
    """The stage with a setting changed; None where its own checks refuse that."""
    values = stage.model_dump(exclude_unset=True, by_alias=True)
    *groups, last = key.split(".")
    inner = reduce(lambda group, name: group.setdefault(name, {}), groups, values)
    inner[last] = value
    try:
        return type(stage).model_validate(values)
    except (ValidationError, ConfigError):
        return None


def _cut(where: Situation, stage: TrainingStage) -> Rows:
    """The rows under the new stage's limits; none grows."""
    rows = where.rows
    if isinstance(stage, SamplingStage):
        new = stage.sampling.max_new_tokens
        cut = lambda row: Shape(row.prompt, tuple(min(new, length) for length in row.responses))  # noqa: E731
        return replace(rows, longest=cut(rows.longest), mean=cut(rows.mean))
    if stage.max_length is None or stage.max_length == where.stage.max_length:
        return rows
    cut = lambda row: _shortened(row, stage.max_length or row.tokens)  # noqa: E731
    return replace(rows, longest=cut(rows.longest), mean=cut(rows.mean))


def _shortened(row: Shape, length: int) -> Shape:
    """Each path from the prompt to an answer's end has at most `length` tokens."""
    longest = row.prompt + max(row.responses)
    if longest <= length:
        return row
    scale = length / longest
    return Shape(max(1, int(row.prompt * scale)), tuple(max(1, int(size * scale)) for size in row.responses))


# ---------------------------------------------------------------- other hardware


def _hardware(models: Models, where: Situation) -> Iterator[Remedy]:
    if where.card.device == "cpu":
        return
    if (more := fitting_cards(models, where, least=2 * where.mesh.ranks)) is not None:
        nodes = f" --nodes {more.mesh.nodes}" if more.mesh.nodes > 1 else ""
        yield _tried(
            models, _Knob(f"--gpus {more.mesh.ranks}{nodes} --mesh shard={more.mesh.shard}", "more cards", more)
        )
    larger = sorted((c for c in CARDS.values() if c.memory > where.card.memory), key=lambda card: card.memory)
    for card in larger:
        remedy = _tried(
            models, _Knob(f"--gpu {card.name}", f"{card.memory / 1e9:.0f} GB a card", replace(where, card=card))
        )
        if remedy.fits:
            yield remedy
            return


def fitting_cards(models: Models, where: Situation, *, least: int = 1, per_node: int = 8) -> Situation | None:
    """The situation on the smallest power of two of cards on which it fits, sharded within a machine, and across
    machines where that is not enough; None where no number is enough."""
    if where.is_whole and least > 1:
        return None
    ranks = least
    while ranks <= MOST_CARDS:
        nodes = max(1, ranks // per_node)
        for shard in dict.fromkeys((min(ranks, per_node), ranks)):
            mesh = mesh_of(f"shard={shard}", gpus=ranks, nodes=nodes)
            tried = replace(where, mesh=mesh)
            try:
                if rank_memory(models, tried).fits:
                    return tried
            except ModelError:
                return None
        ranks *= 2
    return None
