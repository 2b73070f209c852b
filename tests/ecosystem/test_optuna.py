"""Settings that Optuna chooses: a study that is resumed asks for what it would have asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import posttrain as pt
from posttrain.sweeps import runner
from posttrain.sweeps.record import SweepRecord
from tests.unit.sweeps.recipes import write_recipe

pytestmark = pytest.mark.ecosystem
optuna = pytest.importorskip("optuna")

SETTINGS: dict[str, Any] = {"dpo.beta": "0.01..10 log", "dpo.rows_per_step": [2, 4], "seed": [0, 1]}


def quick(score: Any) -> Any:
    """Instead of a run: its record, and a figure that is a function of its settings."""

    def run_job(job: runner.Job, *_: Any) -> runner.Outcome:
        from posttrain.runs.files import write_json
        from posttrain.runs.folder import RunFolder

        run = RunFolder(job.recipe.folder)
        run.path.mkdir(parents=True, exist_ok=True)
        run.write_run(name=job.run, status="done")
        value = score(job.recipe.stage("dpo").model_dump()["beta"])
        write_json(run.path / "summary.json", {"dpo": {"letters.match": value}})
        return runner.Outcome("done", 1.0, value)

    return run_job


def tried(folder: Path) -> list[Any]:
    record = SweepRecord.read(folder)
    assert record is not None
    return [(run.setting, run.seed, dict(run.settings)) for run in record.runs]


def test_a_sweep_that_is_stopped_asks_for_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path)
    options: dict[str, Any] = {"design": "optuna", "by": "letters.match", "progress": False}
    monkeypatch.setattr(runner, "run_job", quick(lambda beta: -abs(beta - 1.0)))
    whole = pt.sweep(recipe, SETTINGS, trials=14, out=tmp_path / "whole", **options)
    pt.sweep(recipe, SETTINGS, trials=5, out=tmp_path / "parts", **options)
    parts = pt.sweep(recipe, SETTINGS, trials=14, out=tmp_path / "parts", **options)
    assert tried(whole.folder) == tried(parts.folder) and len(tried(whole.folder)) == 28
    # It was told what was found: after its first ten random trials it stays nearer to the best.
    betas = [settings["dpo.beta"] for _, seed, settings in tried(whole.folder) if seed == 0]
    assert whole.best is not None and min(abs(beta - 1.0) for beta in betas) == pytest.approx(-whole.best.mean)
    study = optuna.load_study(
        study_name="tiny-sweep",
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(whole.folder / "optuna.log"))
        ),
    )
    assert len(study.trials) == 14 and study.best_value == pytest.approx(whole.best.mean)
    assert study.direction.name == "MAXIMIZE"


def test_a_trial_whose_run_fails_is_told_as_failed_and_the_next_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path)
    good = quick(lambda beta: 1.0)

    def run_job(job: runner.Job, *given: Any) -> runner.Outcome:
        return runner.Outcome("failed", 0.0, error="away") if job.run == "t000_seed-1" else good(job, *given)

    monkeypatch.setattr(runner, "run_job", run_job)
    found = pt.sweep(
        recipe, SETTINGS, trials=3, design="optuna", by="letters.match", out=tmp_path / "o", progress=False
    )
    assert len(found.rows) == 3 and found.failed == {"t000_seed-1": "away"}
    assert found.rows[0].done == 1 and all(row.is_complete for row in found.rows[1:])
