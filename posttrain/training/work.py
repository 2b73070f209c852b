"""What a stage hands to the loop once it has passed its preflight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.config.adapters import AdapterSettings
from posttrain.config.base import TrainingStage
from posttrain.models.tree.model import TreeModel
from posttrain.training.checks.memory import MemoryPlan
from posttrain.training.checks.preflight import Decoder
from posttrain.training.objectives import Algorithm
from posttrain.training.source import Hooks, Source, Units
from posttrain.training.step import Reference
from posttrain.types import TokenTree


@dataclass(frozen=True, slots=True)
class Work:
    """All that a stage trains with."""

    stage: TrainingStage
    algorithm: Algorithm
    policy: TreeModel
    reference: Reference | None
    rows: Sequence[TokenTree]
    held_out: Sequence[TokenTree]
    decoder: Decoder
    tokens_per_microbatch: int
    memory: MemoryPlan | None
    seed: int
    identity: str
    """Hash of the recipe's stage, the data and the start model: a checkpoint of another identity is refused."""
    adapter: AdapterSettings | None = None
    """The record of the fresh adapter that trains."""
    source: Source | None = None
    """Where a step's trees come from; None: `rows`."""
    hooks: Hooks = field(default_factory=Hooks)
    """What the source does beside giving batches."""
    units: Units | None = None
    """The source's steps as its user counts them; None: as `rows` are counted."""
