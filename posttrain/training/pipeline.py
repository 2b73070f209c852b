"""A recipe from its first stage to its report.

Each stage starts from the last model before it. A finished stage is not run again unless its inputs changed, an
interrupted one goes on from its checkpoint. After every stage that trains, the same suites ask the new model what
they asked the start.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from posttrain.config import (
    Correction,
    Recipe,
    StageSettings,
    TrainingStage,
    data_of,
    stage_fingerprint,
    stage_yaml,
    what_changed,
)
from posttrain.data.sources import combined_fingerprint, open_sources
from posttrain.diagnostics.progress import Progress
from posttrain.diagnostics.run_store import RunFolder, StageFolder
from posttrain.errors import ResumeError
from posttrain.evaluate.runner import evaluate_model
from posttrain.models.loading import resolve
from posttrain.models.manifest import folder_fingerprint
from posttrain.report import write_report
from posttrain.training.corrections import make_corrections
from posttrain.training.loop import Interrupted
from posttrain.training.order import stream_seed
from posttrain.training.preflight import Preflight
from posttrain.training.records import environment, now
from posttrain.training.stage import prepare, run_stage


@dataclass(frozen=True, slots=True)
class RunResult:
    """RunResult(Path("runs/quickstart"), summary={"start": {"identity": 0.0}, ...}, report=Path(".../report.html"))."""

    folder: Path
    summary: Mapping[str, Mapping[str, float | None]]
    report: Path


def run_recipe(recipe: Recipe, *, fresh: bool = False, progress: Progress | None = None) -> RunResult:
    """Run what is not finished yet, evaluate, and write the report.

    Args:
        fresh: forget what the run folder holds and begin anew.

    Raises:
        PosttrainError: of whatever stage fails; the report is written all the same and shows how far it came.
    """
    progress = progress or Progress()
    run = RunFolder(recipe.folder)
    with run.locked():
        if fresh:
            _forget(run)
        _announce(run, recipe, progress)
        try:
            _stages(run, recipe, progress)
        except BaseException as error:
            run.write_run(status="interrupted" if _was_stopped(error) else "failed")
            # The report of a failed run is worth having; that it fails too must not hide why.
            with suppress(Exception):
                write_report(run.path)
            raise
        run.write_run(status="done", ended=now())
        report = write_report(run.path)
    return RunResult(run.path, run.summary(), report)


def check_recipe(recipe: Recipe, *, progress: Progress | None = None) -> dict[str, Preflight]:
    """The preflight of every training stage, and no training: {stage: Preflight}.

    A stage that starts from a model which does not exist yet is checked on the recipe's start model, whose shape is
    the same; a stage whose data an earlier stage has yet to write is left out, and said.

    Raises:
        PosttrainError: a stage's rows cannot be read or encoded, or a check fails.
    """
    progress = progress or Progress()
    results: dict[str, Preflight] = {}
    scratch = RunFolder(recipe.folder / ".check")
    shutil.rmtree(scratch.path, ignore_errors=True)
    try:
        for stage in recipe.stages:
            if not isinstance(stage, TrainingStage):
                continue
            written = [data.stage for data in data_of(stage).values() if data.stage is not None]
            if written:
                progress.say(f"{stage.name}: not checked; its data is written by `{written[0]}` during the run")
                continue
            folder = scratch.stage(stage.name)
            lenient = stage.model_copy(update={"preflight": stage.preflight.model_copy(update={"on_failure": "warn"})})
            folder.write_stage(name=stage.name, method=stage.method, status="running")
            prepared = prepare(lenient, recipe.model, folder, seed=recipe.seed, progress=progress, proof_only=True)
            results[stage.name] = prepared.preflight
    finally:
        shutil.rmtree(scratch.path, ignore_errors=True)
    return results


# ---------------------------------------------------------------- the stages


def _stages(run: RunFolder, recipe: Recipe, progress: Progress) -> None:
    model: str | Path = recipe.model
    last = [stage.name for stage in recipe.stages if isinstance(stage, TrainingStage)][-1:]
    _evaluate_start(run, recipe, progress)
    for stage in recipe.stages:
        folder = run.stage(stage.name)
        with _timed(run, folder, stage):
            if isinstance(stage, Correction):
                _correct(stage, model, folder, recipe, progress)
            elif isinstance(stage, TrainingStage):
                wanted = recipe.evaluate.every_stage or stage.name in last
                _train_stage(stage, model, folder, run, recipe, progress, evaluate=wanted)
                model = folder.model


def _train_stage(
    stage: TrainingStage,
    start: str | Path,
    folder: StageFolder,
    run: RunFolder,
    recipe: Recipe,
    progress: Progress,
    *,
    evaluate: bool,
) -> None:
    stage = _with_data(stage, run)
    record = folder.stage() if folder.exists else {}
    identity = _quick_identity(stage, start, recipe.seed)
    if _is_done(record, identity, folder):
        progress.say(f"{folder.name}: done before, and nothing that it depends on has changed")
        if evaluate:
            _evaluate_stage(folder, recipe, folder.model, progress)
        _summarise(run, recipe)
        return
    _refuse_changed(record, identity, stage, folder)

    def ask(model: Any, tokenizer: Any) -> None:
        _evaluate_stage(folder, recipe, model, progress, tokenizer=tokenizer)

    run_stage(
        stage,
        start,
        folder,
        seed=recipe.seed,
        progress=progress,
        identity=identity,
        evaluate=ask if evaluate else None,
    )
    _summarise(run, recipe)


def _correct(stage: Correction, model: str | Path, folder: StageFolder, recipe: Recipe, progress: Progress) -> None:
    record = folder.stage() if folder.exists else {}
    identity = _quick_identity(stage, model, recipe.seed)
    output = folder.path / "data.jsonl"
    if record.get("status") == "done" and record.get("quick_identity") == identity and output.exists():
        progress.say(f"{folder.name}: done before, and nothing that it depends on has changed")
        return
    folder.write_config(stage_yaml(stage))
    folder.write_stage(
        name=stage.name,
        method=stage.method,
        status="running",
        started=now(),
        quick_identity=identity,
        environment=environment(),
        error=None,
    )
    counts = make_corrections(stage, model, folder, seed=recipe.seed, progress=progress)
    folder.write_stage(data=counts, output="data.jsonl")


def _with_data(stage: TrainingStage, run: RunFolder) -> TrainingStage:
    """The stage with `data: {stage: NAME}` settled to the file that stage wrote."""
    settled = {
        key: data.model_copy(update={"path": (str(run.stage(data.stage).path / "data.jsonl"),), "stage": None})
        for key, data in data_of(stage).items()
        if data.stage is not None
    }
    return stage.model_copy(update=settled)


# ---------------------------------------------------------------- done before, changed since


def _quick_identity(stage: StageSettings, start: str | Path, seed: int) -> str:
    """The stage's fingerprint from file contents alone, without loading anything."""
    contents = [
        combined_fingerprint(open_sources(list(data.path), data.split)) for data in data_of(stage).values() if data.path
    ]
    return stage_fingerprint(stage, data=contents, start_model=folder_fingerprint(resolve(start).folder), seed=seed)


