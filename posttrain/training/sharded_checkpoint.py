"""Checkpoints of a model that several ranks share: each writes its part, while the training goes on.

    writing = begin(folder, step, tensors, state, keep)   # copies what moves, on every rank, and returns
    ...                                                   # steps
    if writing.is_done(): path = writing.result()         # on every rank, at the end of the same step

    checkpoints/step-00000050/
        shards/shard-00001-model-00001-of-00002.safetensors    rank 0's part of the weights
        shards/shard-00001-model-00002-of-00002.safetensors    rank 0's part of the moments
        ...                                                    each part says where in its tensor it lies
        state.json, manifest.json                              as of one process (`checkpoint`)

`torch.distributed.checkpoint` says who writes what and writes it, as safetensors: no file of a checkpoint can run code.
All of it happens in a thread of each rank, over a process group of its own, in this order:

    parts under a temporary name -> hashes, by whoever wrote -> state, manifest, name -> read back -> older ones removed

So a rank that dies at any moment leaves the checkpoints that were there, or these and a whole one.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint import HuggingFaceStorageWriter, SavePlan, SavePlanner, save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from posttrain.errors import CheckpointError, PosttrainError, RankError
from posttrain.models.sharding.shards import moved
from posttrain.parallel.world import World, world
from posttrain.runs.checkpoints import SHARDS, Identity, contents, file_identity, verify
from posttrain.runs.disk import sync_folder
from posttrain.runs.disk import writing as refusals_of
from posttrain.training.checkpoint_folder import Draft

T = TypeVar("T")

FILE_BYTES = 200_000_000
"""Of a rank's file, about: torch makes a file in memory, twice, before it writes it."""


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether ranks hold different parts of what a checkpoint keeps."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


def begin(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int) -> Writing:
    """Copy what moves and begin to write it. Collective.

    Args:
        tensors: weights by name and moments by "NAME|MOMENT"; sharded ones, and plain ones that all ranks have alike.
        keep: how many checkpoints stay, this one included.
    """
    # Copied to the CPU here, for the next step changes them in place. Not by torch's own stager: it copies whole
    # storages, and fails on that of a rank which has no row of a tensor.
    staged = {name: moved(tensor.detach(), torch.device("cpu"), copy=True) for name, tensor in tensors.items()}
    # A group of its own: its messages must not meet those of the steps that are taken meanwhile.
    group = dist.new_group(backend="gloo")
    return Writing(Draft(folder, step, json.dumps({**state, "step": step}, indent=1), keep), staged, world(), group)


class Writing:
    """A checkpoint on its way; made by `begin`, on every rank alike."""

    def __init__(self, draft: Draft, tensors: dict[str, Any], here: World, group: Any):
        self._draft, self._tensors, self._here, self._group = draft, tensors, here, group
        self._error: PosttrainError | None = None
        # A daemon: where another rank died, this one has nobody to finish with, and must be able to end.
        self._thread = threading.Thread(target=self._write, name=f"checkpoint of step {draft.step}", daemon=True)
        self._thread.start()

    def is_done(self) -> bool:
        """Whether it is over on every rank, well or not. Collective."""
        return not any(self._here.gather(self._thread.is_alive()))

    def result(self) -> Path:
        """Wait for it. Collective.

        Raises:
            SourceError: a rank's disk refused a file; nothing has the checkpoint's name.
            CheckpointError: it is on the disk, and not as it was written.
        """
        self._thread.join()
        try:
            with self._here.together("writing the checkpoint"):
                if self._error is not None:
                    raise self._error
        finally:
            # After all threads are over: the group is theirs.
            dist.destroy_process_group(self._group)
        return self._draft.target

    # ------------------------------------------------------------ in the thread

    def _write(self) -> None:
        try:
            self._write_parts()
        # The boundary: nobody is above a thread, and an error that was lost here would count as a checkpoint. Every
        # kind of it, for torch's own is no `Exception`.
        except BaseException as error:
            cause = _of_lowest_rank(error) if isinstance(error, CheckpointException) else error
            self._error = _named(cause, self._draft.target, self._here.rank)
        finally:
            self._tensors = {}  # as large as the rank's share of the model
        if self._error is not None and self._here.is_main:
            # Half a checkpoint of a large model fills the disk for whatever is saved next.
            shutil.rmtree(self._draft.temporary, ignore_errors=True)

    def _write_parts(self) -> None:
        draft, is_main = self._draft, self._here.is_main
        # Rank 0 first: nobody may write into a folder that is still to be emptied.
        self._together(lambda: draft.clear() if is_main else None)
        parts = draft.temporary / SHARDS
        writer = _Writer(parts, draft.target, self._here.rank, file_of(self._tensors, self._here.size))
        save(self._tensors, storage_writer=writer, process_group=self._group)
        own = sorted(parts.glob(f"shard-{self._here.rank + 1:05d}-*"))
        written = self._together(lambda: {f"{SHARDS}/{path.name}": file_identity(path) for path in own})
        self._together(
            lambda: _publish(draft, {k: v for part in written for k, v in part.items()}) if is_main else None
        )
        # Read back under its name, before the older ones go: a bad block would show at the resume only.
        self._together(lambda: _verify(draft.target, written[self._here.rank]))
        if is_main:
            draft.remove_older()

    def _together(self, part: Callable[[], T]) -> list[T]:
        """What `part` gives on each rank, in rank order; the error of one is raised by all."""
        value: Any = None
        error: PosttrainError | None = None
        try:
            value = part()
        except Exception as failure:  # the boundary: a rank that left here would leave the others waiting
            error = _named(failure, self._draft.target, self._here.rank)
        found: list[Any] = [None] * self._here.size
        dist.all_gather_object(found, (value, error), group=self._group)
        for _, theirs in found:
            if theirs is not None:
                raise theirs
        return [theirs for theirs, _ in found]


