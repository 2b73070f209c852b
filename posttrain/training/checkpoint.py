"""Checkpoints that are hashed, written under a temporary name, read back, and only then counted.

    checkpoints/step-00000050/
        weights.safetensors     every parameter that trains, by name (frozen weights are the start model's)
        optimizer.safetensors   Adam's moments, by parameter and moment
                                (of what trains beside the policy, a value model say, under "value::NAME")
        state.json              step, seeds, random states, threads, alarms, identities of recipe and data
        manifest.json           sha256 and size of the files above; written last

A resumed run equals the uninterrupted one bit for bit on CPU with as many threads: the order of rows is a function of
seed and step, and everything else that moves is here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posttrain.errors import CheckpointError, ResumeError
from posttrain.models.folders.finite import is_finite
from posttrain.runs.checkpoints import (
    CHECKPOINT_NAME,
    FILES,
    MANIFEST,
    Checkpoint,
    file_identity,
    read,
    whole_checkpoints,
)
from posttrain.runs.disk import sync_folder, writing
from posttrain.training.optimizer import Optimizer
from posttrain.training.source import Parts

ASIDE = ".replaced-"
"""Prefix of a checkpoint that makes room for a new one of the same step, until that one has been read back."""


def save(
    folder: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    keep: int,
    others: Parts = MappingProxyType({}),
) -> Path:
    """Write a checkpoint, verify what lies on disk, then drop all but the newest `keep`.

    A kill at any moment leaves either the old set or the old set and the new one.

    Raises:
        SourceError: the system refuses it: a full disk, say.
        CheckpointError: it is on the disk, and not as it was written.
    """
    with writing(folder / f"step-{step:08d}"):
        return _save(folder, step, _parts(model, optimizer, others), state, keep)


def _save(
    folder: Path, step: int, parts: dict[str, tuple[nn.Module, Optimizer]], state: Mapping[str, Any], keep: int
) -> Path:
    target = folder / f"step-{step:08d}"
    writing = folder / f".writing-step-{step:08d}"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    weights = {name: p.detach().cpu().contiguous() for name, p in _trainable(parts).items()}
    # Frozen weights are the start model's, whose fingerprint is part of the run's identity.
    save_file(weights, writing / FILES[0])
    moments = {
        f"{prefix}{name}|{key}": value.detach().cpu().contiguous()
        for prefix, (_, optimizer) in parts.items()
        for name, values in optimizer.state_dict().items()
        for key, value in values.items()
    }
    save_file(moments, writing / FILES[1])
    record = {"random_state": random_state(), **state, "step": step, "threads": torch.get_num_threads()}
    (writing / FILES[2]).write_text(json.dumps(record, indent=1), encoding="utf-8")
    # Last of all: a folder without it was torn by a kill, whatever else is in it.
    manifest = {name: file_identity(writing / name) for name in FILES}
    (writing / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in writing.iterdir():
        _sync(path)
    aside = folder / f"{ASIDE}{target.name}"
    # A run that goes on from an older checkpoint comes to a step that has one already.
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(target, aside)
    os.replace(writing, target)
    sync_folder(folder)
    # Read back from the disk, before the older ones go: a full disk or a bad block would show at the resume only.
    read(target)
    shutil.rmtree(aside, ignore_errors=True)
    for old in whole_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, verified; None if there is none.

    Raises:
        CheckpointError: the newest one is torn or altered. It is not skipped in silence: an older one would train the
            same rows again without anybody knowing.
    """
    _put_back(folder)
    paths = whole_checkpoints(folder)
    return read(paths[-1]) if paths else None


def non_finite(path: Path) -> list[str]:
    """Names of the weights and moments of a checkpoint on disk that hold a NaN or an infinity."""
    bad: list[str] = []
    for name in FILES[:2]:
        with safe_open(path / name, framework="pt") as file:
            bad += [key for key in file.keys() if not is_finite(file.get_tensor(key))]  # noqa: SIM118
    return bad


