"""The model that trains, at both ends of a stage: loaded with the stage's adapter, and exported as it was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from posttrain.config.adapters import AdaLoRA
from posttrain.config.base import TrainingStage
from posttrain.data.speech import Speech
from posttrain.errors import ConfigError
from posttrain.models.folders.export import ExportSettings
from posttrain.models.folders.export_shared import begin_shared_save as begin_save
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.models.folders.source import resolve
from posttrain.models.sharding.copies import twin
from posttrain.models.sharding.mesh import Sharding, sharding_of
from posttrain.models.sharding.wrap import park
from posttrain.parallel.world import world
from posttrain.runs.progress import Progress
from posttrain.training.checks.before_loading import require_room
from posttrain.training.order import stream_seed
from posttrain.training.stages.kind import NotSaved, Pending, Prepared, StageContext


def load_policy(
    stage: TrainingStage, start: str | Path | LoadedModel, device: torch.device, seed: int, progress: Progress
) -> LoadedModel:
    """The model that trains, with the stage's adapter, in parts where ranks share it; one that is loaded already is
    taken as it is."""
    sharding = spread_of(stage, device, progress)
    if isinstance(start, LoadedModel):
        return in_parts(start, sharding, device)
    folder = resolve(start, say=progress.say).folder
    # What is free differs from rank to rank, and one that stops alone leaves the others waiting.
    with world().together("the memory that a model takes"):
        require_room(folder, stage.adapter, device, 1 if sharding is None else sharding.ranks)
    # The adapter's stream is its own: a stage with one draws the same rows as a stage without.
    loaded = load(
        start,
        adapter=stage.adapter,
        tokens=stage.tokens,
        device=device,
        seed=stream_seed(seed, "adapter"),
        say=progress.say,
        sharding=sharding,
    )
    for notice in loaded.notices:
        progress.say(notice)
    return loaded


def spread_of(stage: TrainingStage, device: torch.device, progress: Progress) -> Sharding | None:
    """How the stage's models lie on the ranks of this job; every rank asks together.

    Raises:
        ConfigError: the mesh is not as large as the job, or the adapter cannot be trained in parts.
    """
    if stage.compute.offload != "none" and device.type == "cpu":
        progress.say(f"compute.offload: {stage.compute.offload} moves nothing, for the model is on the CPU already")
    if stage.compute.offload_activations and device.type == "cpu":
        progress.say(
            "compute.offload_activations moves nothing, for the activations are in the machine's memory already"
        )
    sharding = sharding_of(stage.compute, device, autocast_of(stage.compute.precision, device))
    if sharding is not None and isinstance(stage.adapter, AdaLoRA):
        raise ConfigError(
            "AdaLoRA cannot be trained in parts: its penalty and its scores are of whole factors",
            where="adapter.kind",
            found=f"adalora with {sharding.ranks} ranks to a model",
            expected="another kind, or a whole model on each rank",
            remedy="write `adapter: {kind: lora}`, or `compute: {mesh: {shard: 1, replicate: N}}`",
        )
    return sharding


def in_parts(loaded: LoadedModel, sharding: Sharding | None, device: torch.device) -> LoadedModel:
    """A model in memory, in place: of one that an earlier stage trained in parts the structure is new, the weights are
    its own."""
    if loaded.sharding is not None:
        loaded.model = twin(loaded.model, lambda own: own)
    if sharding is None:
        loaded.model.to(device)
    else:
        park(loaded.model, sharding)
    loaded.sharding = sharding
    return loaded


def autocast_of(precision: str, device: torch.device) -> torch.dtype | None:
    """bf16 where the hardware gains by it: CUDA cards that have it. CPUs without AMX or AVX512-BF16 lose."""
    if precision == "bf16":
        return torch.bfloat16
    gains = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if precision == "auto" and gains else None


def export_settings(ctx: StageContext[Any], prepared: Prepared[Any], steps: int) -> ExportSettings:
    """What the model's folder says beside its weights, with the tokenizer's template set to the one it trained under.

    A model that is served under another template than it was trained with answers as another model.
    """
    encoder, work = prepared.inputs.encoder, prepared.work
    if encoder.settings.template != "raw":
        prepared.loaded.tokenizer.chat_template = encoder.chat_template
    # Under `raw` the tokenizer may have a template that nobody trained it with: the record says what to do.
    speech = Speech.of(encoder)
    info = {"stage": ctx.folder.name, "method": ctx.stage.method, "identity": work.identity, "steps": steps}
    return ExportSettings(prepared.merge, speech.stop_ids, speech, prepared.inputs.prompts, info=info)


def export_policy(ctx: StageContext[Any], prepared: Prepared[Any], steps: int) -> Pending:
    """Begin to save the policy; the save is read back while the suites ask it."""
    loaded = prepared.loaded
    # Also where nothing is saved: it sets the tokenizer's template, under which the suites ask.
    settings = export_settings(ctx, prepared, steps)
    # The model in memory is another one now, and a next stage may start from it.
    loaded.speech = Speech.of(prepared.inputs.encoder)
    if not ctx.stage.keeps_output:
        return NotSaved(ctx.folder.name)
    with ctx.progress.phase(f"{ctx.folder.name}: saving and reading back", unit="files"):
        return begin_save(
            prepared.work.policy.model,
            loaded.tokenizer,
            ctx.folder.model,
            settings,
            base=loaded.base,
            sharding=loaded.sharding,
        )
