"""What a stage's result depends on, as one hash: a finished stage is not run again while it stays the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.config.schema import data_of
from posttrain.config.settings import Data
from posttrain.config.stages import StageSettings

VERSION = 1
"""Raised when stages begin to compute something else from the same settings."""

WITHOUT_EFFECT = ("name", "log", "modules", "checkpoint", "preflight", "audit", "alarms")
"""Keys that change what is written or shown, not the weights."""
COMPUTE_WITHOUT_EFFECT = ("tokens_per_microbatch", "activation_checkpointing", "logprobs", "device")
"""How the same numbers are computed: a run that was moved to a machine with less memory need not begin anew."""
EXPORT_WITHOUT_EFFECT = ("save",)
"""Whether there is a folder at all: a stage that is done and has none is run again where one is asked for."""

KEPT = "keep"
"""Of `examine`: which of a run's weights it ends with, and no step of it. A run may be resumed with the other, and a
finished stage remembers which it was (`examine_keep` of stage.json)."""
ENGINE_WITH_EFFECT = "kind"
"""Of `engine`: where a server is, or how much fits into memory, changes no result."""


def stage_fingerprint(stage: StageSettings, *, data: Sequence[str], start_model: str, seed: int) -> str:
    """A sha256 over everything that the stage's result depends on.

    Args:
        data: content hashes of the stage's data, in the order of `data_of(stage)`. File names do not count.
        start_model: the fingerprint of the weights that it starts from.
    """
    settings = stage.model_dump(mode="json", exclude=set(WITHOUT_EFFECT))
    for key in data_of(stage):
        # Content counts, not the path: a data set that was moved is the same data set.
        settings[key] = {name: value for name, value in settings[key].items() if name not in ("path", "stage")}
        if settings[key].get("longest_row_mb") == Data.model_fields["longest_row_mb"].default:
            del settings[key]["longest_row_mb"]  # younger than the hash: stages of older runs keep theirs
    template = Path(settings.get("encoding", {}).get("template", ""))
    if template.is_file():  # what it holds counts, wherever it lies
        settings["encoding"]["template"] = hashlib.sha256(template.read_bytes()).hexdigest()
    if "engine" in settings:
        settings["engine"] = settings["engine"][ENGINE_WITH_EFFECT]
    if "examine" in settings:
        settings["examine"][KEPT] = "best"  # the default, so that stages of older runs keep their hash
    for group, keys in (("compute", COMPUTE_WITHOUT_EFFECT), ("export", EXPORT_WITHOUT_EFFECT)):
        for key in keys:
            settings.get(group, {}).pop(key, None)
    inputs = {"version": VERSION, "stage": settings, "data": list(data), "start_model": start_model, "seed": seed}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def what_changed(before: Mapping[str, Any], after: StageSettings) -> list[str]:
    """The keys whose effect differs between a stage's stored config and this one: ["beta", "optimizer.betas"].

    Args:
        before: the stored config.yaml, parsed.
    """
    return sorted(_differences(dict(before), after.model_dump(mode="json"), ""))


def _differences(before: Any, after: Any, path: str) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        # Nested, so that the message names `optimizer.clip_norm` and not the whole group.
        changes = []
        for key in before.keys() | after.keys():
            inner = f"{path}.{key}" if path else key
            ignored = key in WITHOUT_EFFECT if not path else path == "compute" and key in COMPUTE_WITHOUT_EFFECT
            ignored = ignored or (path == "export" and key in EXPORT_WITHOUT_EFFECT)
            ignored = ignored or (path == "engine" and key != ENGINE_WITH_EFFECT)
            ignored = ignored or (path == "examine" and key == KEPT)
            if not ignored:
                changes += _differences(before.get(key), after.get(key), inner)
        return changes
    return [] if before == after else [path]