def latest_finite(folder: Path) -> Path | None:
    """The newest checkpoint whose every weight and moment is a number; None if there is none."""
    return next(
        (path for path in reversed(whole_checkpoints(folder)) if (path / MANIFEST).exists() and not non_finite(path)),
        None,
    )


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, others: Parts = MappingProxyType({})
) -> None:
    """Put weights, moments and random states back.

    Raises:
        CheckpointError: a weight or a moment in it is NaN or infinite: every step from there would be, too.
        ResumeError: the checkpoint's parameters are not the ones that train now.
    """
    # One NaN in a moment spreads to every weight at the next update.
    if bad := non_finite(checkpoint.path):
        finite = latest_finite(checkpoint.path.parent)
        newer = [
            path.name for path in whole_checkpoints(checkpoint.path.parent) if finite is None or path.name > finite.name
        ]
        raise CheckpointError(
            f"{len(bad)} tensors of the checkpoint are not finite; the first is {bad[0]}",
            where=checkpoint.path,
            remedy="start anew with --fresh and a lower learning rate"
            if finite is None
            else f"remove {', '.join(newer)} to go on from {finite.name}, which is finite",
        )
    parts = _parts(model, optimizer, others)
    weights = load_file(checkpoint.path / FILES[0])
    trainable = _trainable(parts)
    # By name on both sides: a parameter that is silently left out would keep its start value.
    if set(weights) != set(trainable):
        differing = sorted(set(weights) ^ set(trainable))
        raise ResumeError(
            f"{len(differing)} parameters train now or trained then, but not both; the first is {differing[0]}",
            where=checkpoint.path,
            remedy="resume with the adapter and model the run began with, or start anew with --fresh",
        )
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(weights[name])
    moments: dict[str, dict[str, dict[str, Tensor]]] = {prefix: {} for prefix in parts}
    for key, value in load_file(checkpoint.path / FILES[1]).items():
        name, moment = key.rsplit("|", 1)
        prefix = next((part for part in parts if part and name.startswith(part)), "")
        moments[prefix].setdefault(name.removeprefix(prefix), {})[moment] = value
    for prefix, (_, optimizer) in parts.items():
        optimizer.load_state_dict(moments[prefix])
    restore_random_state(checkpoint.state["random_state"])


def _parts(model: nn.Module, optimizer: Optimizer, others: Parts) -> dict[str, tuple[nn.Module, Optimizer]]:
    """All that trains, by the prefix of its names; the policy's have none."""
    return {"": (model, optimizer), **{f"{name}::": part for name, part in others.items()}}


def _trainable(parts: Parts) -> dict[str, nn.Parameter]:
    named = ((prefix + name, p) for prefix, (module, _) in parts.items() for name, p in module.named_parameters())
    return {name: p for name, p in named if p.requires_grad}


def _put_back(folder: Path) -> None:
    """A kill between the two renames of `save` leaves the old checkpoint aside: it gets its name again."""
    for aside in folder.glob(f"{ASIDE}step-*"):
        target = folder / aside.name.removeprefix(ASIDE)
        if target.exists():
            shutil.rmtree(aside)
        else:
            os.replace(aside, target)


def strangers(folder: Path) -> list[str]:
    """What lies among the checkpoints and is none: a user's notes, a copy under another name. Nothing reads it."""
    there = folder.iterdir() if folder.exists() else ()
    # Hidden names are drafts of our own, or the system's.
    return sorted(
        path.name
        for path in there
        if not path.name.startswith(".") and not (CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir())
    )


def random_state() -> dict[str, str]:
    """torch's generators; numpy's and Python's are not used: every other draw has a stream of its own."""
    state = {"cpu": torch.get_rng_state().numpy().tobytes().hex()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    return state


def restore_random_state(state: Mapping[str, str]) -> None:
    """What `random_state` gave."""
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["cpu"]), dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.frombuffer(bytearray.fromhex(state["cuda"]), dtype=torch.uint8))


def _sync(path: Path) -> None:
    """Down to the disk, so that a rename never outlives the data it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
