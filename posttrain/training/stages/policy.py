"""The model that trains, at both ends of a stage: loaded with the stage's adapter, and exported as it was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from posttrain.config.base import TrainingStage
from posttrain.data.speech import Speech
from posttrain.models.folders.export import ExportSettings, begin_save
from posttrain.models.folders.loading import LoadedModel, load
from posttrain.models.folders.source import resolve
from posttrain.parallel.world import world
from posttrain.runs.progress import Progress
from posttrain.training.checks.before_loading import require_room
from posttrain.training.order import stream_seed
from posttrain.training.stages.kind import NotSaved, Pending, Prepared, SavedByMain, StageContext


def load_policy(
    stage: TrainingStage, start: str | Path | LoadedModel, device: torch.device, seed: int, progress: Progress
) -> LoadedModel:
    """The model that trains, with the stage's adapter; one that is loaded already is taken as it is."""
    if isinstance(start, LoadedModel):
        start.model.to(device)
        return start
    require_room(resolve(start, say=progress.say).folder, stage.adapter, device)
    # The adapter's stream is its own: a stage with one draws the same rows as a stage without.
    loaded = load(
        start,
        adapter=stage.adapter,
        tokens=stage.tokens,
        device=device,
        seed=stream_seed(seed, "adapter"),
        say=progress.say,
    )
    for notice in loaded.notices:
        progress.say(notice)
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
        model = prepared.work.policy.model
        return saved_by_main(lambda: begin_save(model, loaded.tokenizer, ctx.folder.model, settings, base=loaded.base))


def saved_by_main(begin: Callable[[], Pending]) -> Pending:
    """A save that rank 0 begins, for all ranks; on the others it is one of nothing, for which nobody waits."""
    here = world()
    with here.together("saving the model"):
        return begin() if here.is_main else SavedByMain()