def _is_done(record: Mapping[str, Any], identity: str, folder: StageFolder) -> bool:
    return record.get("status") == "done" and record.get("quick_identity") == identity and (folder.model).is_dir()


def _refuse_changed(record: Mapping[str, Any], identity: str, stage: TrainingStage, folder: StageFolder) -> None:
    """A stage that began with other inputs is not continued with these."""
    if record.get("status") == "done":
        # It is finished, and its inputs changed: it is run again, from the start.
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        return
    if record.get("quick_identity") in (None, identity) or not folder.checkpoints.exists():
        return
    before = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    changed = what_changed(before, stage)
    raise ResumeError(
        f"the stage `{stage.name}` was interrupted, and what it depends on has changed since",
        where=folder.path,
        found=f"changed: {', '.join(changed)}" if changed else "the data or the start model has other content",
        remedy="undo the change to go on, or run with --fresh to begin anew",
    )


def _forget(run: RunFolder) -> None:
    """--fresh: only what posttrain itself wrote is removed."""
    if not run.exists:
        return
    for entry in [*run.run().get("stages", []), {"name": "start"}]:
        shutil.rmtree(run.path / entry["name"], ignore_errors=True)
    for name in ("run.json", "summary.json", "report.html", "recipe.yaml"):
        (run.path / name).unlink(missing_ok=True)


