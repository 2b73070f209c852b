"""Which models a stage holds beside the one that trains, and what its steps ask of each: read off its settings.

needs = needs_of(stage, adapter_off=True)     # Needs(reference="cached", teacher=None, value="none", ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.config.adapters import AdapterSettings, Continue
from posttrain.config.base import RowStage, TrainingStage
from posttrain.config.engines import EngineSettings
from posttrain.config.online import OnlineStage, PPOStage, SamplingStage
from posttrain.config.rewards import ModelReward
from posttrain.config.stages import Reward

Reference = Literal["none", "cached", "adapter_off", "live"]
Value = Literal["none", "shared", "head", "own"]


@dataclass(frozen=True, slots=True)
class Needs:
    """Needs(role="policy", reference="live", value="none", teacher=None, judges=(), engine=None, ...)"""

    role: Literal["policy", "reward"]
    reference: Reference
    value: Value
    """PPO's value model: on the policy's backbone, a head that trains on a frozen one, or one that trains whole."""
    teacher: str | None
    judges: tuple[str, ...]
    """Reward models that share the trainer's cards."""
    engine: EngineSettings | None
    """What samples; None where rows are there before training begins."""
    samples: int
    """Completions of one step."""
    prompts: int
    """Prompts, or rows, of one step."""
    updates: int
    """How often each row of a step trains."""
    measured_again: bool
    """Whether the trainer computes the log-probs of what was sampled, to start ratios from."""
    entropy: bool
    epochs: float
    """Over which a cached reference is spread."""


def needs_of(stage: TrainingStage) -> Needs:
    teacher = vars(stage).get("teacher")
    online = stage if isinstance(stage, SamplingStage) else None
    rows = stage.rows_per_step if isinstance(stage, RowStage) else 0
    return Needs(
        role="reward" if isinstance(stage, Reward) else "policy",
        reference=_reference(stage),
        value=_value(stage),
        teacher=teacher if isinstance(teacher, str) else None,
        judges=_judges(online),
        engine=online.engine if online else None,
        samples=online.prompts_per_step * online.completions_per_prompt if online else 0,
        prompts=online.prompts_per_step if online else rows,
        updates=max(1, online.passes) if online else 1,
        measured_again=isinstance(stage, OnlineStage) and not stage.on_policy,
        entropy=isinstance(stage, OnlineStage) and bool(stage.parameters.get("entropy_weight")),
        epochs=max(1.0, stage.epochs or 1.0),
    )


def _reference(stage: TrainingStage) -> Reference:
    if isinstance(stage, SamplingStage):
        # Rows that are sampled are known to no cache.
        return _kept(stage.adapter) if stage.needs_reference else "none"
    kind = stage.reference_kind if isinstance(stage, RowStage) else None
    if kind is None:
        return "none"
    if kind == "auto":
        known = stage.epochs is None or stage.epochs >= 1
        return "cached" if known else _kept(stage.adapter)
    return "cached" if kind == "cached" else "adapter_off" if kind == "adapter_off" else "live"


def _kept(adapter: AdapterSettings | None) -> Reference:
    """How the start is kept beside the policy without a cache: a fresh adapter is switched off."""
    fresh = adapter is not None and not adapter.VIRTUAL and not isinstance(adapter, Continue)
    return "adapter_off" if fresh else "live"


def _value(stage: TrainingStage) -> Value:
    if not isinstance(stage, PPOStage):
        return "none"
    if stage.shares_value_backbone:
        return "shared"
    return "own" if stage.value_backbone == "train" else "head"


def _judges(stage: SamplingStage | None) -> tuple[str, ...]:
    rewards = stage.rewards if stage is not None else ()
    return tuple(r.model for r in rewards if isinstance(r, ModelReward) and r.device.startswith("cuda"))
