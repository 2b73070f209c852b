"""The last checkpoints of a stage as one model: the mean of their weights, over what was frozen.

    model = open_checkpoints(Path("runs/mine/sft"), CheckpointAverage(last=5), open_source, "sft", scratch)

Soups of one run: all alike (LAWA, Kaddour 2022, arXiv:2209.14981), or as an exponential moving average; which share
each has says `CheckpointAverage.weights`.

Checkpoints of an adapter are folded into their start one by one, and the whole weights are averaged: the mean of the
products B_i A_i is not the product of the means of B_i and A_i.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from posttrain.config.adapters import ADAPTERS, AdapterSettings
from posttrain.config.merging import CheckpointAverage
from posttrain.config.yaml_text import parse
from posttrain.errors import ConfigError, PosttrainError
from posttrain.models.adapters.facts import adapter_facts
from posttrain.models.adapters.folding import merged_copy
from posttrain.models.folders.loading import load, resolve
from posttrain.models.folders.quiet import quiet
from posttrain.models.folders.shard_files import ShardWriter
from posttrain.models.folders.spoken import speech_of
from posttrain.models.folders.tokenizers import has_tokenizer, load_tokenizer
from posttrain.models.merging.inputs import OpenModel, open_overlay
from posttrain.models.sharding.stored import Stored
from posttrain.runs.checkpoints import FILES, is_in_parts, read, whole_checkpoints
from posttrain.runs.folder import StageFolder

FOLDED = ("lora", "ia3", "oft")
"""Adapters that are the sum or product of their weights and nothing else. AdaLoRA's ranks are in no checkpoint's
weights, and QLoRA's base would be quantised again."""


def open_checkpoints(
    stage: Path,
    average: CheckpointAverage,
    open_start: Callable[[str | Path], OpenModel],
    name: str,
    scratch: Callable[[], Path],
) -> OpenModel:
    """The mean of a stage's checkpoints, to be read like one model.

    Args:
        stage: the stage's folder, with stage.json and checkpoints/; its model folder stands for it too.
        open_start: opens what the stage started from, whose config, tokenizer and frozen weights count.
        scratch: makes an empty folder for the folded mean of an adapter's checkpoints.

    Raises:
        ConfigError: no checkpoints there, fewer than were asked for, or those of an adapter that cannot be folded.
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
            remedy="train with `checkpoint: {every_steps: STEPS, keep: COUNT}`, or ask for fewer",
        )
    chosen = [read(path).path for path in paths[-wanted:]]
    start = folder.stage().start_model
    if start is None or start.path is None:
        raise ConfigError(
            "stage.json does not say what the stage started from",
            where=folder.path,
            remedy="merge the stage's model folder, or run the stage again",
        )
    shares = average.weights(len(chosen))
    label = f"{name}: {len(chosen)} checkpoints"
    try:
        if (adapter := _adapter_of(folder)) is not None:
            place = scratch()
            _fold_mean(adapter, start.path, chosen, shares, place, scratch)
            said = f"the adapters of {len(chosen)} checkpoints, each folded into {start.path}"
            folded = replace(open_start(place), name=label, source=resolve(start.path), converted=said)
            return _as_trained(folded, folder, start.path)
        model = open_start(start.path)
    except PosttrainError as error:
        error.where = error.where or f"{folder.path}, whose checkpoints lie over {start.path}"
        raise
    parts = [open_overlay(model, _weights_of(path, scratch), f"{name}/{path.name}") for path in chosen]
    own = replace(parts[-1], name=label, averaged=tuple(zip(shares, parts, strict=True)))
    return _as_trained(own, folder, start.path)


def _weights_of(checkpoint: Path, scratch: Callable[[], Path]) -> Path:
    """A file with the checkpoint's weights, whole and by name: its own, or one that the parts of several ranks are put
    together in, a tensor at a time."""
    if not is_in_parts(checkpoint):
        return checkpoint / FILES[0]
    stored = Stored(checkpoint)
    kinds = {name: (kind.shape, kind.dtype) for name, kind in sorted(stored.kinds.items()) if "|" not in name}
    kinds = dict(
        sorted(kinds.items(), key=lambda item: -item[1][1].itemsize)
    )  # as a reader that maps the file wants it
    place = scratch()
    writer = ShardWriter(place, kinds, shard_bytes=sys.maxsize)
    try:
        for name in kinds:
            writer.write(name, stored.read(name))
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    (path,) = place.iterdir()
    return path


def _as_trained(model: OpenModel, folder: StageFolder, start: str) -> OpenModel:
    """Spoken to as its stage trained it, which the stage's model folder says; without one, as the start."""
    source = resolve(folder.model if has_tokenizer(folder.model) else start)
    tokenizer = load_tokenizer(source.folder) if has_tokenizer(source.folder) else model.tokenizer
    return replace(model, speech=speech_of(source), tokenizer=tokenizer)


