"""Checkpoints of several ranks: saved on any number, gone on with on any other, whoever shares the model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch

from tests.rank_training import Trained, Training, same, train
from tests.ranks import ranks

STEPS = 8
"""What `work_of` takes in all, with a checkpoint every 3."""


def on(size: int, asked: Training) -> Trained:
    """Rank 0's; the others have the same."""
    if size == 1:
        return train(asked)
    found = ranks(size).run(train, asked)
    for other in found[1:]:
        same(found[0], other)
        assert other.alarms == found[0].alarms and other.latest == found[0].latest
    return found[0]


@cache
def uninterrupted(size: int, shard: int) -> Trained:
    return on(size, Training(Path(mkdtemp()), shard=shard))


@pytest.mark.parametrize(
    ("saved_on", "goes_on"),
    [
        ((4, 4), (4, 4)),
        ((4, 2), (4, 2)),
        ((4, 4), (2, 2)),
        ((4, 4), (1, 1)),
        ((2, 2), (2, 1)),
        ((1, 1), (4, 4)),
        ((2, 1), (2, 1)),
        ((4, 4), (4, 2)),
    ],
    ids=lambda value: f"{value[0]}-shard{value[1]}",
)
def test_a_run_goes_on_with_other_ranks(tmp_path: Path, saved_on: tuple[int, int], goes_on: tuple[int, int]) -> None:
    stopped = on(saved_on[0], Training(tmp_path, shard=saved_on[1], stop_after=7))
    assert stopped.latest == "checkpoints/step-00000006"
    kept = tmp_path / "checkpoints" / "step-00000006"
    assert (kept / "shards").is_dir() == (saved_on[1] > 1)
    gone_on = on(goes_on[0], Training(tmp_path, shard=goes_on[1]))
    said = [line for line in gone_on.said if "bit for bit" in line]
    if saved_on == goes_on:
        same(gone_on, uninterrupted(*saved_on))
        assert not said
    else:
        same(gone_on, uninterrupted(1, 1), 1e-9)
        words = (
            f"{saved_on[0]} processes saved it and {goes_on[0]} go on" if saved_on[0] != goes_on[0] else "the model was"
        )
        assert len(said) == 1 and words in said[0]
    assert any("goes on after step 6" in line for line in gone_on.said)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000006", "step-00000008"]


def test_dropout_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Each rank draws from a stream of its own, and gets it back."""
    asked = Training(tmp_path, shard=2, dropout=0.2)
    whole = on(2, Training(tmp_path / "whole", shard=2, dropout=0.2))
    on(2, Training(tmp_path / "cut", shard=2, dropout=0.2, stop_after=7))
    same(on(2, Training(tmp_path / "cut", shard=2, dropout=0.2)), whole)
    assert asked.dropout and not torch.equal(
        whole.weights["model.norm.weight"], uninterrupted(2, 2).weights["model.norm.weight"]
    )