def _publish(draft: Draft, manifest: Mapping[str, Identity]) -> None:
    """
    Raises:
        CheckpointError: a rank's file cannot be seen from rank 0: the machines write to disks of their own.
    """
    for name, entry in manifest.items():
        path = draft.temporary / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise CheckpointError(
                "a part that another rank wrote is not there",
                where=path,
                expected="a run folder that lies on a disk which all processes share",
                remedy="give a path on such a disk (--out)",
            )
    sync_folder(draft.temporary / SHARDS)
    draft.publish(manifest)


def _verify(target: Path, own: Mapping[str, Identity]) -> None:
    for name, entry in own.items():
        verify(target, name, entry)
    contents(target)


class _Writer(HuggingFaceStorageWriter):
    """torch's own, for parts; what the system refuses is named on the rank that it is refused on."""

    def __init__(self, folder: Path, target: Path, rank: int, files: dict[str, int]):
        super().__init__(str(folder), fqn_to_index_mapping=files, save_distributed=True)
        self._target, self._rank = target, rank

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:  # the boundary: torch gives it to the other ranks
            raise _named(error, self._target, self._rank) from error


def file_of(tensors: Mapping[str, Tensor], ranks: int, most: int = FILE_BYTES) -> dict[str, int]:
    """Which of a rank's files holds each tensor, from 1, the same on all ranks: weights apart from moments, so that a
    reader of weights opens no other, and about `most` bytes in each.

    file_of({"w": ones(4), "w|exp_avg": ones(4)}, ranks=2) == {"w": 1, "w|exp_avg": 2}
    """
    files: dict[str, int] = {}
    number, filled = 1, 0
    for is_moment in (False, True):
        if filled:
            number, filled = number + 1, 0
        for name, tensor in tensors.items():
            if ("|" in name) is not is_moment:
                continue
            # Of the whole tensor: parts differ from rank to rank, and each has to come to the same files.
            size = tensor.numel() * tensor.element_size() // ranks
            if filled and filled + size > most:
                number, filled = number + 1, 0
            files[name], filled = number, filled + max(size, 1)
    return files


def _named(error: BaseException, target: Path, rank: int) -> PosttrainError:
    """The error in posttrain's words, which travels to other ranks."""
    try:
        with refusals_of(target):
            raise error
    except PosttrainError as named:
        return named
    except BaseException as other:  # no refusal of the system
        return RankError(
            f"rank {rank} could not write its part of the checkpoint: {type(other).__name__}: {other}",
            where=target,
            remedy="the older checkpoints are as they were; run the same command again to go on from the newest",
        )


def _of_lowest_rank(error: CheckpointException) -> BaseException:
    """What happened, without torch's frame around it."""
    return error.failures[min(error.failures)][0]
