"""`pt.train(evaluate=..., on_step=...)`: suites before and after, and a function that is told of every step."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import posttrain as pt
from posttrain.config import DPO, SFT, Reward
from posttrain.config.suites import FunctionSuite, MatchSuite, Sampling
from posttrain.errors import ConfigError, PosttrainError, TrainingError
from posttrain.models.folders.loading import LoadedModel
from posttrain.report.evaluation import final_table
from posttrain.runs.folder import RunFolder
from posttrain.runs.read import read_run
from posttrain.training.on_step import StepReport
from posttrain.training.session import train
from tests.unit.training.test_session import pairs, quick_export, rows, start  # noqa: F401

SETTINGS: dict[str, Any] = {"learning_rate": 1e-2, "rows_per_step": 2, "steps": 3, "held_out": 0}


def size(prompt: Any, answer: str, row: Any) -> float:
    return float(len(answer.encode()))


@pytest.fixture
def suite(rows: Path) -> dict[str, Any]:  # noqa: F811
    return {
        "name": "size",
        "kind": "function",
        "prompts": str(rows),
        "limit": 2,
        "function": size,
        "sampling": {"max_new_tokens": 3},
    }


def weights(model: LoadedModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.model.parameters()]


# ---------------------------------------------------------------- suites


def test_the_run_has_what_a_recipes_has_and_the_same_weights(
    start: Path,  # noqa: F811
    rows: Path,  # noqa: F811
    suite: dict[str, Any],
    tmp_path: Path,
) -> None:
    asked, plain = pt.load(start), pt.load(start)
    match = MatchSuite(
        kind="match", name="digits", prompts=str(rows), pattern=r"\d", limit=2, sampling=Sampling(max_new_tokens=3)
    )
    run = train(SFT(**SETTINGS), asked, rows, out=tmp_path / "asked", evaluate=[suite, match])
    train(SFT(**SETTINGS), plain, rows, out=tmp_path / "plain")
    assert all(torch.equal(one, other) for one, other in zip(weights(asked), weights(plain), strict=True))
    folder = RunFolder(run.folder)
    assert {name: set(found.suites) for name, found in folder.evaluations().items()} == {
        "start": {"size", "digits"},
        "sft": {"size", "digits"},
    }
    summary = folder.summary()
    before, after = run.summary().suites["size.score"]
    assert before is not None and (before.value, after.value) == (
        summary["start"]["size.score"],
        summary["sft"]["size.score"],
    )
    table = final_table(read_run(run.folder))
    assert table.columns == ["start", "sft"] and [row.suite for row in table.rows if row.meaning.primary] == [
        "size",
        "digits",
    ]
    assert "digits" in run.report.read_text() and "size.score" in str(run.summary())


def test_a_later_stage_is_compared_with_the_start_of_the_first(
    start: Path,  # noqa: F811
    rows: Path,  # noqa: F811
    pairs: Path,  # noqa: F811
    suite: dict[str, Any],
    tmp_path: Path,
) -> None:
    out = tmp_path / "mine"
    train(SFT(**SETTINGS), start, rows, out=out, evaluate=suite)
    first = (out / "start" / "evaluation.json").read_bytes()
    other = {**suite, "name": "other"}
    with pytest.raises(ConfigError, match="the start of this run was not asked `other`"):
        train(DPO(**SETTINGS), start, pairs, out=out, evaluate=other)
    train(DPO(**SETTINGS), start, pairs, out=out, evaluate=[FunctionSuite(**suite)])
    assert (out / "start" / "evaluation.json").read_bytes() == first
    assert set(RunFolder(out).summary()) == {"start", "sft", "dpo"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda suite: size, ["`evaluate` is a function", "say what is asked"]),
        (lambda suite: [size], ["`evaluate` is a function"]),
        (lambda suite: {**suite, "kind": "functoin"}, ["did you mean `function`?"]),
        (lambda suite: [suite, suite], ["two suites are named `size`"]),
        (lambda suite: {**suite, "prompts": "nowhere.jsonl"}, ["nowhere.jsonl"]),
        (lambda suite: {**suite, "function": lambda answer: 1.0}, ["`size`", "cannot be called with a prompt"]),
    ],
)
def test_suites_that_are_refused_before_a_model_is_loaded(
    change: Callable[[dict[str, Any]], Any],
    words: list[str],
    suite: dict[str, Any],
    rows: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    with pytest.raises(PosttrainError) as caught:
        train(SFT(**SETTINGS), "no-such-model", rows, out=tmp_path / "mine", evaluate=change(suite))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "mine").exists()


def test_a_reward_model_answers_nothing(suite: dict[str, Any], pairs: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="makes no policy"):
        train(Reward(), "no-such-model", pairs, out=tmp_path / "mine", evaluate=suite)


# ---------------------------------------------------------------- steps


def test_a_function_is_told_of_every_step_and_changes_no_number(
    start: Path,  # noqa: F811
    rows: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = {**SETTINGS, "held_out": 0.4, "log": {"held_out_every": 2}}
    # With dropout, which draws from the global stream: a number that the function draws would be missing there.
    watched, plain = (pt.load(start, adapter=pt.LoRA(rank=2, dropout=0.5)) for _ in range(2))
    told = list[StepReport]()

    def watch(step: StepReport) -> None:
        told.append(step)
        torch.rand(5), random.random(), np.random.rand()
        watched.model.eval()

    run = train(SFT(**settings), watched, rows, out=tmp_path / "watched", on_step=watch)
    other = train(SFT(**settings), plain, rows, out=tmp_path / "plain")
    assert all(torch.equal(one, two) for one, two in zip(weights(watched), weights(plain), strict=True))
    assert [line.values["loss"] for line in run.lines("train")] == [
        line.values["loss"] for line in other.lines("train")
    ]
    assert [(step.step, step.steps) for step in told] == [(1, 3), (2, 3), (3, 3)]
    assert [step.metrics["loss"] for step in told] == [line.values["loss"] for line in run.lines("train")]
    assert [step.held_out is not None for step in told] == [False, True, False]
    with pytest.raises(TypeError):
        told[0].metrics["loss"] = 0.0  # type: ignore[index]


def test_stop_ends_the_stage_with_its_model(start: Path, rows: Path, tmp_path: Path) -> None:  # noqa: F811
    def stop(step: StepReport) -> str | None:
        return "stop" if step.step == 2 else None

    out = tmp_path / "mine"
    run = train(SFT(**SETTINGS), start, rows, out=out, on_step=stop)
    record = RunFolder(out).stage("sft").stage()
    assert (run.steps, record.status, record.steps, record.stopped) == (2, "done", 2, "on_step asked for it")
    assert run.model.is_dir()


def test_an_error_in_the_function_is_named_and_loses_no_step(start: Path, rows: Path, tmp_path: Path) -> None:  # noqa: F811
    def broken(step: StepReport) -> None:
        if step.step == 2:
            raise KeyError("accuracy")

    out = tmp_path / "mine"
    with pytest.raises(TrainingError) as caught:
        train(SFT(**SETTINGS), start, rows, out=out, on_step=broken)
    said = str(caught.value)
    assert "step 2: `on_step=" in said and "KeyError" in said and "test_session_outside.py" in said
    steps: list[int] = []
    assert train(SFT(**SETTINGS), start, rows, out=out, on_step=lambda step: steps.append(step.step)).steps == 3
    assert steps == [3]


def test_what_says_neither_to_go_on_nor_to_stop(start: Path, rows: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(TrainingError, match="neither to go on nor to stop"):
        train(SFT(**SETTINGS), start, rows, out=tmp_path / "mine", on_step=lambda step: True)  # type: ignore[arg-type, return-value]
    answer = np.array([1.0, 2.0])  # which answers `== "stop"` with an array
    with pytest.raises(TrainingError, match="neither to go on nor to stop"):
        train(SFT(**SETTINGS), start, rows, out=tmp_path / "array", on_step=lambda step: answer)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="`on_step` is a str"):
        train(SFT(**SETTINGS), "no-such-model", rows, out=tmp_path / "mine", on_step="print")  # type: ignore[arg-type]


def test_the_records_are_json(start: Path, rows: Path, suite: dict[str, Any], tmp_path: Path) -> None:  # noqa: F811
    run = train(SFT(**{**SETTINGS, "steps": 1}), start, rows, out=tmp_path / "mine", evaluate=suite)
    assert json.loads((run.folder / "summary.json").read_text())["sft"]["size.score"] >= 0
