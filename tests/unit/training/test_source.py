"""The loop's two seams: a source of four members that owns its queue, and hooks, none of which it must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.outputs import Mean, Metric
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.loop import Loop
from posttrain.training.source import Hooks, RowSource, Source, Units
from posttrain.training.work import Work
from posttrain.types import TokenTree
from tests.fixtures import random_trees
from tests.training import VOCAB, weights_of, work_of

STEPS = 5


class Queue:
    """Trees that come in an order of their own, one ahead of what trains, as from an engine that goes on sampling."""

    steps, updates = STEPS, 1

    def __init__(self, *, fails_at: int | None = None):
        self.trees = random_trees(30, vocab=VOCAB, seed=7, branches=1)
        self.asked, self.ready, self.handed_out = 0, list[int](), list[int]()
        self.handed_out_at: int | None = None
        self.fails_at = fails_at
        self.given: list[list[int]] = []

    def at(self, step: int) -> Sequence[Sequence[TokenTree]]:
        if step != self.handed_out_at:  # else the step failed, and its batch is given again
            while len(self.ready) < 6:
                self.ready.append(7 * self.asked % len(self.trees))
                self.asked += 1
            self.handed_out, self.ready, self.handed_out_at = self.ready[:3], self.ready[3:], step
        if step == self.fails_at:
            raise RuntimeError("the engine is gone")
        self.given.append(self.handed_out)
        return [[self.trees[index] for index in self.handed_out]]

    def state_dict(self) -> Mapping[str, Any]:
        names = ("asked", "ready", "handed_out", "handed_out_at")
        return {name: vars(self)[name] for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


def work_with(source: Source, **options: Any) -> Work:
    return replace(work_of("sft"), source=source, units=Units("15 rows", lambda step: step / 10), **options)


def run(work: Work, folder: Path) -> StageFolder:
    stage = StageFolder(folder)
    try:
        Loop(work, stage, Progress()).run()
    finally:
        stage.close()
    return stage


def test_a_source_has_four_members() -> None:
    members = {"steps", "updates", "at", "state_dict", "load_state_dict"}
    assert {name for name in vars(Source) if not name.startswith("_")} == members
    assert {name for name in vars(RowSource) if not name.startswith("_")} == members


def test_a_source_without_hooks_trains_and_the_loop_measures_held_out_rows(tmp_path: Path) -> None:
    folder = run(work_with(Queue()), tmp_path)
    train = folder.metrics("train")
    assert [record.step for record in train] == list(range(1, STEPS + 1))
    assert [record.epoch for record in train] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert [record.step for record in folder.metrics("held_out")] == [0, 4, 5]


def test_a_queue_goes_on_where_it_was_and_a_failed_step_gets_its_batch_again(tmp_path: Path) -> None:
    whole, broken, again = Queue(), Queue(fails_at=3), Queue()
    expected = work_with(whole)
    run(expected, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="gone"):
        run(work_with(broken), tmp_path / "resumed")
    resumed = work_with(again)
    run(resumed, tmp_path / "resumed")
    assert broken.given + again.given == whole.given
    assert all(torch.equal(weight, weights_of(resumed)[name]) for name, weight in weights_of(expected).items())


def test_hooks_are_called_around_every_step(tmp_path: Path) -> None:
    calls: list[Any] = []

    def after_update(trees: Sequence[TokenTree], index: int) -> Mapping[str, Metric]:
        calls.append(("update", index, len(trees)))
        return {"value_loss": Mean(float(index), 1)}

    def end_of_step(step: int, values: Mapping[str, float]) -> Mapping[str, float]:
        calls.append(("end", step, values["value_loss"]))
        return {"reward": step / 2}

    hooks = Hooks(
        after_update=after_update,
        end_of_step=end_of_step,
        why_stop=lambda: "it is enough" if ("end", 2, 1.0) in calls else None,
        finish=lambda: calls.append("finish"),
    )
    folder = run(work_with(Queue(), hooks=hooks), tmp_path)
    assert calls == [("update", 0, 3), ("end", 1, 0.0), ("update", 1, 3), ("end", 2, 1.0), "finish"]
    assert [record.values["reward"] for record in folder.metrics("train")] == [0.5, 1.0]
    assert [record.step for record in folder.metrics("held_out")] == [0, 2]


def test_an_examination_measures_in_the_loop_s_place(tmp_path: Path) -> None:
    class Every:
        def __init__(self, steps: int):
            self.steps = steps

        def is_due(self, step: int) -> bool:
            return step % self.steps == 0

        def measure(self, step: int) -> Mapping[str, Metric]:
            return {"score": Mean(step / 10, 1)}

    folder = run(work_with(Queue(), hooks=Hooks(examination=Every(2))), tmp_path)
    scores = {record.step: record.values for record in folder.metrics("held_out")}
    assert scores == {0: {"score": 0.0}, 2: {"score": 0.2}, 4: {"score": 0.4}}
