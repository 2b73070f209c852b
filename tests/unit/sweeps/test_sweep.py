"""Sweeps that train: shared stages, resuming, failures, an early stop, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import posttrain as pt
from posttrain.errors import ConfigError, ResumeError, TrainingError, UnknownKeyError
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.stage import StageRecord
from posttrain.sweeps import runner
from posttrain.sweeps.record import DONE, FAILED, INTERRUPTED, PAUSED, SweepRecord
from posttrain.sweeps.spec import SweepSpec
from posttrain.sweeps.sweep import Asked, plan_of
from tests.unit.sweeps.recipes import write_recipe

BY = "letters.match"
GRID: dict[str, Any] = {"dpo.beta": [0.1, 5.0], "seed": range(2)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose grid of two settings and two seeds has been run."""
    folder = tmp_path_factory.mktemp("sweep")
    recipe = write_recipe(folder)
    found = pt.sweep(recipe, GRID, by=BY, progress=False)
    assert not found.failed and found.best is not None
    return folder


def record_of(folder: Path) -> SweepRecord:
    record = SweepRecord.read(folder)
    assert record is not None
    return record


def stages_of(sweep: Path, stage: str) -> list[StageRecord]:
    return [RunFolder(sweep / run.folder).stage(stage).stage() for run in record_of(sweep).runs]


def test_the_first_stage_ran_once_a_seed_and_every_run_is_whole(home: Path) -> None:
    sweep = home / "runs" / "tiny-sweep"
    sft = stages_of(sweep, "sft")
    assert [record.status for record in sft] == ["done"] * 4
    # Seeds 0 and 1 of the first setting trained it, those of the second are linked; the names say from where.
    assert [record.shared.run if record.shared else None for record in sft] == [
        *(None, None),
        *("dpo.beta-0.1_seed-0", "dpo.beta-0.1_seed-1"),
    ]
    assert all(record.shared is None for record in stages_of(sweep, "dpo"))
    one, two = (sweep / f"dpo.beta-{beta}_seed-0" for beta in ("0.1", "5.0"))
    weights = "sft/model/model.safetensors"
    assert (one / weights).stat().st_ino == (two / weights).stat().st_ino  # one file on the disk
    assert "in the run dpo.beta-0.1_seed-0" in (two / "report.html").read_text()
    # Records are each run's own: what one appends to its logs must not stand in the other's.
    for name in ("stage.json", "metrics.jsonl", "config.yaml"):
        assert (one / "sft" / name).stat().st_ino != (two / "sft" / name).stat().st_ino
    assert not (two / "sft" / "checkpoints").exists()
    for run in (one, two):
        assert (run / "report.html").exists() and (run / "dpo" / "model").is_dir()
    assert {path.name for path in sweep.iterdir() if not path.name.startswith(".")} >= {
        *("sweep.json", "sweep.html", "table.json", "recipe.yaml"),
    }
    assert not list((sweep / ".shared").glob("draft-*"))


def test_a_run_of_a_sweep_is_the_run_that_the_recipe_makes_alone(home: Path, tmp_path: Path) -> None:
    alone = pt.load_recipe(home / "mine.yaml", ["dpo.beta=5.0", "seed=1", "name=alone", f"out={tmp_path}"])
    pt.run_recipe(alone, progress=False)
    of_sweep = home / "runs" / "tiny-sweep" / "dpo.beta-5.0_seed-1"
    for stage in ("sft", "dpo"):
        ours, theirs = (load_file(run / stage / "model" / "model.safetensors") for run in (of_sweep, alone.folder))
        assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert RunFolder(of_sweep).summary() == RunFolder(alone.folder).summary()


def test_the_same_command_runs_nothing_again_and_more_seeds_add_runs(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home, tmp_path / "copy")
    recipe, sweep = tmp_path / "copy" / "mine.yaml", tmp_path / "copy" / "runs" / "tiny-sweep"
    recipe.write_text(recipe.read_text().replace(str(home / "runs"), str(tmp_path / "copy" / "runs")))
    ran: list[str] = []
    whole = runner.run_job

    def counted(job: runner.Job, *given: Any) -> runner.Outcome:
        ran.append(job.run)
        return whole(job, *given)

    monkeypatch.setattr(runner, "run_job", counted)
    again = pt.sweep(recipe, GRID, by=BY, progress=False)
    assert ran == [] and len(again.rows) == 2
    # A run whose folder is gone is made again, with what the others have finished.
    shutil.rmtree(sweep / "dpo.beta-0.1_seed-0")
    grown = pt.sweep(recipe, {"dpo.beta": [0.1], "seed": [0, 2]}, by=BY, progress=False)
    assert ran == ["dpo.beta-0.1_seed-0", "dpo.beta-0.1_seed-2"] and grown.rows[0].done == 2
    sft = RunFolder(sweep / "dpo.beta-0.1_seed-0").stage("sft").stage()
    assert sft.shared is not None and sft.shared.run == "dpo.beta-0.1_seed-0"  # who trained it, whoever holds it now


