"""A stage that has passed its preflight, and what every kind of stage does to come there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from posttrain.config.base import TrainingStage
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.runs.progress import Progress
from posttrain.training.checks.preflight import Preflight
from posttrain.training.loop import Work
from posttrain.training.order import stream_seed
from posttrain.training.stages.rows import Inputs


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stage that has passed its preflight."""

    work: Work
    loaded: LoadedModel
    preflight: Preflight
    inputs: Inputs
    start_weights: str
    """Fingerprint of the weights before step 1."""
    reference_kind: str | None
    merge: bool = True
    """Whether the stage's folder will hold whole weights; else an adapter alone."""
    date: str | None = None
    """The day on which the run began, which an attempt that goes on from here keeps."""


def load_policy(
    stage: TrainingStage, start: str | Path | LoadedModel, device: torch.device, seed: int, progress: Progress
) -> LoadedModel:
    """The model that trains, with the stage's adapter; one that is loaded already is taken as it is."""
    if isinstance(start, LoadedModel):
        start.model.to(device)
        return start
    loaded = load(start, adapter=stage.adapter, device=device, seed=stream_seed(seed, "adapter"), say=progress.say)
    for notice in loaded.notices:
        progress.say(notice)
    return loaded


def autocast_of(precision: str, device: torch.device) -> torch.dtype | None:
    """bf16 where the hardware gains by it: CUDA cards that have it. CPUs without AMX or AVX512-BF16 lose."""
    if precision == "bf16":
        return torch.bfloat16
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if precision == "auto" and gains else None
