"""A recipe from its first stage to its report.

Each stage starts from the last model before it. A finished stage is not run again unless its inputs changed, an
interrupted one goes on from its checkpoint. After every stage that trains, the same suites ask the new model what
they asked the start.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
from posttrain.config.adapters import Continue
from posttrain.config.chain import continued, spoken_before
from posttrain.config.online import SamplingStage
from posttrain.config.suites import PassAtKSuite, RewardModelOf, SuiteSettings, WinRateSuite
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import ConfigError, ResumeError, SourceError
from posttrain.evaluate.cross_scoring import cross_scores_of_run, write_cross_scores
from posttrain.evaluate.pass_at_k_change import changes_of_run, write_changes
from posttrain.evaluate.runner import evaluate_model
from posttrain.evaluate.suites import load_suite
from posttrain.models.devices import device_of
from posttrain.models.folders.loading import resolve
from posttrain.models.folders.manifest import folder_fingerprint
from posttrain.models.folders.spoken import speech_of
from posttrain.report import write_report
from posttrain.rewards import require_rewards
from posttrain.runs.folder import RunFolder, StageFolder, make_folder
from posttrain.runs.progress import Progress
from posttrain.runs.read import HELD_OUT
from posttrain.training.checks.memory import EVALUATION_REMEDY, explained
from posttrain.training.checks.preflight import Preflight
from posttrain.training.order import stream_seed
from posttrain.training.records import environment, now
from posttrain.training.rl.tasks import tasks_fingerprint
from posttrain.training.run_record import Timed, begin_run, how_it_ended, left_over
from posttrain.training.stages.correction import make_corrections, rows_to_correct
from posttrain.training.stages.run import prepare, run_stage
from posttrain.training.stages.speech import stage_encoding


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
    _check_devices(recipe)
    _check_rewards(recipe)
    run = RunFolder(recipe.folder)
    with run.locked():
        if fresh:
            _forget(run)
        for note in recipe.notes:
            progress.say(note)
        if left := left_over(run, recipe.stages):
            progress.say(
                f"{run.path} holds {', '.join(left)} of another recipe: no longer listed in run.json; the folder "
                "stays, and --fresh does not remove it"
            )
        begin_run(run, recipe.name, recipe.stages)
        run.write_recipe(recipe.to_yaml())
        try:
            _stages(run, recipe, progress)
        except BaseException as error:
            run.write_run(status=how_it_ended(error))
            # The report of a failed run is worth having; that it fails too must not hide why.
            with suppress(Exception):
                write_report(run.path)
            raise
        _write_cross_scores(run, recipe)
        run.write_run(status="done", ended=now())
        with progress.doing("writing the report"):
            report = write_report(run.path)
    return RunResult(run.path, run.summary(), report)


def check_recipe(recipe: Recipe, *, progress: Progress | None = None) -> dict[str, Preflight]:
    """The preflight of every training stage, and no training: {stage: Preflight}.

    A stage that starts from a model which does not exist yet is checked on the recipe's start model, whose shape is
    the same; a stage whose data an earlier stage has yet to write is left out, and said.

    Raises:
        PosttrainError: a suite's questions or a stage's rows cannot be read or encoded, or a check fails.
    """
    progress = progress or Progress()
    results: dict[str, Preflight] = {}
    _check_devices(recipe)
    _check_rewards(recipe)
    for suite in recipe.evaluate.suites:
        load_suite(suite)
    with _scratch(recipe.folder) as scratch:
        for stage in recipe.stages:
            if isinstance(stage, Correction):
                rows_to_correct(stage, scratch.stage(stage.name))
            if not isinstance(stage, TrainingStage):
                continue
            written = [data.stage for data in data_of(stage).values() if data.stage is not None]
            if written:
                progress.say(f"{stage.name}: not checked; its data is written by `{written[0]}` during the run")
                continue
            folder = scratch.stage(stage.name)
            lenient = stage.model_copy(update={"preflight": stage.preflight.model_copy(update={"on_failure": "warn"})})
            lenient = spoken_before(recipe.stages, lenient)
            begun = continued(recipe.stages, stage.name)
            if begun is not None and isinstance(stage.adapter, Continue):  # no adapter is there yet to go on with
                lenient = lenient.model_copy(update={"adapter": begun})
            folder.write_stage(name=stage.name, method=stage.method, status="running")
            prepared = prepare(lenient, recipe.model, folder, seed=recipe.seed, progress=progress, proof_only=True)
            results[stage.name] = prepared.preflight
    return results


@contextmanager
def _scratch(folder: Path) -> Iterator[RunFolder]:
    """A folder inside the run folder, where there is room for encoded rows; afterwards all is as it was before."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    scratch = RunFolder(folder / ".check")
    shutil.rmtree(scratch.path, ignore_errors=True)
    make_folder(scratch.path)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch.path, ignore_errors=True)
        for path in made:
            with suppress(OSError):  # it was not made after all, or holds something by now
                path.rmdir()


