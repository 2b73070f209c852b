"""A stage's training over several ranks, for tests of checkpoints: whole, in parts, stopped and gone on with.

    trained = ranks(4).run(train, Training(folder, shard=2, stop_after=7))      # a Trained of each rank

Only rank 0 writes the folder; the others look on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from posttrain.config.compute import Compute, Mesh
from posttrain.models.reference import LiveReference
from posttrain.models.sharding.mesh import sharding_of
from posttrain.models.sharding.whole import whole_tensors
from posttrain.models.tree.logprobs import Policy
from posttrain.parallel.world import world
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.stage import StageRecord
from posttrain.training.loop import Loop
from posttrain.training.work import Work
from tests.fixtures import tiny_model
from tests.training import VOCAB, work_of


class Stopped(Exception):
    """The training ends here, as if the job had been killed: nothing is saved that was not due."""


class Watching(StageFolder):
    """As ranks other than 0 have it."""

    def write_stage(self, **changes: Any) -> StageRecord:
        return StageRecord()

    def append(self, line: Any) -> None:
        return None

    def truncate_after(self, step: int, *, measured: bool = True) -> None:
        return None


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@dataclass(frozen=True)
class Training:
    """Training(tmp_path / "dpo", shard=2): who shares the model, and how far it goes."""

    folder: Path
    shard: int = 1
    stop_after: int | None = None
    dropout: float = 0.0
    dtype: torch.dtype = torch.float64
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def step_folder(self) -> Path:
        return self.folder / "checkpoints"


@dataclass(frozen=True)
class Trained:
    step: int
    said: list[str]
    weights: dict[str, torch.Tensor]
    """Whole, with the moments as "NAME|MOMENT"."""
    alarms: dict[str, Any]
    latest: str | None


def loop_of(asked: Training) -> tuple[Loop, Heard]:
    model = tiny_model("llama", vocab=VOCAB, **({"attention_dropout": asked.dropout} if asked.dropout else {}))
    work = work_of("dpo", model=model.to(asked.dtype), dropout=bool(asked.dropout), **asked.options)
    if asked.shard > 1:
        work = shared(work, asked.shard)
    folder = StageFolder(asked.folder) if world().is_main else Watching(asked.folder)
    heard = Heard()
    return Loop(work, folder, heard), heard


def shared(work: Work, shard: int) -> Work:
    """The same, with its model in parts."""
    mesh = Mesh(shard=shard, replicate=world().size // shard)
    spread = sharding_of(Compute(mesh=mesh), torch.device("cpu"), None)
    policy = Policy(work.policy.model, dropout=work.policy.dropout, sharding=spread)
    return replace(work, policy=policy, reference=LiveReference(policy))


def train(asked: Training) -> Trained:
    """To the end, or to `stop_after`, from the newest checkpoint in the folder."""
    loop, heard = loop_of(asked)
    take = loop._one_step

    def until(phase: Any) -> None:
        if loop.step == asked.stop_after:
            raise Stopped
        take(phase)

    loop._one_step = until  # type: ignore[method-assign]
    try:
        loop.run()
    except Stopped:
        loop.saver.finish()
    finally:
        loop.folder.close()
    return state_of(loop, heard.lines)


def state_of(loop: Loop, said: Sequence[str] = ()) -> Trained:
    weights = {name: tensor.clone() for name, tensor in whole_tensors(loop.work.policy.model)}
    for name, moments in loop.optimizer.state_dict().items():
        for key, value in moments.items():
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            weights[f"{name}|{key}"] = whole.detach().clone()
    return Trained(loop.step, list(said), weights, json.loads(json.dumps(loop.alarms.state_dict())), loop.saver.latest)


def same(one: Trained, other: Trained, tolerance: float = 0.0) -> None:
    """Equal weights and moments, bit for bit or to a tolerance."""
    assert one.step == other.step and set(one.weights) == set(other.weights)
    for name, tensor in one.weights.items():
        if tolerance:
            torch.testing.assert_close(tensor, other.weights[name], rtol=tolerance, atol=tolerance, msg=name)
        else:
            assert torch.equal(tensor, other.weights[name]), name
