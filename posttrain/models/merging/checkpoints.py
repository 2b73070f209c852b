"""The last checkpoints of a stage as one model: the mean of their weights, over what was frozen.

    model = open_checkpoints(Path("runs/mine/sft"), CheckpointAverage(last=5), open_source)

Soups of one run: all alike (LAWA, Kaddour 2022, arXiv:2209.14981), or as an exponential moving average; which share
each has says `CheckpointAverage.weights`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from posttrain.config.merging import CheckpointAverage
from posttrain.errors import ConfigError, PosttrainError
from posttrain.models.merging.inputs import OpenModel, open_overlay
from posttrain.runs.checkpoints import FILES, read, whole_checkpoints
from posttrain.runs.folder import StageFolder


def open_checkpoints(
    stage: Path, average: CheckpointAverage, open_start: Callable[[str], OpenModel], name: str
) -> OpenModel:
    """The mean of a stage's checkpoints, to be read like one model.

    Args:
        stage: the stage's folder, with stage.json and checkpoints/; its model folder stands for it too.
        open_start: opens what the stage started from, whose config, tokenizer and frozen weights count.

    Raises:
        ConfigError: no checkpoints there, fewer than were asked for, or those of an adapter.
        CheckpointError: one is torn.
    """
    folder = StageFolder(stage.parent if stage.name == "model" and not (stage / "checkpoints").is_dir() else stage)
    paths = whole_checkpoints(folder.checkpoints)
    wanted = average.last or len(paths)
    if not paths or len(paths) < wanted or not folder.exists:
        raise ConfigError(
            f"`{name}` has not the checkpoints that are to be averaged",
            where=folder.checkpoints,
            found=f"{len(paths)} checkpoints" if folder.exists else "no stage.json beside them",
            expected=f"{wanted or 'some'} checkpoints of a stage",
            remedy="train with `checkpoint: {every: STEPS, keep: COUNT}`, or ask for fewer",
        )
    chosen = [read(path).path for path in paths[-wanted:]]
    start = folder.stage().start_model
    if start is None or start.path is None:
        raise ConfigError(
            "stage.json does not say what the stage started from",
            where=folder.path,
            remedy="merge the stage's model folder, or run the stage again",
        )
    try:
        model = open_start(start.path)
    except PosttrainError as error:
        error.where = f"{folder.path}, whose checkpoints lie over {start.path}"
        raise
    parts = [open_overlay(model, path / FILES[0], f"{name}/{path.name}") for path in chosen]
    shares = average.weights(len(parts))
    own = replace(parts[-1], name=f"{name}: {len(parts)} checkpoints")
    return replace(own, averaged=tuple(zip(shares, parts, strict=True)))
