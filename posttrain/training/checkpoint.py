"""Checkpoints that are hashed, written under a temporary name, read back, and only then counted.

    checkpoints/step-00000050/
        weights.safetensors     every parameter that trains, by name (frozen weights are the start model's)
        optimizer.safetensors   Adam's moments, by parameter and moment
                                (of what trains beside the policy, a value model say, under "value::NAME")
        state.json              step, seeds, random states, threads, alarms, identities of recipe and data
        manifest.json           sha256 and size of the files above; written last

A resumed run equals the uninterrupted one bit for bit on CPU with as many threads: the order of rows is a function of
seed and step, and everything else that moves is here. So does a job of several processes, the model on each of them,
of which the first writes. Ranks that share a model write `sharded_checkpoint`; both are read here, into either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from posttrain.errors import CheckpointError, ResumeError
from posttrain.models.sharding.stored import Stored, non_finite_stored
from posttrain.parallel.world import World
from posttrain.runs.checkpoints import (
    CHECKPOINT_NAME,
    FILES,
    MANIFEST,
    Checkpoint,
    contents,
    file_identity,
    read,
    read_state,
    tensor_files,
    verify,
    whole_checkpoints,
)
from posttrain.runs.disk import writing
from posttrain.training.checkpoint_folder import Draft, put_back
from posttrain.training.optimizer import Optimizer
from posttrain.training.source import Parts


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
        return _save(folder, step, parts_of(model, optimizer, others), state, keep)


def _save(
    folder: Path, step: int, parts: dict[str, tuple[nn.Module, Optimizer]], state: Mapping[str, Any], keep: int
) -> Path:
    record = {"random_state": random_state(), **state, "step": step, "threads": torch.get_num_threads()}
    draft = Draft(folder, step, json.dumps(record, indent=1), keep)
    draft.clear()
    tensors = tensors_of(parts)
    for name, is_moment in ((FILES[0], False), (FILES[1], True)):
        held = {key: tensor.cpu().contiguous() for key, tensor in tensors.items() if ("|" in key) is is_moment}
        save_file(held, draft.temporary / name)
    draft.publish({name: file_identity(draft.temporary / name) for name in FILES[:2]})
    # Read back from the disk, before the older ones go: a full disk or a bad block would show at the resume only.
    read(draft.target)
    draft.remove_older()
    return draft.target


def tensors_of(parts: Mapping[str, tuple[nn.Module, Optimizer]]) -> dict[str, Tensor]:
    """All that a checkpoint keeps of them: weights by name, then moments by "NAME|MOMENT"; no copies."""
    # Frozen weights are the start model's, whose fingerprint is part of the run's identity.
    tensors: dict[str, Tensor] = {name: p.detach() for name, p in _trainable(parts).items()}
    for prefix, (_, optimizer) in parts.items():
        for name, values in optimizer.state_dict().items():
            tensors |= {f"{prefix}{name}|{key}": value.detach() for key, value in values.items()}
    return tensors


def newest(folder: Path) -> Path | None:
    """The newest checkpoint, not verified; what a kill left aside is put back first. None if there is none."""
    put_back(folder)
    paths = whole_checkpoints(folder)
    return paths[-1] if paths else None


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, verified; None if there is none.

    Raises:
        CheckpointError: the newest one is torn or altered. It is not skipped in silence: an older one would train the
            same rows again without anybody knowing.
    """
    path = newest(folder)
    return None if path is None else read(path)


def read_together(path: Path, here: World) -> tuple[Checkpoint, list[str]]:
    """The checkpoint, verified, and the names in it that are not finite; each rank reads some of the files. Collective.

    Raises:
        CheckpointError: it is torn or altered.
    """
    manifest = here.agreed(lambda: contents(path))

    def checked(name: str) -> list[str]:
        verify(path, name, manifest[name])
        return non_finite_stored([path / name]) if name.endswith(".safetensors") else []

    bad = here.spread(checked, list(manifest), cost=lambda name: float(manifest[name]["bytes"]))
    state = here.agreed(lambda: read_state(path))
    return state, list(dict.fromkeys(name for names in bad for name in names))


def non_finite(path: Path) -> list[str]:
    """Names of the weights and moments of a checkpoint on disk that hold a NaN or an infinity."""
    return non_finite_stored(tensor_files(path))