# ---------------------------------------------------------------- checkpoints of an adapter


def _adapter_of(folder: StageFolder) -> AdapterSettings | None:
    """The adapter that the stage trained, by its config.yaml; None: all weights."""
    path = folder.path / "config.yaml"
    settings: Any = parse(path.read_text(encoding="utf-8"), str(path)).value if path.is_file() else {}
    said = settings.get("adapter") if isinstance(settings, Mapping) else None
    return None if said is None else ADAPTERS[said["kind"]].model_validate(said)


def _fold_mean(
    adapter: AdapterSettings,
    start: str,
    checkpoints: Sequence[Path],
    shares: Sequence[float],
    out: Path,
    scratch: Callable[[], Path],
) -> None:
    """Write the mean of the whole models that the checkpoints stand for; memory holds three of them in float32.

    Args:
        scratch: makes an empty folder for a checkpoint that lies in parts.
    """
    source = resolve(start)
    kind = adapter_facts(source.folder).kind if adapter.kind == "continue" else adapter.kind
    if kind not in FOLDED:
        raise ConfigError(
            f"checkpoints of an adapter of kind {kind} cannot be folded into the weights one by one",
            where=checkpoints[0].parent,
            found=f"adapter: {{kind: {kind}}}",
            expected=f"full training, or one of {', '.join(FOLDED)}",
            remedy="merge the model folders of its stages",
        )
    loaded = load(start, adapter=adapter)
    mean: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    whole: Any = None
    for share, path in zip(shares, checkpoints, strict=True):
        _put_into(loaded.model, _weights_of(path, scratch))
        whole = merged_copy(loaded.model)
        weights = whole.state_dict()
        if not first:
            first, mean = weights, {name: tensor.clone() for name, tensor in weights.items()}
            continue
        for name, tensor in weights.items():
            # As differences to the first: what is frozen stays as it is to the last bit.
            if tensor.is_floating_point():
                mean[name] += share * (tensor - first[name])
    with quiet():
        whole.load_state_dict(mean)
        whole.save_pretrained(out, max_shard_size="2GB")
        loaded.tokenizer.save_pretrained(out)


def _put_into(model: Any, checkpoint: Path) -> None:
    """The weights of a checkpoint's file in the place of the adapter's.

    Raises:
        ConfigError: it holds other parameters than the adapter has.
    """
    # A value model, say, trains beside the policy and is no part of it.
    weights = {name: tensor for name, tensor in load_file(checkpoint).items() if "::" not in name}
    trainable = {name: parameter for name, parameter in model.named_parameters() if name in weights}
    if missing := sorted(set(weights) - set(trainable)):
        raise ConfigError(
            "the checkpoint holds parameters that the stage's adapter has not",
            where=checkpoint,
            found=f"{len(missing):,} of them, `{missing[0]}` first",
            expected="the parameters that config.yaml's `adapter` trains",
            remedy="merge the stage's model folder",
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(weights[name])