# ---------------------------------------------------------------- evaluation


def _evaluate_start(run: RunFolder, recipe: Recipe, progress: Progress) -> None:
    if not recipe.evaluate.suites:
        return
    _evaluate_stage(run.start, recipe, recipe.model, progress)
    _summarise(run, recipe)


def _evaluate_stage(
    folder: StageFolder, recipe: Recipe, model: Any, progress: Progress, *, tokenizer: Any = None
) -> None:
    """Ask the suites; answers that are there already, from the same model and the same questions, stay."""
    if not recipe.evaluate.suites:
        return
    evaluate_model(
        model,
        recipe.evaluate.suites,
        folder,
        baseline=recipe.folder / "start",
        seed=stream_seed(recipe.seed, "evaluation"),
        progress=progress,
        tokenizer=tokenizer,
    )


def _summarise(run: RunFolder, recipe: Recipe) -> None:
    """summary.json: {stage: {suite or suite.metric: value}}, the start first."""
    table: dict[str, dict[str, float]] = {}
    for folder in [run.start, *(run.stage(stage.name) for stage in recipe.stages)]:
        evaluation = folder.evaluation()
        if evaluation is None:
            continue
        table[folder.name] = {
            f"{suite}.{metric}": entry["value"]
            for suite, metrics in evaluation.items()
            for metric, entry in metrics.items()
        }
    run.write_summary(table)


# ---------------------------------------------------------------- records


class _timed:
    """Writes a stage's status and time, whatever happens in it."""

    def __init__(self, run: RunFolder, folder: StageFolder, stage: StageSettings):
        self.run, self.folder, self.stage = run, folder, stage

    def __enter__(self) -> None:
        self.started = time.monotonic()
        self.before = self.folder.stage() if self.folder.exists else {}
        self._entry("running")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        spent = time.monotonic() - self.started
        again = self.before.get("status") == "done" and error is None
        seconds = self.before.get("seconds", spent) if again else self.before.get("seconds", 0.0) + spent
        status = "done" if error is None else "interrupted" if _was_stopped(error) else "failed"
        self._entry(status, seconds=seconds)
        self.folder.write_stage(
            status=status,
            seconds=seconds,
            ended=now(),
            error=None if error is None else str(error) or kind.__name__ if kind else None,
        )
        self.folder.close()

    def _entry(self, status: str, **more: Any) -> None:
        entries = self.run.run().get("stages", [])
        for entry in entries:
            if entry["name"] == self.stage.name:
                entry.update(status=status, **more)
        self.run.write_run(stages=entries)


def _announce(run: RunFolder, recipe: Recipe, progress: Progress) -> None:
    for note in recipe.notes:
        progress.say(note)
    run.path.mkdir(parents=True, exist_ok=True)
    before = {entry["name"]: entry for entry in run.run().get("stages", [])} if run.exists else {}
    entries = [
        before.get(stage.name, {"name": stage.name, "method": stage.method, "status": "pending", "seconds": 0.0})
        for stage in recipe.stages
    ]
    created = run.run().get("created") if run.exists else None
    run.write_run(
        name=recipe.name,
        posttrain_version=metadata.version("posttrain"),
        created=created or now(),
        status="running",
        stages=entries,
    )
    run.write_recipe(recipe.to_yaml())


def _was_stopped(error: BaseException) -> bool:
    return isinstance(error, (KeyboardInterrupt, Interrupted))
