"""The plan of a recipe: each of its stages on the cards that were asked for.

plan = pt.plan("recipe.yaml", gpus=64, gpu="h100-80gb", nodes=8)
plan.fits, plan.stages[0].memory.training.items, plan.stages[0].remedies
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.arguments import checked_text
from posttrain.config.base import StageSettings, TrainingStage
from posttrain.config.find import find_recipe
from posttrain.config.load import load_recipe
from posttrain.config.schema import Recipe
from posttrain.errors import ConfigError
from posttrain.planning.cards import DEFAULT, Card, card_named, this_cpu
from posttrain.planning.flops import Operations, operations_of
from posttrain.planning.items import MemoryPlan
from posttrain.planning.memory import WHOLE, RankMemory, Situation, rank_memory
from posttrain.planning.mesh import Mesh, mesh_of
from posttrain.planning.models import Models
from posttrain.planning.needs import needs_of
from posttrain.planning.remedies import Remedy, remedies
from posttrain.planning.rows import is_planned, rows_of
from posttrain.planning.seconds import (
    BANDWIDTH_EFFICIENCY,
    CPU_EFFICIENCY,
    MATMUL_EFFICIENCY,
    Seconds,
    Traffic,
    seconds_of,
    traffic_of,
)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage on one rank, and one step of it."""

    name: str
    method: str
    parameters: int
    trained: int
    precision: str
    mesh: Mesh
    rows: str
    """Where the lengths of rows come from."""
    longest: int
    """Tokens of the largest row's tree."""
    tokens: float
    """Of one step's trees, over all ranks."""
    memory: RankMemory
    operations: Operations
    traffic: Traffic
    seconds: Seconds
    remedies: tuple[Remedy, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.memory.fits

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds.total

    def record(self) -> dict[str, Any]:
        """For JSON: every number, and the sums."""
        found = asdict(self)
        found["fits"], found["tokens_per_second"] = self.fits, self.tokens_per_second
        found["memory"] = {
            "training": _plan_record(self.memory.training),
            "sampling": _plan_record(self.memory.sampling) if self.memory.sampling else None,
            "tokens_per_microbatch": self.memory.microbatch,
            "microbatches": self.memory.microbatches,
        }
        found["operations"]["total"] = self.operations.total
        found["traffic"]["total"] = self.traffic.total
        found["seconds"]["total"] = self.seconds.total
        return found


def _plan_record(plan: MemoryPlan) -> dict[str, Any]:
    items = [asdict(item) for item in plan.items if item.bytes]
    return {"items": items, "total_bytes": plan.total_bytes, "available_bytes": plan.available_bytes}


@dataclass(frozen=True, slots=True)
class Plan:
    """What `posttrain plan` prints, and `pt.plan` gives."""

    recipe: str
    model: str
    shape: str
    """Where the model's shape was read."""
    card: Card
    mesh: Mesh
    stages: tuple[StagePlan, ...]
    skipped: tuple[str, ...]
    """Stages that train nothing, which have no step to plan."""

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)

    @property
    def efficiency(self) -> str:
        """What the seconds stand on, in words."""
        if self.card.device == "cpu":
            return f"{CPU_EFFICIENCY:.0%} of a matrix product timed on this machine"
        return (
            f"{MATMUL_EFFICIENCY:.0%} of the peak for matrix products, {BANDWIDTH_EFFICIENCY:.0%} of the memory's "
            "speed for the rest; stated, not measured"
        )

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "recipe": self.recipe,
            "model": self.model,
            "shape": self.shape,
            "card": asdict(self.card),
            "mesh": asdict(self.mesh),
            "fits": self.fits,
            "efficiency": self.efficiency,
            "stages": [stage.record() for stage in self.stages],
            "skipped": list(self.skipped),
        }


