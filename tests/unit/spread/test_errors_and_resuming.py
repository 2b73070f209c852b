"""What ends a run on ranks ends it on all, with the error and a checkpoint; and how it goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.errors import DataError, NonFiniteError, RewardError, TrainingError
from posttrain.training.on_step import StepReport
from posttrain.training.pipeline import check_recipe
from tests.ranks import ranks
from tests.spread import figures, lines, require_same_figures, run_here
from tests.unit.spread.recipes import ONLINE, ROWS, STAGES, UNSAVED, write_recipe

pytestmark = pytest.mark.long


def outcomes(size: int, recipe: Path, out: Path) -> list[Any]:
    return ranks(size).outcomes(run_here, str(recipe), str(out))


def stage_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stage.json").read_text())  # type: ignore[no-any-return]


def test_a_reward_that_raises_ends_all_ranks_by_name(tmp_path: Path) -> None:
    broken = {**STAGES["grpo"], "rewards": [{"kind": "function", "function": "rewards.py:broken"}]}
    recipe = write_recipe(tmp_path, [broken], [])
    for error in outcomes(2, recipe, tmp_path / "runs"):
        assert isinstance(error, RewardError) and "ValueError: no number in it" in str(error)
    assert stage_of(tmp_path / "runs" / "tiny" / "grpo")["status"] == "failed"


def test_weights_that_overflow_end_all_ranks_by_name_with_a_checkpoint(tmp_path: Path) -> None:
    wild = {**ROWS, "method": "sft", "data": {"path": "demos.jsonl"}, "learning_rate": 1e30}
    recipe = write_recipe(tmp_path, [wild], [])
    errors = outcomes(2, recipe, tmp_path / "runs")
    assert all(isinstance(error, NonFiniteError) for error in errors), errors
    assert errors[0].tensors == errors[1].tensors
    alarms = lines(tmp_path / "runs" / "tiny" / "sft" / "alarms.jsonl")
    assert [line["name"] for line in alarms].count("non_finite") == 1  # written once


def test_rows_that_cannot_be_read_end_all_ranks_by_name(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, [STAGES["sft"]], [])
    (tmp_path / "demos.jsonl").write_text('{"prompt": "a?", "completion": 7, "x"\n')
    for error in outcomes(2, recipe, tmp_path / "runs"):
        assert isinstance(error, DataError) and "demos.jsonl" in str(error)


def check(path: str, out: str) -> list[str]:
    return list(check_recipe(pt.load_recipe(path, [f"out='{out}'"]), progress=False))


def test_a_recipe_is_checked_by_rank_0(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, [STAGES["kto"]], [])
    checked = ranks(2).run(check, str(recipe), str(tmp_path / "runs"))
    assert checked == [["kto"]] * 2


# ---------------------------------------------------------------- from Python, and resuming


def stop_after(step: int) -> Any:
    def on_step(report: StepReport) -> None:
        if report.step == step:
            raise ValueError("stopped here")

    return on_step


def train_here(kind: str, folder: str, out: str, stop: int | None, loaded: bool = False) -> tuple[int, list[float]]:
    """pt.train on every rank, as a program under torchrun has it: with what no pickle takes."""
    root = Path(folder)
    options = {
        key: value for key, value in {**STAGES[kind], **UNSAVED, "steps": 4}.items() if key not in ("data", "rewards")
    }
    start: Any = pt.load(root / "start") if loaded else root / "start"
    weight = 1.0
    run = pt.train(
        options,
        start,
        str(root / STAGES[kind]["data"]["path"]),
        out=out,
        rewards=[lambda prompt, completion, task: weight * len(set(completion))] if kind in ("grpo", "ppo") else (),
        on_step=None if stop is None else stop_after(stop),
        evaluate=[{"name": "f", "kind": "function", "prompts": str(root / "asked.jsonl"), "function": much}]
        if loaded
        else (),
        progress=False,
    )
    weights = [float(p.sum()) for p in start.model.parameters()] if loaded else []
    return run.steps, weights


def much(prompt: Any, answer: str, row: Any) -> float:
    return float(len(answer))


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_a_run_goes_on_bitwise_at_its_size_and_to_rounding_at_another(kind: str, tmp_path: Path) -> None:
    write_recipe(tmp_path, [STAGES[kind]], [])
    root = str(tmp_path)
    ranks(2).run(train_here, kind, root, str(tmp_path / "whole"), None)
    for size, name in ((2, "same"), (1, "fewer"), (4, "more")):
        errors = ranks(2).outcomes(train_here, kind, root, str(tmp_path / name), 3)
        assert all(isinstance(error, TrainingError) and "stopped here" in str(error) for error in errors), errors
        assert ranks(size).run(train_here, kind, root, str(tmp_path / name), None) == [(4, [])] * size
    whole = tmp_path / "whole" / kind
    assert figures(tmp_path / "same" / kind) == figures(whole)
    for name in ("fewer", "more"):
        require_same_figures(whole, tmp_path / name / kind, 2e-5)


def test_a_loaded_model_is_trained_on_every_rank(tmp_path: Path) -> None:
    """With a reward that is a closure, a suite that is a function, and a model that is in memory."""
    write_recipe(tmp_path, [STAGES["grpo"]], [])
    (one,) = ranks(1).run(train_here, "grpo", str(tmp_path), str(tmp_path / "1"), None, True)
    two = ranks(2).run(train_here, "grpo", str(tmp_path), str(tmp_path / "2"), None, True)
    assert two[0] == two[1]
    assert two[0][0] == one[0] == 4 and two[0][1] == pytest.approx(one[1], rel=1e-4, abs=1e-4)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("1", "2")]
    assert summaries[0]["start"] == summaries[1]["start"]


def make_here(folder: str, out: str) -> list[str]:
    rows = [{"prompt": f"{i}?", "answer": str(i)} for i in range(6)]
    stage = {"method": "best_of", "samples": 2, "scorer": {"kind": "rewards", "rewards": [{"kind": "exact"}]}}
    stage["sampling"] = {"max_new_tokens": 4}
    made = pt.make(stage, Path(folder) / "start", rows, out=out, progress=False)
    return [example.messages[-1].content for example in made]  # type: ignore[union-attr]


def test_rows_are_made_by_rank_0_for_all(tmp_path: Path) -> None:
    write_recipe(tmp_path, [STAGES["sft"]], [])
    (one,) = ranks(1).run(make_here, str(tmp_path), str(tmp_path / "1"))
    assert ranks(2).run(make_here, str(tmp_path), str(tmp_path / "2")) == [one] * 2


def colocated(folder: str) -> None:
    options = {key: value for key, value in ONLINE.items() if key != "data"}
    pt.train(
        {**options, "method": "grpo", "engine": "vllm_colocated"},
        Path(folder) / "start",
        str(Path(folder) / "tasks.jsonl"),
        out=Path(folder) / "runs",
        rewards=["exact"],
        progress=False,
    )


def test_an_engine_that_one_process_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path, [STAGES["grpo"]], [])
    for error in ranks(2).outcomes(colocated, str(tmp_path)):
        assert isinstance(error, pt.PosttrainError)