def test_another_recipe_or_other_rows_are_refused_by_name(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "copy")
    text = (home / "mine.yaml").read_text()
    recipe, rows = tmp_path / "copy" / "mine.yaml", home / "pairs.jsonl"
    recipe.write_text(text.replace("steps: 4", "steps: 3").replace(str(home / "runs"), str(tmp_path / "copy" / "runs")))
    with pytest.raises(ResumeError, match=r"`dpo.steps` 4 -> 3"):
        pt.sweep(recipe, GRID, by=BY, progress=False)
    with pytest.raises(ResumeError, match="the design was grid"):
        pt.sweep(home / "mine.yaml", {"dpo.beta": "0.1..5.0"}, design="random", trials=2, by=BY, progress=False)
    # The same file with other rows in it.
    own = tmp_path / "copy" / "pairs.jsonl"
    own.write_text(rows.read_text().replace("No.", "Nay."))
    recipe.write_text(text.replace(str(home / "runs"), str(tmp_path / "copy" / "runs")).replace(str(rows), str(own)))
    with pytest.raises(ResumeError, match=r"stage dpo: pairs.jsonl"):
        pt.sweep(recipe, GRID, by=BY, progress=False)


def test_a_run_that_fails_is_in_the_table_and_runs_again_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path)
    whole, broken = runner.run_within, {"seed-1"}

    def failing(recipe: Any, *given: Any, **options: Any) -> Any:
        if any(recipe.name.endswith(end) for end in broken):
            raise TrainingError("the judge is away", remedy="call it back")
        return whole(recipe, *given, **options)

    monkeypatch.setattr(runner, "run_within", failing)
    settings = {"sft.steps": 1, "dpo.steps": 1, "seed": [0, 1]}
    found = pt.sweep(recipe, settings, by=BY, progress=False)
    assert [run.status for run in record_of(found.folder).runs] == [DONE, FAILED]
    assert "the judge is away" in found.failed["run_seed-1"] and "the judge is away" in str(found)
    assert found.rows[0].said == "1 of 2 failed" and found.best is None  # the seed that was lucky chooses nothing
    broken.clear()
    assert pt.sweep(recipe, settings, by=BY, progress=False).failed  # not without being asked
    mended = pt.sweep(recipe, settings, by=BY, restart_failed=True, progress=False)
    assert not mended.failed and mended.rows[0].done == 2 and mended.best is not None


def test_an_interrupted_sweep_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)
    settings = {"sft.steps": 1, "dpo.steps": 1, "seed": [0, 1]}
    whole = runner.run_within

    def stopped(recipe: Any, *given: Any, **options: Any) -> Any:
        if recipe.name.endswith("seed-1"):
            raise KeyboardInterrupt
        return whole(recipe, *given, **options)

    monkeypatch.setattr(runner, "run_within", stopped)
    with pytest.raises(KeyboardInterrupt):
        pt.sweep(recipe, settings, by=BY, progress=False)
    sweep = tmp_path / "runs" / "tiny-sweep"
    assert [run.status for run in record_of(sweep).runs] == [DONE, INTERRUPTED]
    assert json.loads((sweep / "table.json").read_text())["rows"][0]["done"] == 1
    monkeypatch.setattr(runner, "run_within", whole)
    # A process that was killed has left `running` behind.
    record = record_of(sweep)
    replace(record, runs=(record.runs[0], replace(record.runs[1], status="running"))).write(sweep)
    assert pt.sweep(recipe, settings, by=BY, progress=False).rows[0].done == 2


