"""What a stage's result depends on, as one hash: a finished stage is not run again while it stays the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.config.custom import CustomStage
from posttrain.config.functions import source_fingerprint
from posttrain.config.repairs import RepairSettings
from posttrain.config.schema import data_of
from posttrain.config.settings import Data
from posttrain.config.stages import StageSettings
from posttrain.config.suite_settings import without_empty_stop
from posttrain.runs.differences import (
    COMPUTE_WITHOUT_EFFECT,
    ENGINE_WITH_EFFECT,
    EXPORT_WITHOUT_EFFECT,
    KEPT,
    TEACHER_WITHOUT_EFFECT,
    TEACHERS,
    WITHOUT_EFFECT,
    Difference,
    rollout_with_effect,
    setting_differences,
)

NO_REPAIRS = RepairSettings().model_dump(mode="json")
CHOICES_YOUNGER = ("token_mask", "sequence_mask", "outliers", "proximal")
"""Choices that came after the hash: stages of older runs, which made none of them, keep theirs."""
VERSION = 1
"""Raised when stages begin to compute something else from the same settings."""


def stage_fingerprint(
    stage: StageSettings, *, data: Sequence[str], start_model: str, seed: int, split_seed: int | None = None
) -> str:
    """A sha256 over everything that the stage's result depends on.

    Args:
        data: content hashes of the stage's data, in the order of `data_of(stage)`. File names do not count.
        start_model: the fingerprint of the weights that it starts from.
        split_seed: that a held-out share is drawn from; None: `seed`.
    """
    settings = stage.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
    for key in data_of(stage):
        # Content counts, not the path: a data set that was moved is the same data set.
        settings[key] = _without_places(settings[key])
        if sources := settings[key].get("sources"):
            settings[key]["sources"] = [_without_places(source) for source in sources]
        else:
            for younger in ("sources", "mixing", "temperature", "epoch"):
                settings[key].pop(younger, None)
    choices = settings.get("choices") or {}
    for younger in CHOICES_YOUNGER:
        if younger in choices and choices[younger] is None:
            del choices[younger]
    if not settings.get("tokens"):
        settings.pop("tokens", None)  # younger than the hash, too
    for group in (settings, settings.get("examine") or {}):
        if group.get("sampling"):
            group["sampling"] = without_empty_stop(group["sampling"])
    template = Path(settings.get("encoding", {}).get("template", ""))
    if template.is_file():  # what it holds counts, wherever it lies
        settings["encoding"]["template"] = hashlib.sha256(template.read_bytes()).hexdigest()
    if (own := objective_fingerprint(stage)) is not None:  # its name may stay while its formula changes
        settings["objective"] = own
    if "engine" in settings:
        settings["engine"] = settings["engine"][ENGINE_WITH_EFFECT]
    if "rollout" in settings and (rollout := rollout_with_effect(settings.pop("rollout"))) is not None:
        settings["rollout"] = rollout  # in turns it is left out: stages of older runs keep their hash
    if "examine" in settings:
        settings["examine"][KEPT] = "best"  # the default, so that stages of older runs keep their hash
    for group, keys in (("compute", COMPUTE_WITHOUT_EFFECT), ("export", EXPORT_WITHOUT_EFFECT)):
        for key in keys:
            settings.get(group, {}).pop(key, None)
    if settings.get("compute", {}).get("gather") == "auto":
        del settings["compute"]["gather"]  # younger than the hash, too
    for group in (settings, settings.get("make") or {}):
        for name in TEACHERS:
            if isinstance(teacher := group.get(name), dict):
                for key in TEACHER_WITHOUT_EFFECT:
                    teacher.pop(key, None)
    inputs = {"version": VERSION, "stage": settings, "data": list(data), "start_model": start_model, "seed": seed}
    # Only a share is drawn. And where both seeds are equal the split is the one of older runs, which had one seed for
    # both: their finished stages keep their hash.
    if split_seed not in (None, seed) and isinstance(settings.get("held_out"), float) and settings["held_out"]:
        inputs["split_seed"] = split_seed
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _without_places(data: Mapping[str, Any]) -> dict[str, Any]:
    # `rows` says which file of a stage is read, and the content of that counts.
    kept = {name: value for name, value in data.items() if name not in ("path", "stage", "rows")}
    # Younger than the hash: stages of older runs keep theirs.
    for name, unset in (
        ("longest_row_mb", Data.model_fields["longest_row_mb"].default),
        ("repairs", NO_REPAIRS),
        ("skip", 0),
    ):
        if kept.get(name) == unset:
            del kept[name]
    return kept


def objective_fingerprint(stage: StageSettings) -> str | None:
    """Of the source of a stage's own objective; None where the loss is one of posttrain's."""
    if not isinstance(stage, CustomStage):
        return None
    return source_fingerprint(stage.objective, None if stage.modules is None else Path(stage.modules))


def what_changed(before: Mapping[str, Any], after: StageSettings, **seeds: int) -> list[Difference]:
    """The settings whose effect differs between a stage's stored config and this one, with both values.

    Args:
        before: the stored config.yaml, parsed.
        seeds: `seed` and `split_seed` of the run as it is now; left out, they are not compared.
    """
    return setting_differences(before, {**after.model_dump(mode="json", by_alias=True), **seeds})