def latest_finite(folder: Path) -> Path | None:
    """The newest checkpoint whose every weight and moment is a number; None if there is none."""
    return next(
        (path for path in reversed(whole_checkpoints(folder)) if (path / MANIFEST).exists() and not non_finite(path)),
        None,
    )


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, others: Parts = MappingProxyType({})
) -> None:
    """Put weights, moments and the first process's random state back, whichever number of processes saved them: of
    what is sharded now, each rank reads its part. Not collective, but for the errors that a rank meets alone.

    Raises:
        CheckpointError: a weight or a moment in it is NaN or infinite: every step from there would be, too.
        ResumeError: the checkpoint's parameters are not the ones that train now.
    """
    stored = Stored(checkpoint.path)
    parts = parts_of(model, optimizer, others)
    trainable = _trainable(parts)
    _require_same(checkpoint, stored, trainable)
    stored.load({name: parameter.detach() for name, parameter in trainable.items()})
    moments: dict[str, dict[str, dict[str, Tensor]]] = {prefix: {} for prefix in parts}
    empty: dict[str, Tensor] = {}
    for key, kind in stored.kinds.items():
        if "|" not in key:
            continue
        name, moment = key.rsplit("|", 1)
        prefix = next((part for part in parts if part and name.startswith(part)), "")
        parameter = trainable.get(name)
        # As sharded as its parameter; a count of steps is a plain number on every rank.
        if parameter is not None and kind.shape and kind.shape == tuple(parameter.shape):
            empty[key] = torch.empty_like(parameter, dtype=kind.dtype).detach()
        else:
            empty[key] = torch.empty(kind.shape, dtype=kind.dtype)
        moments[prefix].setdefault(name.removeprefix(prefix), {})[moment] = empty[key]
    stored.load(empty)
    for prefix, (_, optimizer) in parts.items():
        optimizer.load_state_dict(moments[prefix])
    restore_random_state(checkpoint.state["random_state"])


def require_finite(checkpoint: Path, bad: Sequence[str]) -> None:
    """
    Raises:
        CheckpointError: there are names in `bad`; it says from which checkpoint the run can go on.
    """
    # One NaN in a moment spreads to every weight at the next update.
    if not bad:
        return
    finite = latest_finite(checkpoint.parent)
    newer = [path.name for path in whole_checkpoints(checkpoint.parent) if finite is None or path.name > finite.name]
    raise CheckpointError(
        f"{len(bad)} tensors of the checkpoint are not finite; the first is {bad[0]}",
        where=checkpoint,
        remedy="start anew with --fresh and a lower learning rate"
        if finite is None
        else f"remove {', '.join(newer)} to go on from {finite.name}, which is finite",
    )


def _require_same(checkpoint: Checkpoint, stored: Stored, trainable: Mapping[str, nn.Parameter]) -> None:
    weights = {name: kind for name, kind in stored.kinds.items() if "|" not in name}
    remedy = "resume with the adapter and model the run began with, or start anew with --fresh"
    # By name on both sides: a parameter that is silently left out would keep its start value.
    if set(weights) != set(trainable):
        differing = sorted(set(weights) ^ set(trainable))
        raise ResumeError(
            f"{len(differing)} parameters train now or trained then, but not both; the first is {differing[0]}",
            where=checkpoint.path,
            remedy=remedy,
        )
    for name, parameter in trainable.items():
        if weights[name].shape != tuple(parameter.shape):
            raise ResumeError(
                f"{name} has another shape than it had when the checkpoint was saved",
                where=checkpoint.path,
                found=f"{weights[name].shape} then, {tuple(parameter.shape)} now",
                remedy=remedy,
            )


def parts_of(model: nn.Module, optimizer: Optimizer, others: Parts) -> dict[str, tuple[nn.Module, Optimizer]]:
    """All that trains, by the prefix of its names; the policy's have none."""
    return {"": (model, optimizer), **{f"{name}::": part for name, part in others.items()}}


def _trainable(parts: Mapping[str, tuple[nn.Module, Optimizer]]) -> dict[str, nn.Parameter]:
    # The optimizer's own: the modules may hold whole weights at the moment, gathered from the shards that train.
    return {prefix + name: p for prefix, (_, optimizer) in parts.items() for name, p in optimizer.named}


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