def test_an_early_stop_goes_on_with_the_best_and_its_run_is_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    settings = {"dpo.beta": [0.1, 1.0, 5.0], "sft.steps": 1}
    found = pt.sweep(recipe, settings, by=BY, early_stop={"rungs": 2, "keep": 2}, progress=False)
    runs = record_of(found.folder).runs
    assert sorted(run.status for run in runs).count(DONE) in (1, 2) and PAUSED in {run.status for run in runs}
    for run in runs:
        stage = RunFolder(found.folder / run.folder).stage("dpo")
        # Half of the four steps, asked there, and no further unless it was promoted.
        assert (stage.path / "rungs" / "step-00000002" / "evaluation.json").exists()
        assert stage.stage().steps == (4 if run.status == DONE else None)
        assert run.rungs is not None and len(run.rungs) == (2 if run.status == DONE else 1)
    at_rung = {run.setting: run.rungs[0] for run in runs if run.rungs}
    promoted = [run for run in runs if run.status == DONE]
    assert max(at_rung.values()) in [at_rung[run.setting] for run in promoted]  # type: ignore[type-var]
    assert "stopped after 50% of the steps" in str(found)
    chosen = promoted[0]
    alone = pt.load_recipe(
        recipe, [f"dpo.beta={chosen.settings['dpo.beta']}", "sft.steps=1", "name=alone", f"out={tmp_path}"]
    )
    pt.run_recipe(alone, progress=False)
    weights = [
        load_file(folder / "dpo/model/model.safetensors") for folder in (found.folder / chosen.folder, alone.folder)
    ]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[1])
    # Without the early stop the same command finishes the others too.
    assert all(row.is_complete for row in pt.sweep(recipe, settings, by=BY, progress=False).rows)


def test_the_plan_counts_what_is_shared(home: Path, tmp_path: Path) -> None:
    def trainings(*varied: str) -> dict[str, int]:
        spec = SweepSpec.of(home / "mine.yaml", list(varied), out=tmp_path)
        return plan_of(spec, Asked()).trainings()

    assert trainings("dpo.beta=[0.1,0.2,0.3]", "seed=0..1") == {"sft": 2, "dpo": 6}
    assert trainings("sft.learning_rate=[1e-3,1e-2]", "seed=0..1") == {"sft": 4, "dpo": 4}
    # What is shown and not computed makes no stage another one.
    assert trainings("dpo.log.samples_every=[1,2]") == {"sft": 1, "dpo": 1}
    spec = SweepSpec.of(home / "mine.yaml", GRID)
    assert plan_of(spec, Asked()).seconds_left() == 0.0 and "4 done" in plan_of(spec, Asked()).said[0]
    assert SweepSpec.of(home / "mine.yaml", GRID, out=tmp_path).folder == tmp_path / "tiny-sweep"
    assert (
        "known when the first run is done"
        in plan_of(SweepSpec.of(home / "mine.yaml", GRID, out=tmp_path), Asked()).said[-1]
    )


def test_what_cannot_be_done_is_refused_before_anything_runs(home: Path, tmp_path: Path) -> None:
    refused: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
        ({"dpo.betta": [0.1]}, {}, UnknownKeyError, "betta"),
        ({"dpo.beta": ["many"]}, {}, ConfigError, r"override dpo.beta"),
        ({"dpo.beta": [0.1]}, {"by": "leters.match"}, UnknownKeyError, "`letters`"),
        ({"dpo.beta": [0.1]}, {"by": "match"}, ConfigError, "names no figure"),
        ({"dpo.beta": [0.1]}, {"by": "letters.length"}, ConfigError, "--better"),
        ({"dpo.beta": [0.1]}, {"by": "ppo:letters.match"}, UnknownKeyError, "ppo"),
        ({"dpo.beta": [0.1]}, {"trials": 3}, ConfigError, "a grid tries every combination"),
        ({"dpo.beta": [0.1]}, {"design": "random"}, ConfigError, "--trials 20"),
        ({"seed": [0, 1]}, {"design": "random", "trials": 2}, ConfigError, "nothing is varied"),
        ({"dpo.beta": "0.1..0.2"}, {}, ConfigError, "cannot try every number"),
        ({"dpo.beta": [0.1]}, {"design": "gird"}, UnknownKeyError, "grid"),
        ({"dpo.beta": [0.1, 0.2]}, {"early_stop": True}, ConfigError, "nothing says what is stopped by"),
        ({"dpo.beta": [0.1]}, {"early_stop": True, "by": BY}, ConfigError, "there is one"),
        ({"dpo.beta": [0.1, 0.2]}, {"early_stop": {"eta": 3}, "by": BY}, ConfigError, "early_stop"),
        ({"dpo.beta": [0.1, 0.2]}, {"early_stop": {"rungs": 1}, "by": BY}, ConfigError, "rungs"),
        ({"dpo.beta": [0.1]}, {"jobs": 0}, ConfigError, "jobs"),
        ({"dpo.beta": [0.1]}, {"name": "a/b"}, ConfigError, "no name for a folder"),
    ]
    for settings, options, error, said in refused:
        with pytest.raises(error, match=said):
            pt.sweep(home / "mine.yaml", settings, out=tmp_path, progress=False, **options)
    assert not list(tmp_path.iterdir())