def _check_devices(recipe: Recipe) -> None:
    """A device that this machine does not have is refused before anything is read."""
    for stage in recipe.stages:
        if isinstance(stage, TrainingStage):
            try:
                device_of(stage.compute.device)
            except ConfigError as error:
                error.where = f"{stage.name}.compute.device"
                raise


def _check_rewards(recipe: Recipe) -> None:
    """Makes every reward once, so that a function that is not there is refused now, not hours later at its stage."""
    for stage in recipe.stages:
        if isinstance(stage, SamplingStage):
            require_rewards(stage.rewards, folder=stage.modules, where=f"{stage.name}.rewards")
            require_rewards(stage.examine.rewards, folder=stage.modules, where=f"{stage.name}.examine.rewards")


# ---------------------------------------------------------------- the stages


def _stages(run: RunFolder, recipe: Recipe, progress: Progress) -> None:
    model: str | Path = recipe.model
    training = [stage for stage in recipe.stages if isinstance(stage, TrainingStage)]
    last = [stage.name for stage in training if stage.MAKES_POLICY][-1:]
    speech = _speech_of(training[0] if training else None, model, run)
    asked: list[tuple[StageFolder, str | Path, _Speech]] = [(run.start, model, speech)]
    _evaluate_start(run, recipe, speech, progress)
    for stage in recipe.stages:
        folder = run.stage(stage.name)
        with Timed(run, folder, stage):
            if isinstance(stage, Correction):
                _correct(stage, model, folder, recipe, speech, progress)
            elif isinstance(stage, TrainingStage):
                wanted = stage.MAKES_POLICY and (recipe.evaluate.every_stage or stage.name in last)
                own = _speech_of(stage, model, run)
                _train_stage(stage, model, folder, run, recipe, own, progress, evaluate=wanted)
                if stage.MAKES_POLICY:
                    model, speech = folder.model, own
                    asked += [(folder, model, speech)] if wanted else []
        if isinstance(stage, TrainingStage) and not stage.MAKES_POLICY:
            _judge_earlier(stage.name, asked, run, recipe, progress)


@dataclass(frozen=True, slots=True)
class _Speech:
    """How a model is asked: _Speech(EncoderSettings(template="raw"), device="auto").

    A model is spoken to as the stage that trained it does; the start, as the first stage that will train it does.
    """

    encoding: EncoderSettings
    device: str


def _speech_of(stage: TrainingStage | None, start: str | Path, run: RunFolder) -> _Speech:
    """How a stage speaks to its model, given what it starts from; without a stage, as the start was trained."""
    spoken = speech_of(resolve(start))
    if stage is None:
        return _Speech(spoken.settings(), "auto")
    return _Speech(stage_encoding(stage, spoken, str(run.run()["date"]))[0], stage.compute.device)


def _train_stage(
    stage: TrainingStage,
    start: str | Path,
    folder: StageFolder,
    run: RunFolder,
    recipe: Recipe,
    speech: _Speech,
    progress: Progress,
    *,
    evaluate: bool,
) -> None:
    stage = _with_data(stage, run)
    record = folder.stage() if folder.exists else {}
    with progress.doing(f"{folder.name}: hashing the data and the start model"):
        identity = _quick_identity(stage, start, recipe.seed)
    if _is_done(record, identity, folder, stage):
        progress.say(f"{folder.name}: done before, and nothing that it depends on has changed")
        if evaluate:
            _evaluate_stage(folder, recipe, folder.model, speech, progress)
        _summarise(run, recipe)
        return
    _refuse_changed(record, identity, stage, folder)

    def ask(model: Any, tokenizer: Any) -> None:
        _evaluate_stage(folder, recipe, model, speech, progress, tokenizer=tokenizer)

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


def _correct(
    stage: Correction, model: str | Path, folder: StageFolder, recipe: Recipe, speech: _Speech, progress: Progress
) -> None:
    record = folder.stage() if folder.exists else {}
    identity = _quick_identity(stage, model, recipe.seed, speech.encoding.template_identity)
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
    counts = make_corrections(
        stage,
        model,
        folder,
        seed=recipe.seed,
        progress=progress,
        encoding=speech.encoding,
        device=speech.device,
    )
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


def _quick_identity(stage: StageSettings, start: str | Path, seed: int, *more: str) -> str:
    """The stage's fingerprint from file contents alone, without loading anything; `more` counts like data."""
    contents = [tasks_fingerprint(data) for data in data_of(stage).values() if data.path]
    contents += more
    return stage_fingerprint(stage, data=contents, start_model=folder_fingerprint(resolve(start).folder), seed=seed)


