"""T37 in the loop: an engine whose sync does nothing stops the run within one step; one that syncs trains on.

The facts are listed in tests/contracts/README.md.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from posttrain.errors import WeightSyncError
from posttrain.rollout.native import NativeEngine
from posttrain.rollout.weight_sync import WeightSync, sample_probe
from posttrain.training.loop import Loop
from posttrain.training.rl.engines import Sampler
from tests.online import loop_of, run, save_start, source_of


class Apart(NativeEngine):
    """An engine with weights of its own, which takes the trainer's or only says so."""

    def __init__(self, model: nn.Module, takes: bool):
        super().__init__(copy.deepcopy(model))
        self.takes = takes

    def update_weights(self, model: nn.Module, version: int) -> None:
        if self.takes:
            self.model.load_state_dict(model.state_dict())
        self.policy_version = version


def with_engine(loop: Loop, takes: bool) -> Loop:
    setup = source_of(loop).setup
    engine = Apart(loop.work.policy.model, takes)
    sync = WeightSync(engine, loop.work.policy, sample_probe(engine, setup.prompts[0].ids))
    object.__setattr__(setup, "sampler", Sampler(engine, sync))
    return loop


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return save_start(tmp_path / "start")


@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "rank": 4}])
def test_a_sync_that_does_nothing_stops_the_run(start: Path, tmp_path: Path, adapter: Any) -> None:
    loop = with_engine(loop_of(start, tmp_path / "run", adapter=adapter, steps=3, held_out=0), takes=False)
    with pytest.raises(WeightSyncError, match="samples from other weights"):
        run(loop)
    assert loop.step == 1


@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "rank": 4}])
def test_a_sync_that_works_trains_as_the_native_engine_does(start: Path, tmp_path: Path, adapter: Any) -> None:
    apart = run(with_engine(loop_of(start, tmp_path / "a", adapter=adapter, steps=3, held_out=0), takes=True))
    native = run(loop_of(start, tmp_path / "b", adapter=adapter, steps=3, held_out=0))
    gaps = [record.values["sync_gap"] for record in apart.folder.metrics("train")]
    assert len(gaps) == 3 and max(gaps) < 1e-5
    for ours, theirs in zip(native.work.policy.parameters(), apart.work.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
