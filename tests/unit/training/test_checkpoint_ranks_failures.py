"""Checkpoints of several ranks while things go wrong: a full disk, a rank that is killed, files that are altered."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import time
from datetime import timedelta
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import distributed as dist

from posttrain.errors import CheckpointError, NonFiniteError, ResumeError, SourceError
from posttrain.models.sharding.stored import Stored
from posttrain.parallel.world import world
from posttrain.runs import checkpoints
from posttrain.training import checkpoint, checkpoint_folder, sharded_checkpoint
from tests.rank_training import Trained, Training, loop_of, same, state_of, train
from tests.ranks import ranks

pytestmark = pytest.mark.long


@cache
def alone() -> Trained:
    return train(Training(Path(mkdtemp())))


def stopped(folder: Path, after: int = 7) -> Path:
    """The newest checkpoint of two ranks that share a model, and were stopped."""
    ranks(2).run(train, Training(folder, shard=2, stop_after=after))
    return checkpoints.whole_checkpoints(folder / "checkpoints")[-1]


# ---------------------------------------------------------------- while others train


def late(asked: Training) -> tuple[list[tuple[int, bool, str | None]], dict[str, torch.Tensor], Trained]:
    """The first checkpoint, of step 3, is not written before step 5 was taken."""
    loop, _ = loop_of(asked)
    gate, real, take = asked.folder / "gate", sharded_checkpoint.save, loop._one_step
    seen: list[tuple[int, bool, str | None]] = []
    at_three: dict[str, torch.Tensor] = {}

    def waits(*arguments: Any, **options: Any) -> Any:
        while not gate.exists():
            time.sleep(0.01)
        return real(*arguments, **options)

    def step(phase: Any) -> None:
        take(phase)
        if loop.step == 3:
            at_three.update(state_of(loop).weights)
        if loop.step == 5:
            gate.touch()
        seen.append((loop.step, loop.saver._writing is not None, loop.saver.latest))

    sharded_checkpoint.save = waits  # type: ignore[assignment]
    loop._one_step = step  # type: ignore[method-assign]
    try:
        loop.run()
    finally:
        sharded_checkpoint.save = real
        loop.folder.close()
    return seen, at_three, state_of(loop)


def test_the_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """What is written is what was when it began, though the weights move on in place."""
    options = {"checkpoint": {"every_steps": 3, "keep": 3}}
    for seen, at_three, trained in ranks(2).run(late, Training(tmp_path, shard=2, options=options)):
        assert seen[:5] == [(1, False, None), (2, False, None), *((step, True, None) for step in (3, 4, 5))]
        assert seen[5][2] == "checkpoints/step-00000003"
        stored = Stored(tmp_path / "checkpoints" / "step-00000003")
        assert set(stored.kinds) == set(at_three)
        for name, tensor in at_three.items():
            assert torch.equal(stored.read(name), tensor), name
        same(trained, alone(), 1e-9)


# ---------------------------------------------------------------- a full disk


def full_on_rank_one(asked: Training) -> tuple[int, Exception, list[str]]:
    """Rank 1 may write no file of more than 1,000 bytes once step 3 is saved."""
    loop, heard = loop_of(asked)
    real = sharded_checkpoint._Writer.write_data

    def limited(self: Any, *arguments: Any) -> Any:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # By the checkpoint and not by the step that the loop has reached: it may be ahead of a slow thread.
        if self._rank == 1 and self._target.name != "step-00000003":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            return real(self, *arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    sharded_checkpoint._Writer.write_data = limited  # type: ignore[method-assign]
    try:
        loop.run()
    except Exception as error:
        return loop.step, error, heard.lines
    finally:
        sharded_checkpoint._Writer.write_data = real  # type: ignore[method-assign]
        loop.folder.close()
    raise AssertionError("the disk was full")


def test_a_full_disk_on_one_rank_is_told_by_all_and_costs_no_checkpoint(tmp_path: Path) -> None:
    found = ranks(2).run(full_on_rank_one, Training(tmp_path, shard=2))
    for step, error, said in found:
        assert step in (7, 8) and step == found[0][0]  # at the end of the step after the one that was saved
        assert isinstance(error, SourceError) and "step-00000006: the file cannot be written" in str(error)
        assert "File too large" in str(error) and "(--out)" in error.remedy
        assert any("could not be saved" in line for line in said)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    gone_on = ranks(2).run(train, Training(tmp_path, shard=2))
    same(gone_on[0], alone(), 1e-9)


# ---------------------------------------------------------------- killed

MOMENTS = {"parts": 3, "hashes": 3, "state": 3, "name": 3, "read back": 6, "older": 6}
"""Of the checkpoint of step 6, and which one counts afterwards."""


def victim(rank: int, size: int, asked: Training, moment: str, store: str) -> None:
    """Rank 1, or 0 where only that one does it, is killed at that moment."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(store, size), rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    loop, _ = loop_of(asked)

    def killing(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            # By the checkpoint and not by the loop's step, which may be ahead of a thread that writes the one before.
            about = (getattr(one, "_target", None) or getattr(one, "target", one) for one in arguments)
            if any("step-00000006" in str(one) for one in about):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(module, name, call)

    if rank == size - 1:
        {
            "parts": lambda: killing(sharded_checkpoint._Writer, "write_data"),
            "hashes": lambda: killing(sharded_checkpoint, "file_identity"),
            "read back": lambda: killing(sharded_checkpoint, "verify"),
        }.get(moment, lambda: None)()
    if rank == 0:
        {
            "state": lambda: killing(checkpoint_folder.Draft, "publish"),
            "name": lambda: killing(checkpoint_folder.os, "replace"),
            "older": lambda: killing(checkpoint_folder.Draft, "remove_older"),
        }.get(moment, lambda: None)()
    loop.run()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_rank_leaves_a_whole_checkpoint(tmp_path: Path, moment: str) -> None:
    asked = Training(tmp_path, shard=2)
    context = multiprocessing.get_context("forkserver")
    store = str(tmp_path / "store")
    processes = [context.Process(target=victim, args=(rank, 2, asked, moment, store)) for rank in range(2)]
    for process in processes:
        process.start()
    dead = 0 if moment in ("state", "name", "older") else 1
    processes[dead].join(120)
    assert processes[dead].exitcode == -signal.SIGKILL
    processes[1 - dead].join(2)  # it sees that the other is gone, and fails; what it may not do is make a checkpoint
    processes[1 - dead].kill()
    processes[1 - dead].join()
    kept = checkpoint.latest(tmp_path / "checkpoints")
    assert kept is not None and kept.step == MOMENTS[moment]
    same(train(Training(tmp_path)), alone(), 1e-9)
    assert not list((tmp_path / "checkpoints").glob(".*"))  # what was begun and never got a name is gone


# ---------------------------------------------------------------- altered


def altered(folder: Path, how: str) -> str:
    """Alters the newest checkpoint; what the error has to name."""
    path = stopped(folder)
    part = sorted((path / "shards").iterdir())[0]
    if how == "cut":
        part.write_bytes(part.read_bytes()[:-1])
        return f"shards/{part.name} is not what was saved"
    if how == "flipped":
        content = bytearray(part.read_bytes())
        content[-1] ^= 1
        part.write_bytes(content)
        return f"shards/{part.name} is not what was saved"
    if how == "lacking":
        part.unlink()
        return f"the checkpoint lacks shards/{part.name}"
    if how == "added":
        (path / "shards" / "shard-00009-model-00001-of-00002.safetensors").write_bytes(part.read_bytes())
        return "shards/shard-00009-model-00001-of-00002.safetensors was added"
    assert how == "unlisted"
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["state.json"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    return "manifest.json is not what was saved"


@pytest.mark.parametrize("how", ["cut", "flipped", "lacking", "added", "unlisted"])
def test_an_altered_part_is_named_by_every_rank(tmp_path: Path, how: str) -> None:
    words = altered(tmp_path, how)
    for error in ranks(2).outcomes(train, Training(tmp_path, shard=2)):
        assert isinstance(error, CheckpointError) and words in str(error), error
        assert "remove step-00000006 to go on from the checkpoint before it" in error.remedy
    with pytest.raises(CheckpointError, match=re.escape(words)):
        train(Training(tmp_path))


def resigned(path: Path, part: Path) -> None:
    """The manifest says that the part is as it was saved."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest[f"shards/{part.name}"] = checkpoints.file_identity(part)
    (path / "manifest.json").write_text(json.dumps(manifest))


def changed(path: Path, rank: int, number: int, change: Any) -> None:
    """One of a rank's files, 1 with weights and 2 with moments, with other tensors in it."""
    part = path / "shards" / f"shard-0000{rank + 1}-model-0000{number}-of-00002.safetensors"
    with safe_open(part, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(part)
    change(tensors)
    save_file(tensors, part, metadata=metadata)
    resigned(path, part)


def test_a_moment_that_is_no_number_is_found_in_any_part(tmp_path: Path) -> None:
    path = stopped(tmp_path)
    name = next(iter(load_file(sorted((path / "shards").glob("shard-00002-*-00002-of*"))[0])))

    def broken(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[0] = float("nan")

    changed(path, 1, 2, broken)
    assert checkpoint.non_finite(path) == [name]
    assert checkpoint.latest_finite(path.parent) == path.parent / "step-00000003"
    for error in ranks(2).outcomes(train, Training(tmp_path, shard=2)):
        assert isinstance(error, CheckpointError) and name in str(error)
        assert "remove step-00000006 to go on from step-00000003, which is finite" in error.remedy


def test_a_part_that_lacks_rows_is_no_checkpoint(tmp_path: Path) -> None:
    path = stopped(tmp_path)

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]

    changed(path, 0, 1, cut)
    with pytest.raises(CheckpointError, match=r"parts of model\.norm\.weight do not make up the whole tensor"):
        train(Training(tmp_path))


def other_model(asked: Training) -> Trained:
    loop, _ = loop_of(asked)
    name, parameter = loop.optimizer.named[0]
    loop.optimizer.named[0] = (f"{name}.other", parameter)
    loop.saver.resume()
    raise AssertionError


def test_another_model_is_refused_by_all(tmp_path: Path) -> None:
    stopped(tmp_path)
    for error in ranks(2).outcomes(other_model, Training(tmp_path, shard=2)):
        assert isinstance(error, ResumeError) and "2 parameters train now or trained then" in str(error)


def overflowing(asked: Training) -> Trained:
    """A weight of rank 1's part is infinite after step 4."""
    loop, heard = loop_of(asked)
    take = loop._one_step

    def step(phase: Any) -> None:
        take(phase)
        if loop.step == 4 and world().rank == 1:
            with torch.no_grad():
                loop.optimizer.named[1][1].to_local().view(-1)[0] = float("inf")  # type: ignore[operator]
        if loop.step == 4:
            loop.saver.save()

    loop._one_step = step  # type: ignore[method-assign]
    loop.run()
    raise AssertionError(heard.lines)


def test_what_is_not_finite_on_one_rank_is_saved_by_none(tmp_path: Path) -> None:
    for error in ranks(2).outcomes(overflowing, Training(tmp_path, shard=2)):
        assert isinstance(error, NonFiniteError), error
        assert "The last checkpoint that is finite is step-00000003" in str(error)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_files_of_a_rank_are_of_a_bounded_size() -> None:
    tensors = {"a": torch.ones(8), "a|m": torch.ones(8), "b": torch.ones(8), "b|m": torch.ones(8), "c": torch.ones(40)}
    assert sharded_checkpoint.file_of(tensors, ranks=2, most=32) == {"a": 1, "b": 1, "c": 2, "a|m": 3, "b|m": 3}
    assert sharded_checkpoint.file_of({"a": torch.ones(0)}, ranks=2) == {"a": 1}