def plan(
    recipe: Recipe | str | Path,
    *,
    overrides: Sequence[str] = (),
    gpus: int | None = None,
    gpu: str | None = None,
    nodes: int = 1,
    cpu: bool = False,
    mesh: str | None = None,
    tokens: int | None = None,
) -> Plan:
    """Memory of each rank, operations, seconds and bytes between the cards of every stage of a recipe that trains.

    No card is needed, and no weight is read.

    Args:
        recipe: a recipe, its file, or the name of one that comes with posttrain.
        overrides: settings that win over the file's: ["dpo.beta=0.2", "model=qwen3-8b"].
        gpus: cards of all machines together; without it as many as `mesh` says, else one for each machine.
        gpu: a card's name, "h100-80gb" if absent.
        nodes: machines.
        cpu: plan for this machine's CPU in place of cards.
        mesh: "shard=8,replicate=4"; without it the recipe's `compute.mesh`, whose `auto` shards within a machine and
            replicates across machines.
        tokens: of a row (of an online stage: prompt and completion), in place of what the data or `max_length` say.

    Raises:
        ConfigError: the recipe, the mesh or a length is wrong; of an unknown card, an UnknownKeyError.
        ModelError: nothing here tells the model's shape.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(find_recipe(str(recipe)), overrides)
    if cpu and gpu is not None:
        raise ConfigError(
            "a plan is for cards or for the CPU", found=f"gpu={gpu} and cpu", remedy="give one of the two"
        )
    # Before the CPU is timed and the model counted: a wrong name is told at once.
    card = card_named(checked_text("gpu", gpu or DEFAULT, DEFAULT)) if not cpu else this_cpu()
    ranks = mesh_of(mesh, gpus=gpus, nodes=nodes, device=card.device)
    models = Models(loaded.model)
    stages, skipped = [], []
    for stage in loaded.stages:
        if is_planned(stage):
            assert isinstance(stage, TrainingStage)
            text = mesh or _written(stage)
            own = mesh_of(text, gpus=gpus, nodes=nodes, device=card.device) if text else ranks
            if isinstance(stage.adapter, WHOLE) and own.shard > 1:
                own = _replicas(stage, own, text)
            where = situation_of(stage, card, own, folder=loaded.folder / stage.name, tokens=tokens)
            stages.append(plan_stage(models, where))
        else:
            skipped.append(_said(stage))
    return Plan(loaded.name, loaded.model, models.said, card, ranks, tuple(stages), tuple(skipped))


def _written(stage: TrainingStage) -> str | None:
    """The recipe's own mesh as `--mesh` takes it; the command line wins over it, as everywhere."""
    own = stage.compute.mesh
    return None if own == "auto" else f"shard={own.shard},replicate={own.replicate}"


def _replicas(stage: TrainingStage, mesh: Mesh, asked: str | None) -> Mesh:
    """The mesh of a stage that cannot be sharded, where nobody asked for another one.

    Raises:
        ConfigError: somebody did; training would refuse it.
    """
    assert stage.adapter is not None
    if asked is not None:
        raise ConfigError(
            f"a model under {stage.adapter.kind} cannot be shared between ranks",
            where=f"{stage.name}.compute.mesh",
            found=str(mesh),
            expected=f"{{shard: 1, replicate: {mesh.ranks}}}",
            remedy=f"write `--mesh shard=1,replicate={mesh.ranks}`, or `adapter: {{kind: lora}}`",
        )
    return Mesh(1, mesh.ranks, mesh.nodes)


def situation_of(
    stage: TrainingStage, card: Card, mesh: Mesh, *, folder: Path | None = None, tokens: int | None = None
) -> Situation:
    """
    Args:
        folder: the stage's, whose encoded rows say how long rows are.
        tokens: of a row, in their place.

    Raises:
        ConfigError: so many tokens have no room for a prompt.
    """
    return Situation(stage, needs_of(stage), rows_of(stage, folder, tokens), card, mesh)


def plan_stage(models: Models, where: Situation) -> StagePlan:
    """
    Raises:
        ConfigError, ModelError: the adapter or the architecture cannot be planned.
    """
    memory = rank_memory(models, where)
    operations, traffic = operations_of(models, where), traffic_of(models, where, memory)
    facts = models.facts(where.stage.adapter, where.needs.role)
    return StagePlan(
        name=where.stage.name,
        method=where.stage.method,
        parameters=facts.total,
        trained=facts.trained,
        precision=where.precision,
        mesh=where.mesh,
        rows=where.rows.said,
        longest=where.rows.longest.tokens,
        tokens=where.tokens_per_rank * where.mesh.ranks,
        memory=memory,
        operations=operations,
        traffic=traffic,
        seconds=seconds_of(models, where, memory, operations, traffic),
        remedies=remedies(models, where),
        notes=tuple(_notes(where)),
    )


def _notes(where: Situation) -> list[str]:
    notes = []
    if where.is_whole and where.mesh.ranks > 1:
        kind = where.stage.adapter.kind if where.stage.adapter else ""
        notes.append(f"{kind} is not shared between ranks: write `compute: {{mesh: {where.mesh}}}`")
    engine = where.needs.engine
    if engine is not None and engine.kind == "vllm_served":
        notes.append("the served vLLM has cards of its own, which are not in this plan")
    if where.rows_per_rank < 1:
        notes.append(f"{where.needs.prompts} rows a step leave some of {where.mesh.ranks} ranks without one")
    return notes


def _said(stage: StageSettings) -> str:
    return f"{stage.name} ({stage.method})"