def _is_done(record: Mapping[str, Any], identity: str, folder: StageFolder, stage: StageSettings) -> bool:
    if isinstance(stage, SamplingStage) and record.get("examine_keep", stage.examine.keep) != stage.examine.keep:
        return False  # it ended with other weights than are asked for now
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
    try:
        names = [entry["name"] for entry in run.run().get("stages", [])]
    except SourceError:  # a record that cannot be read is no reason not to begin anew
        names = [path.parent.name for path in run.path.glob("*/stage.json")]
    for name in [*names, "start"]:
        shutil.rmtree(run.stage(name).path, ignore_errors=True)
    for name in ("run.json", "summary.json", "cross_scores.json", "pass_at_k.json", "report.html", "recipe.yaml"):
        (run.path / name).unlink(missing_ok=True)


# ---------------------------------------------------------------- evaluation


def _evaluate_start(run: RunFolder, recipe: Recipe, speech: _Speech, progress: Progress) -> None:
    if not recipe.evaluate.suites:
        return
    _evaluate_stage(run.start, recipe, recipe.model, speech, progress)
    _summarise(run, recipe)


def _judge_earlier(
    judge: str,
    asked: Sequence[tuple[StageFolder, str | Path, _Speech]],
    run: RunFolder,
    recipe: Recipe,
    progress: Progress,
) -> None:
    """The win rates of models that were asked before the reward model was trained that judges them."""
    suites = [suite for suite in recipe.evaluate.suites if isinstance(suite, WinRateSuite)]
    if all(suite.reward_model.stage != judge for suite in suites):
        return
    for folder, model, speech in asked:
        _evaluate_stage(folder, recipe, model, speech, progress)
    _summarise(run, recipe)


def _write_cross_scores(run: RunFolder, recipe: Recipe) -> None:
    """What the win rates' reward models gave every policy, side by side."""
    judges = {
        suite.name: suite.reward_model.stage or Path(str(suite.reward_model.path)).name
        for suite in recipe.evaluate.suites
        if isinstance(suite, WinRateSuite)
    }
    folders = {folder.name: folder.path for folder in [run.start, *run.stages()]}
    record = cross_scores_of_run(folders, judges)
    if record is not None:
        write_cross_scores(run.path, record)


def _with_judge(suite: SuiteSettings, run: RunFolder) -> SuiteSettings:
    """A suite with `reward_model: {stage: NAME}` settled to that stage's model, once it is trained."""
    if not isinstance(suite, WinRateSuite) or suite.reward_model.stage is None:
        return suite
    judge = run.stage(suite.reward_model.stage)
    if not judge.exists or judge.stage().get("status") != "done" or not judge.model.is_dir():
        return suite
    return suite.model_copy(update={"reward_model": RewardModelOf(path=str(judge.model))})


def _evaluate_stage(
    folder: StageFolder, recipe: Recipe, model: Any, speech: _Speech, progress: Progress, *, tokenizer: Any = None
) -> None:
    """Ask the suites; answers that are there already, from the same model and the same questions, stay."""
    if not recipe.evaluate.suites:
        return
    with explained(None, "the evaluation", EVALUATION_REMEDY), progress.doing(f"{folder.name}: evaluation"):
        evaluate_model(
            model,
            [_with_judge(suite, RunFolder(recipe.folder)) for suite in recipe.evaluate.suites],
            folder,
            baseline=recipe.folder / "start",
            seed=stream_seed(recipe.seed, "evaluation"),
            progress=progress,
            tokenizer=tokenizer,
            encoding=speech.encoding,
            device=speech.device,
        )


def _summarise(run: RunFolder, recipe: Recipe) -> None:
    """summary.json: {stage: {suite.metric: value}}, the start first; a reward model has its held-out figures, a stage
    that samples its held-out score at the start, at its best, at the end, and of the weights that it kept.

    And pass_at_k.json, where a suite asks for it: what each stage did to the reach of the policy before it.
    """
    table: dict[str, dict[str, float]] = {}
    for folder in [run.start, *(run.stage(stage.name) for stage in recipe.stages)]:
        evaluation, reward = folder.evaluation(), folder.reward_evaluation() or folder.step_evaluation()
        figures = {
            f"{suite}.{metric}": entry["value"]
            for suite, metrics in (evaluation or {}).items()
            for metric, entry in metrics.items()
        }
        for head in ("untrained", "trained"):
            scored = (reward or {}).get(head) or {}
            figures |= {f"{head}.{metric}": entry["value"] for metric, entry in scored.items()}
        examined = (folder.stage().get("held_out_score") if folder.exists else None) or {}
        figures |= {f"{HELD_OUT}.{moment}": entry["value"] for moment, entry in examined.items()}
        if figures:
            table[folder.name] = figures
    run.write_summary(table)
    suites = [suite.name for suite in recipe.evaluate.suites if isinstance(suite, PassAtKSuite)]
    if suites:
        folders = {folder.name: folder.path for folder in [run.start, *(run.stage(s.name) for s in recipe.stages)]}
        write_changes(run.path, changes_of_run(folders, suites))
