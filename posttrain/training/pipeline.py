"""A recipe from its first stage to its report.

Each stage starts from the last model before it, or from the one that it names. A finished stage is not run again unless
its inputs changed, and then its earlier result is kept under another name; an interrupted one goes on from its
checkpoint. After every stage that trains, the same suites ask the new model what they asked the start.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.arguments import checked_flag, checked_instance
from posttrain.config import Recipe, StageSettings, TrainingStage, data_of
from posttrain.config.adapters import Continue
from posttrain.config.chain import continued, spoken_before
from posttrain.config.lineage import START, started_from
from posttrain.config.nested import scorers_of, teachers_of, with_scorers, with_teachers
from posttrain.config.online import SamplingStage
from posttrain.config.settings import ReadSettings
from posttrain.config.teacher import LocalTeacher
from posttrain.config.twins import twin_pairs
from posttrain.errors import ConfigError, SourceError
from posttrain.evaluate.runner import what_it_can_show
from posttrain.evaluate.suites import load_suite
from posttrain.evaluate.twins import write_twins
from posttrain.models.devices import device_of
from posttrain.models.folders.own_code import folder_code
from posttrain.parallel.calls import driven, everywhere
from posttrain.report import write_report
from posttrain.rewards import require_rewards
from posttrain.runs.folder import EARLIER, RunFolder, StageFolder, make_folder, remove_results
from posttrain.runs.progress import Progress
from posttrain.runs.records.files import RUN_FILES
from posttrain.runs.records.preflight import DecodedRow
from posttrain.runs.records.stage import StageRecord
from posttrain.runs.showing import Shown, showing
from posttrain.training.checks.preflight import Preflight
from posttrain.training.earlier import clear_checkpoints, inputs_of, make_room, require_inputs_elsewhere
from posttrain.training.evaluation import (
    RunSuites,
    evaluate_stage,
    evaluate_start,
    judge_earlier,
    summarise,
    with_trained,
    write_run_cross_scores,
)
from posttrain.training.identity import identity_of_recipe
from posttrain.training.interrupts import ending_signals
from posttrain.training.own_objective import require_objective
from posttrain.training.pausing import rung_folder
from posttrain.training.provenance import now
from posttrain.training.rl.servers import require_servers
from posttrain.training.run_record import Timed, begin_run, how_it_ended, left_over, of_main
from posttrain.training.siblings import ALONE, Within
from posttrain.training.stages.kind import OUTPUT_NAMES, MakingKind, StageContext, TrainingKind
from posttrain.training.stages.prepare import prepare
from posttrain.training.stages.run import run_stage
from posttrain.training.stages.speech import AnswerSettings, answer_settings, first_trained
from posttrain.training.stages.table import kind_of_stage
from posttrain.training.tracking.notify import notifying, require_notify
from posttrain.training.tracking.trackers.table import require_trackers


@dataclass(frozen=True, slots=True)
class RunResult:
    """RunResult(Path("runs/quickstart"), summary={"start": {"identity": 0.0}, ...}, report=Path(".../report.html"))."""

    folder: Path
    summary: Mapping[str, Mapping[str, float | None]]
    report: Path


def run_recipe(recipe: Recipe, *, fresh: bool = False, progress: Shown = None) -> RunResult:
    """Run what is not finished yet, evaluate, and write the report.

    Args:
        fresh: forget what the run folder holds and begin anew; earlier results that were moved aside stay.
        progress: None shows it in a terminal, a notebook and, seldom, a log; False is silent.

    Under torch.distributed every rank calls this; rank 0 runs the recipe, and the others join it in what is computed.

    Raises:
        PosttrainError: of whatever stage fails; the report is written all the same and shows how far it came.
    """
    _require_recipe(recipe)
    checked_flag("fresh", fresh)
    return run_within(recipe, ALONE, fresh=fresh, progress=progress)


def run_within(recipe: Recipe, within: Within, *, fresh: bool = False, progress: Shown = None) -> RunResult:
    """`run_recipe`, as one run of a sweep: with stages that its siblings have finished, and a rung where it pauses.

    Raises:
        Paused: at the rung, with a checkpoint.
        PosttrainError: as `run_recipe`.
    """
    with showing(of_main(progress), in_logs=True) as shown, folder_code(recipe.model_code), ending_signals():
        return driven(lambda: _run(recipe, fresh, shown, within), own=(shown,))


def _run(recipe: Recipe, fresh: bool, progress: Progress, within: Within) -> RunResult:
    _check_devices(recipe)
    _check_rewards(recipe, fresh=fresh)
    run = RunFolder(recipe.folder)
    with run.locked(progress.say):
        if fresh:
            _forget(run, recipe, progress)
        for note in recipe.notes:
            progress.say(note)
        if left := left_over(run, recipe.stages):
            progress.say(
                f"{run.path} holds {', '.join(left)} of another recipe: no longer listed in run.json; the folder "
                "stays, and --fresh does not remove it"
            )
        begin_run(run, recipe.name, recipe.stages)
        run.write_recipe(recipe.to_yaml())
        with notifying(recipe.notify, run, say=progress.say):
            report = _run_to_report(run, recipe, progress, within)
    return RunResult(run.path, run.summary(), report)


def _run_to_report(run: RunFolder, recipe: Recipe, progress: Progress, within: Within) -> Path:
    try:
        _run_stages(run, recipe, progress, within)
    except BaseException as error:
        run.write_run(status=how_it_ended(error))
        # The report of a failed run is worth having; that it fails too must not hide why.
        with suppress(Exception):
            write_report(run.path)
        raise
    write_run_cross_scores(run, recipe.evaluate.suites)
    write_twins(run, twin_pairs(recipe.stages))  # once more: only now is the last stage done
    run.write_run(status="done", ended=now())
    with progress.doing("writing the report"):
        return write_report(run.path)


def check_recipe(
    recipe: Recipe,
    *,
    progress: Shown = None,
    show_first: Callable[[str, Sequence[DecodedRow]], None] | None = None,
) -> dict[str, Preflight]:
    """The preflight of every training stage, and no training: {stage: Preflight}.

    A stage that starts from a model which does not exist yet is checked on the recipe's start model, whose shape is
    the same. Of a stage that trains nothing, what it works on is read; a stage whose data it has yet to write is
    checked on rows that stand in for them, or not at all, and a line says so.

    Args:
        show_first: called with a stage's name and its first rows before all its rows are read and encoded.
        progress: as of `run_recipe`.

    Raises:
        PosttrainError: a suite's questions or a stage's rows cannot be read or encoded, or a check fails.
    """
    _require_recipe(recipe)
    with showing(of_main(progress), in_logs=True) as shown, folder_code(recipe.model_code):
        return driven(lambda: _check(recipe, shown, show_first))


def _require_recipe(recipe: Any) -> None:
    remedy = "write `pt.load_recipe(PATH)`, which reads and checks the file"
    checked_instance("recipe", recipe, Recipe, expected="a Recipe", remedy=remedy)


def _check(
    recipe: Recipe, progress: Progress, show_first: Callable[[str, Sequence[DecodedRow]], None] | None
) -> dict[str, Preflight]:
    results: dict[str, Preflight] = {}
    stood_in: set[str] = set()
    # The suites first: a question file that is not there is found before a model is loaded.
    _check_devices(recipe)
    _check_rewards(recipe)
    for suite in recipe.evaluate.suites:
        for said in what_it_can_show(suite, load_suite(suite)):
            progress.say(said)
    with _scratch(recipe.folder) as scratch:
        for stage in recipe.stages:
            written = [part.stage for data in data_of(stage).values() for part in data.parts if part.stage is not None]
            if unknown := [name for name in written if name not in stood_in]:
                progress.say(f"{stage.name}: not checked; its data is written by `{unknown[0]}` during the run")
                continue
            if written:
                progress.say(
                    f"{stage.name}: checked on stand-ins for the rows of `{written[0]}`; what the model answers there, "
                    "and what its length takes, is known in the run"
                )
            ctx: StageContext[Any] = StageContext(
                _located(stage, scratch, recipe.model, is_check=True),
                recipe.model,
                scratch.stage(stage.name),
                recipe.seed,
                progress,
                proof_only=True,
                show_first=show_first,
                split_seed=recipe.split_seed,
                suites=recipe.evaluate.suites,
            )
            kind = kind_of_stage(stage)
            if isinstance(kind, MakingKind):
                inputs = kind.inputs(ctx)
                if kind.stand_in is not None:
                    progress.say(f"{stage.name}: {kind.stand_in(ctx, inputs)}")
                    stood_in.add(stage.name)
            else:
                ctx.folder.write_stage(name=stage.name, method=stage.method, status="running")
                results[stage.name] = everywhere(_proven, replace(ctx, stage=_as_checked(ctx.stage, recipe)))
    return results


def _proven(ctx: StageContext[TrainingStage]) -> Preflight:
    """On every rank: a model may be checked in the parts in which it will train."""
    return prepare(ctx).preflight


def _as_checked(stage: TrainingStage, recipe: Recipe) -> TrainingStage:
    """The stage as it will be once the stages before it are done, with checks that stop nothing: all are shown."""
    lenient = stage.model_copy(update={"preflight": stage.preflight.model_copy(update={"on_failure": "warn"})})
    lenient = spoken_before(recipe.stages, lenient)
    begun = continued(recipe.stages, stage.name)
    if begun is not None and isinstance(stage.adapter, Continue):  # no adapter is there yet to go on with
        lenient = lenient.model_copy(update={"adapter": begun})
    return lenient


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
    """A device that this machine does not have, and a tracker that is not there, are refused before anything is
    read."""
    for stage in recipe.stages:
        if isinstance(stage, TrainingStage):
            require_trackers(stage.log.trackers, f"{stage.name}.log.to")
            try:
                device_of(stage.compute.device)
            except ConfigError as error:
                error.where = f"{stage.name}.compute.device"
                raise


def _check_rewards(recipe: Recipe, *, fresh: bool = False) -> None:
    """Makes every reward and objective once, so that a function that is not there is refused now, not hours later at
    its stage; and looks for the servers that a stage asks."""
    run = RunFolder(recipe.folder)
    require_notify(recipe.notify)
    for stage in recipe.stages:
        require_objective(stage)
        if isinstance(stage, SamplingStage):
            folder = run.stage(stage.name)
            # A stage that is done asks nobody any more.
            if fresh or not (folder.exists and folder.stage().status == "done"):
                require_servers(stage)
            require_rewards(stage.rewards, folder=stage.modules, where=f"{stage.name}.rewards")
            require_rewards(stage.examine.rewards, folder=stage.modules, where=f"{stage.name}.examine.rewards")


# ---------------------------------------------------------------- the stages


def _run_stages(run: RunFolder, recipe: Recipe, progress: Progress, within: Within) -> None:
    """Each stage from the policy that it starts from; a policy is asked the suites when it is made, and once more when
    a reward model that judges it is."""
    model: str | Path = recipe.model
    date = str(run.run().date)
    first = first_trained(recipe.stages)
    last = [stage.name for stage in recipe.stages if stage.OUTPUTS == "policy"][-1:]
    answers = answer_settings(first, model, date)
    asked: list[tuple[StageFolder, str | Path, AnswerSettings]] = [(run.start, model, answers)]
    made: dict[str, tuple[str | Path, AnswerSettings]] = {START: (model, answers)}
    within.link_start(run, recipe, progress)
    evaluate_start(run, recipe, answers, progress)
    within.note_start(run, recipe)

    for stage in recipe.stages:
        folder = run.stage(stage.name)
        above = started_from(recipe.stages, stage)
        model, answers = made[START if above is None else above.name]
        evaluate = stage.OUTPUTS == "policy" and (recipe.evaluate.every_stage or stage.name in last)
        # The turn ends after the stage's last record is written, or a sibling would find it unfinished.
        with ExitStack() as held, Timed(run, folder, stage) as timed:
            own = answer_settings(stage, model, date) if isinstance(stage, TrainingStage) else answers
            ctx = StageContext(
                _located(stage, run, recipe.model),
                model,
                folder,
                recipe.seed,
                progress,
                answers=own,
                split_seed=recipe.split_seed,
                suites=recipe.evaluate.suites,
                pause=within.pause if within.pause is not None and within.pause.stage == stage.name else None,
            )
            with ctx.doing("hashing the data and the start model"):
                ctx = replace(ctx, identity=identity_of_recipe(ctx, own))
            make_room(ctx, run, timed)
            held.enter_context(within.turn(ctx))
            _run_unless_done(ctx, run, recipe, own, evaluate=evaluate)
        if stage.OUTPUTS == "policy":
            made[stage.name] = (folder.model, own)
            asked += [(folder, folder.model, own)] if evaluate else []
        if stage.OUTPUTS == "reward":
            judge_earlier(stage.name, asked, run, recipe, progress)


def _run_unless_done(
    ctx: StageContext[StageSettings],
    run: RunFolder,
    recipe: Recipe,
    answers: AnswerSettings,
    *,
    evaluate: bool,
) -> None:
    """Run the stage, unless it ran before on the same inputs; its model is asked the suites either way."""
    folder, progress = ctx.folder, ctx.progress

    def ask(model: Any, tokenizer: Any) -> None:
        evaluate_stage(folder, recipe, model, answers, progress, tokenizer=tokenizer)

    def ask_at_rung(step: int, model: Any, tokenizer: Any) -> None:
        assert ctx.pause is not None
        suites = tuple(suite for suite in recipe.evaluate.suites if suite.name == ctx.pause.suite)
        asked = RunSuites(run, suites, recipe.seed)
        asked.ask(rung_folder(folder, step), model, answers, progress, tokenizer=tokenizer)

    outcome = None
    record = folder.stage() if folder.exists else StageRecord()
    if _is_done(record, ctx):
        ctx.say("done before, and nothing that it depends on has changed")
    else:
        if record.status == "done":
            clear_checkpoints(folder)
        outcome = run_stage(ctx, evaluate=ask if evaluate else None, at_rung=ask_at_rung)
    if outcome is None and evaluate and not ctx.stage.keeps_output:
        if recipe.evaluate.suites:
            ctx.say("its model was not kept (`export: none`), so the suites that were asked then are not asked again")
    elif outcome is None and evaluate:  # a stage that trains asks its model while the save is read back
        evaluate_stage(folder, recipe, folder.model, answers, progress)
    summarise(run, recipe)


def _located(stage: StageSettings, run: RunFolder, start: str | Path, *, is_check: bool = False) -> StageSettings:
    """The stage with files and folders in the place of the earlier stages that it names.

    Args:
        is_check: those stages have not run: rows are their stand-ins in `run`, models what the kind takes for them.
    """
    kind, stage = kind_of_stage(stage), _with_data(stage, run)
    return kind.with_models(stage, None if is_check else run, start) if isinstance(kind, MakingKind) else stage


def _with_data(stage: StageSettings, run: RunFolder) -> StageSettings:
    """The stage with `data: {stage: NAME}` resolved to the file that stage wrote, a search's `scorer: {stage: NAME}`
    to the reward model that stage trained."""

    def located(part: ReadSettings) -> ReadSettings:
        if part.stage is None:
            return part
        return part.model_copy(update={"path": (str(_rows_of(part, run)),), "stage": None, "rows": None})

    written = {
        key: data.with_parts(located)
        for key, data in data_of(stage).items()
        if any(part.stage is not None for part in data.parts)
    }
    if any(scorer.stage is not None for _, scorer in scorers_of(stage)):
        stage = with_scorers(stage, lambda scorer: with_trained(scorer, run))
    if any(teacher.stage is not None for _, teacher in teachers_of(stage)):
        stage = with_teachers(stage, lambda teacher: _trained_teacher(teacher, run))
    return stage.model_copy(update=written)


def _rows_of(data: ReadSettings, run: RunFolder) -> Path:
    """The file that a stage has written: its rows, or of a selection the random ones beside them."""
    name = OUTPUT_NAMES["data"] if data.rows is None else f"{data.rows}.jsonl"
    return run.stage(str(data.stage)).path / name


def _trained_teacher(teacher: LocalTeacher, run: RunFolder) -> LocalTeacher:
    """A teacher that a stage of the recipe trained, by its folder."""
    if teacher.stage is None:
        return teacher
    return teacher.model_copy(update={"model": str(run.stage(teacher.stage).model), "stage": None})


# ---------------------------------------------------------------- done before, or to be done anew


def _is_done(record: StageRecord, ctx: StageContext[StageSettings]) -> bool:
    assert ctx.identity is not None
    kind = kind_of_stage(ctx.stage)
    if isinstance(kind, TrainingKind) and not kind.ends_as_asked(ctx.stage, record):
        return False
    is_there = (ctx.folder.path / OUTPUT_NAMES[kind.outputs]).exists()
    # Under `export: none` the figures are the result, and no folder belongs to them.
    is_there = is_there or not ctx.stage.keeps_output
    return record.status == "done" and record.quick_identity == ctx.identity.quick and is_there


def _forget(run: RunFolder, recipe: Recipe, progress: Progress) -> None:
    """--fresh: only what posttrain itself wrote is removed, and no earlier result that was moved aside.

    Raises:
        ConfigError: something cannot be removed; what stays would be taken for a result of the run that follows. Or the
            recipe begins from it.
    """
    if not run.exists:
        return
    try:
        names = [entry.name for entry in run.run().stages]
    except SourceError:  # a record that cannot be read is no reason not to begin anew
        names = [path.parent.name for path in run.path.glob("*/stage.json") if not EARLIER.fullmatch(path.parent.name)]
    results = [run.stage(name).path for name in [*names, "start"]]
    require_inputs_elsewhere(results, inputs_of(recipe.model, recipe.stages))
    remove_results(results)
    # By name, never the folder: a run folder may hold a user's own files.
    for name in (*RUN_FILES, "report.html", "recipe.yaml"):
        (run.path / name).unlink(missing_ok=True)
    if kept := run.earlier():
        progress.say(
            f"earlier results stay, --fresh removes the current ones alone: {', '.join(folder.name for folder in kept)}"
        )
