"""The loop's own promises: nothing moves on a step that is not finite, Ctrl-C saves, what is written can be read."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from posttrain.data.split import row_contents, split_by_content
from posttrain.diagnostics.checks import CHECKS
from posttrain.errors import ConfigError, NonFiniteError, TrainingError
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.logs import HeldOutRow, WatchedRow
from posttrain.training import checkpoint, schedule
from posttrain.training import loop as loop_module
from posttrain.training.loop import Interrupted, Loop
from posttrain.training.optimizer import Optimizer
from posttrain.training.order import RowOrder
from tests.fixtures import make_tree, random_trees
from tests.online import loop_of, run, save_start
from tests.training import run_loop, weights_of, work_of


def poisoned(work, at_step: int):  # type: ignore[no-untyped-def]
    """The work, whose loss becomes NaN after so many steps."""
    inner = work.algorithm.loss
    calls = {"n": 0}

    def loss(policy, reference_N, batch, denominator):  # type: ignore[no-untyped-def]
        out = inner(policy, reference_N, batch, denominator)
        if torch.is_grad_enabled():
            calls["n"] += 1
            if calls["n"] > at_step:
                return replace(out, loss=out.loss * math.nan)
        return out

    return replace(work, algorithm=replace(work.algorithm, loss=loss), tokens_per_microbatch=10_000)


def test_a_norm_beyond_fp32_is_named() -> None:
    """Each entry of the gradient is finite, the sum of their squares is not."""
    model = nn.Linear(4, 1, bias=False)
    stage = work_of("sft").stage
    optimizer = Optimizer(model, stage.optimizer, learning_rate=0.1, schedule=stage.schedule, steps=4)
    before = model.weight.detach().clone()
    model.weight.grad = torch.full_like(model.weight, 1e30)
    with pytest.raises(NonFiniteError, match="step 1: the gradient's norm is not finite") as error:
        optimizer.step(0, ["rows.jsonl, row 1"])
    assert error.value.tensors == ("the gradient's norm",)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_non_finite_step_is_not_taken(tmp_path: Path, what: str) -> None:
    folder = StageFolder(tmp_path)
    work = work_of("sft", tokens_per_microbatch=10_000)
    bad = poisoned(work, 4)
    if what == "gradient":
        work.policy.model.lm_head.weight.register_hook(lambda g: g * math.nan if loop.step == 4 else g)
        bad = work
    loop = Loop(bad, folder, Progress())
    before: dict[str, torch.Tensor] = {}
    step = loop.optimizer.step

    def remember(*args, **kwargs):  # type: ignore[no-untyped-def]
        result = step(*args, **kwargs)
        before.update(weights_of(work))
        return result

    loop.optimizer.step = remember  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError) as error:
        loop.run()
    folder.close()
    assert "step 5" in str(error.value) and "test.jsonl, row" in str(error.value)
    assert error.value.tensors == (("loss",) if what == "loss" else ("lm_head.weight",))
    for name, weight in weights_of(work).items():
        assert torch.equal(weight, before[name]), name
    (alarm,) = [a for a in folder.alarms() if a.name == "non_finite"]
    assert alarm.severity == "critical" and alarm.step == 5
    assert alarm.last_good_checkpoint == "checkpoints/step-00000004"
    assert (tmp_path / alarm.last_good_checkpoint / "weights.safetensors").exists()


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    work = work_of()
    folder = StageFolder(tmp_path / "stopped")
    loop = Loop(work, folder, Progress())
    step = loop.optimizer.step

    def interrupt(number: int, rows: list[str]) -> object:
        if number == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(number, rows)

    loop.optimizer.step = interrupt  # type: ignore[assignment, method-assign]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="step 5 of 8"):
        loop.run()
    folder.close()
    assert signal.getsignal(signal.SIGINT) is before
    resumed = work_of()
    run_loop(resumed, tmp_path / "stopped")
    whole = work_of()
    run_loop(whole, tmp_path / "whole")
    assert all(torch.equal(w, weights_of(resumed)[n]) for n, w in weights_of(whole).items())


def test_what_a_run_writes(tmp_path: Path) -> None:
    run_loop(work_of(), tmp_path)
    folder = StageFolder(tmp_path)
    train = folder.metrics("train")
    assert [record.step for record in train] == list(range(1, 9))
    assert train[0].values["loss"] == pytest.approx(math.log(2), abs=1e-6)
    expected = {"grad_norm", "learning_rate", "tokens_per_second", "supervised_share", "reward_margin"}
    assert expected <= set(train[0].values)
    assert train[0].counts["loss"] == 4 and train[3].counts["loss"] == 2
    assert [record.step for record in folder.metrics("held_out")] == [0, 4, 8]
    assert {record.when for record in folder.lines(HeldOutRow)} == {"start", "end"}
    assert len(folder.lines(HeldOutRow)) == 10
    sample = folder.lines(WatchedRow)[0]
    assert [response.role for response in sample.responses] == ["chosen", "rejected"]
    assert all(response.figures["logprob"] < 0 for response in sample.responses)


def test_a_critical_alarm_stops_where_asked(tmp_path: Path) -> None:
    """A planted divergence: a learning rate that no model survives."""
    options = {"learning_rate": 3.0, "epochs": 12, "optimizer": {"clip_norm": None}}
    rows = random_trees(16, vocab=97, seed=1, branches=1)
    work = work_of("sft", rows=rows, alarms={"on_critical": "stop"}, **options)
    with pytest.raises((TrainingError, NonFiniteError)):
        run_loop(work, tmp_path)
    folder = StageFolder(tmp_path)
    assert any(alarm.severity == "critical" for alarm in folder.alarms())


def test_the_recipes_thresholds_are_the_loops(tmp_path: Path) -> None:
    changes = {"off": ["length_drift"], "thresholds": {"gradient_spike": {"factor": 20}}}
    loop = Loop(work_of("sft", alarms=changes), StageFolder(tmp_path), Progress())
    checks = {check.name: check for check in loop.alarms.checks}
    assert "length_drift" not in checks
    assert checks["gradient_spike"] == replace(CHECKS["gradient_spike"], factor=20.0)


def test_measuring_leaves_training_as_it_was(tmp_path: Path) -> None:
    quiet = work_of(log={"held_out_every": None, "samples_every": None}, held_out=[])
    run_loop(quiet, tmp_path / "quiet")
    busy = work_of(log={"held_out_every": 1, "samples_every": 1})
    run_loop(busy, tmp_path / "busy")
    assert all(torch.equal(w, weights_of(busy)[n]) for n, w in weights_of(quiet).items())


def test_schedule_by_hand() -> None:
    """10 steps, 20 % warm-up: 0.5, 1, then a half cosine over the remaining 8."""
    at = [schedule.factor(step, 10, kind="cosine", warmup_ratio=0.2) for step in range(10)]
    assert at[:3] == [0.5, 1.0, 1.0]
    assert at[6] == pytest.approx(0.5)
    assert at[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
    linear = [schedule.factor(step, 4, kind="linear", final_ratio=0.1) for step in range(4)]
    assert linear == pytest.approx([1.0, 0.775, 0.55, 0.325])
    assert schedule.factor(3, 4, kind="constant") == 1.0


def test_the_line_of_arithmetic() -> None:
    order = RowOrder.plan(1000, 32, epochs=3, steps=None, seed=0)
    assert order.arithmetic("pairs") == (
        "1,000 pairs, 32 a step: 32 steps an epoch (the last of 8), 3 epochs, 96 steps in all"
    )
    with pytest.raises(ConfigError, match="no step"):
        RowOrder.plan(10, 32, epochs=0.2, steps=None, seed=0)


def test_equal_rows_stay_on_one_side() -> None:
    keys = [make_tree([1], [2, i % 7]).key for i in range(70)]
    train, held = split_by_content(keys, 0.3, seed=1)
    assert sorted(train + held) == list(range(70)) and len(held) == 20
    assert not {keys[i] for i in train} & {keys[i] for i in held}
    again = split_by_content(keys[::-1], 0.3, seed=1)[1]
    assert {keys[::-1][i] for i in again} == {keys[i] for i in held}


def test_the_turns_of_one_row_stay_on_one_side() -> None:
    trees = [make_tree([i], [turn], row=i + 1) for i in range(20) for turn in range(3)]
    train, held = split_by_content(row_contents(trees), 0.3, seed=0)
    assert len(held) == 18
    assert not {trees[i].row for i in train} & {trees[i].row for i in held}


def test_weights_in_the_middle_of_a_step_are_not_kept_as_that_step(tmp_path: Path, monkeypatch) -> None:
    """Two updates a rollout, and the second of step 2 fails: the weights have moved since step 1."""
    loop = loop_of(
        save_start(tmp_path / "start"),
        tmp_path / "run",
        "grpo",
        steps=3,
        held_out=0,
        prompts_per_step=2,
        completions_per_prompt=4,
        updates_per_rollout=2,
    )
    real = loop_module.accumulate

    def failing(*arguments: Any, **options: Any) -> Any:
        if options["step"] == 3:
            raise NonFiniteError("the loss is NaN", remedy="look at it", tensors=("loss",), rows=())
        return real(*arguments, **options)

    monkeypatch.setattr(loop_module, "accumulate", failing)
    with pytest.raises(NonFiniteError):
        run(loop)
    found = checkpoint.latest(loop.folder.checkpoints)
    assert found is None or found.step == 0
