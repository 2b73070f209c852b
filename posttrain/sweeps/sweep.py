"""A sweep from its plan to its table: `posttrain sweep`, and `pt.sweep` from Python.

found = sweep("mine.yaml", {"dpo.beta": [0.05, 0.1, 0.2], "seed": range(5)}, by="sums.accuracy")
print(found)
found.best.settings, found.best.expected
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.arguments import checked_flag, checked_name, checked_seed, checked_text, checked_whole, wrong_argument
from posttrain.config import Recipe, TrainingStage
from posttrain.data.templates.clock import today
from posttrain.errors import ConfigError, ResumeError
from posttrain.parallel.job import job_of
from posttrain.runs.files import write_json, write_text
from posttrain.runs.folder import RunFolder
from posttrain.runs.progress import Progress, clock
from posttrain.runs.shared import remove_drafts
from posttrain.runs.showing import Shown, showing
from posttrain.sweeps.figures import HIGHER, LOWER, By
from posttrain.sweeps.optuna_design import Chosen, require_optuna
from posttrain.sweeps.page import write_page
from posttrain.sweeps.plan import DESIGNS, GRID, OPTUNA, SweepPlan, planned
from posttrain.sweeps.queues import Halved, InOrder, Queue, State, begun, over
from posttrain.sweeps.record import DONE, FAILED, INTERRUPTED, PENDING, RUNNING, SCHEMA, SweepRecord
from posttrain.sweeps.results import Best, Results, Row, results
from posttrain.sweeps.runner import Here, Processes
from posttrain.sweeps.spec import SweepSpec, inputs_of_runs
from posttrain.sweeps.table import text_of
from posttrain.training.interrupts import ending_signals

TABLE = "table.json"
RECIPE = "recipe.yaml"


@dataclass(frozen=True, slots=True)
class Asked:
    """How a sweep is run, checked: Asked("grid", by="sums.accuracy", jobs=2)."""

    design: str = GRID
    by: str | None = None
    better: str | None = None
    trials: int | None = None
    design_seed: int = 0
    halving: tuple[int, int] | None = None
    """(rungs, keep)."""
    jobs: int = 1
    restart_failed: bool = False

    def __post_init__(self) -> None:
        checked_name("design", self.design, DESIGNS)
        if self.by is not None:
            By.parse(checked_text("by", self.by, "sums.accuracy"))
        if self.better is not None:
            checked_name("direction", self.better, (HIGHER, LOWER))
        if self.trials is not None:
            checked_whole("trials", self.trials, least=1, example=20)
        checked_whole("jobs", self.jobs, least=1)
        checked_seed(self.design_seed)
        checked_flag("restart_failed", self.restart_failed)
        if (self.design == GRID) != (self.trials is None):
            raise ConfigError(
                "a grid tries every combination"
                if self.design == GRID
                else f"a {self.design} design has no end of its own",
                found=f"trials={self.trials}, design={self.design}",
                remedy="leave out `--trials`, or draw: `--design random`"
                if self.design == GRID
                else "say how many settings it tries: `--trials 20` (from Python: trials=20)",
            )
        needs = "early_stop" if self.halving is not None else "design optuna" if self.design == OPTUNA else None
        if needs is not None and self.by is None:
            raise ConfigError(
                f"nothing says what {'is stopped by' if self.halving else 'Optuna is to look for'}",
                expected="the figure that chooses",
                example="--by sums.accuracy",
                remedy="name a suite and its metric with `--by` (from Python: by=)",
            )
        if self.halving is not None and self.design == OPTUNA:
            raise ConfigError(
                "Optuna learns from settings that were run to their end, and an early stop ends them before",
                found="design=optuna with early_stop",
                remedy="leave one of them out: `--design random --early-stop` compares many settings cheaply",
            )
        for name, value in zip(("rungs", "keep"), self.halving or (), strict=False):
            checked_whole(name, value, least=2, example=3)


@dataclass(frozen=True, slots=True, repr=False)
class Sweep:
    """A sweep that was run, or as much of it as there is: Sweep(Path("runs/mine-sweep"), results)."""

    folder: Path
    results: Results

    @property
    def best(self) -> Best | None:
        """The chosen setting; None without `by`, or while no setting is done with all of its seeds."""
        return self.results.best

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.results.rows

    @property
    def failed(self) -> dict[str, str]:
        """The error of each run that failed, by its folder."""
        return {name: error for row in self.results.rows for name, error in row.errors.items()}

    @property
    def report(self) -> Path:
        return self.folder / "sweep.html"

    def __str__(self) -> str:
        return text_of(self.results)

    def __repr__(self) -> str:
        return f"Sweep({str(self.folder)!r}, settings={len(self.rows)}, failed={len(self.failed)})"


def sweep(
    recipe: Recipe | str | Path,
    settings: Mapping[str, Any] | Sequence[str],
    *,
    by: str | None = None,
    better: str | None = None,
    design: str = GRID,
    trials: int | None = None,
    design_seed: int = 0,
    early_stop: bool | Mapping[str, int] = False,
    jobs: int = 1,
    restart_failed: bool = False,
    name: str | None = None,
    out: str | Path | None = None,
    progress: Shown = None,
) -> Sweep:
    """Run a recipe with every setting of a design and every seed, each into a run folder of its own.

    Called again with the same arguments it goes on: what is done stays, what was interrupted goes on from its
    checkpoint, and more values, seeds or trials add runs. Stages that are the same in several runs are trained once. A
    run that fails is in the table with its error, and the others go on.

    Args:
        settings: by key, as an override has it: {"dpo.beta": [0.05, 0.1], "sft.learning_rate": "1e-5..1e-3 log",
            "seed": range(5)}. A list is varied, a range is drawn from, all else is set in every run. Or a list of
            texts, as the command line has them.
        by: the figure that chooses the best setting: "sums.accuracy", of the last stage that has it, or
            "dpo:sums.accuracy".
        better: "higher" or "lower"; None: as the suite's kind says.
        design: "grid", "random" or "optuna"; the last two need `trials`.
        trials: how many settings are tried.
        design_seed: of the draws.
        early_stop: True, or {"rungs": 3, "keep": 3}: runs pause at rungs, and only the best there go on (ASHA).
        jobs: so many runs at a time, each in a process of its own.
        restart_failed: run those again that failed before.
        name: of the sweep's folder; None: `<recipe>-sweep`.
        out: the folder that it lies in; None: the recipe's.
        progress: None shows it in a terminal, a notebook and, seldom, a log; False is silent.

    Raises:
        ConfigError, UnknownKeyError: an argument is none of these, or a recipe refuses one of the values.
        ResumeError: the folder holds a sweep of another recipe, design or data.
        MissingExtraError: optuna is not installed.
    """
    asked = Asked(design, by, better, trials, design_seed, halving_of(early_stop), jobs, restart_failed)
    spec = SweepSpec.of(recipe, settings, name=name, out=out)
    with showing(progress, in_logs=True) as shown, ending_signals():
        return run_sweep(spec, asked, shown)


def halving_of(early_stop: Any) -> tuple[int, int] | None:
    """(rungs, keep) of what was asked for. Raises ConfigError for what says neither."""
    if early_stop is False or early_stop is None:
        return None
    given = {} if early_stop is True else early_stop
    if not isinstance(given, Mapping) or not set(given) <= {"rungs", "keep"}:
        raise wrong_argument(
            "early_stop",
            early_stop,
            expected="True, or {'rungs': 3, 'keep': 3}",
            remedy="write `early_stop=True`, or leave it out",
        )
    return given.get("rungs", 3), given.get("keep", 3)


def run_sweep(spec: SweepSpec, asked: Asked, progress: Progress) -> Sweep:
    """As `sweep`, of what has been checked."""
    _require_alone()
    plan = plan_of(spec, asked)
    with RunFolder(spec.folder).locked(progress.say):
        remove_drafts(spec.folder)
        state = _begun(spec, asked, plan)
        for line in plan.said:
            progress.say(line)
        queue = _queue(spec, asked, state)
        workers = (
            Here(spec.folder, str(state.record.date), progress)
            if asked.jobs == 1
            else Processes(spec.folder, str(state.record.date), asked.jobs, progress.say)
        )
        try:
            _work(state, queue, workers, plan, progress)
        finally:
            workers.stop()
            for run in state.record.runs:
                if run.status == RUNNING:
                    state.change(replace(run, status=INTERRUPTED))
            found = results(spec.folder, state.record)
            write_json(spec.folder / TABLE, found.to_json())
            write_page(spec.folder, found, state.record)
    return Sweep(spec.folder, found)


def _require_alone() -> None:
    if (job := job_of(os.environ)) is not None:
        raise ConfigError(
            "a sweep starts its own runs, and cannot be one rank of a job",
            found=f"rank {job.rank} of {job.size}",
            remedy="start it without torchrun; `--jobs N` runs N at a time",
        )


def plan_of(spec: SweepSpec, asked: Asked) -> SweepPlan:
    """What would be run; nothing is written.

    Raises:
        ConfigError, UnknownKeyError, MissingExtraError: what is asked for cannot be done.
        ResumeError: the folder holds a sweep of another recipe or design.
    """
    before = SweepRecord.read(spec.folder)
    if asked.by is not None:
        By.parse(asked.by).direction(spec.base, asked.better)
    if asked.design == OPTUNA:
        require_optuna()
    if asked.design != GRID and not spec.axes:
        raise ConfigError(
            "nothing is varied that could be drawn",
            expected="a list or a range beside the seed",
            example="dpo.learning_rate='1e-5..1e-3 log'",
            remedy="write a setting's values, or leave out `--design`: a grid repeats one setting over seeds",
        )
    if asked.halving is not None:
        _stage_to_halve(spec.base, asked)
    if before is not None:
        _require_same(spec, asked, before)
    plan = planned(spec, asked.design, trials=asked.trials, design_seed=asked.design_seed, before=before)
    if asked.halving is not None and len({run.setting for run in plan.runs}) < 2:
        raise ConfigError(
            "an early stop compares settings, and there is one",
            remedy="vary a setting beside the seed, or leave out `--early-stop`",
        )
    return plan


def _require_same(spec: SweepSpec, asked: Asked, before: SweepRecord) -> None:
    """More values, seeds or trials are the same sweep; another recipe or way of drawing is another one.

    Raises:
        ResumeError: names what differs.
    """
    changed = []
    stored = spec.folder / RECIPE
    if stored.exists():
        changed += spec.changes(stored.read_text(encoding="utf-8"))
    drawn = before.design != GRID and before.design_seed != asked.design_seed
    if before.design != asked.design or drawn:
        kept = "" if not drawn else f" with the seed {before.design_seed}"
        changed.append(f"the design was {before.design}{kept}")
    if before.design != GRID and (axes := [str(axis) for axis in spec.axes]) != list(before.axes):
        # Another range would draw other settings under the same numbers.
        changed.append(f"it drew from {', '.join(before.axes)}, not from {', '.join(axes)}")
    if changed:
        raise ResumeError(
            "this folder holds a sweep that was asked for something else",
            where=spec.folder,
            found="; ".join(changed),
            expected="the same recipe and design; more values, seeds or trials may be added",
            remedy="undo the change to go on, or give the new sweep a name: `--name OTHER` (from Python: name=)",
        )


def _begun(spec: SweepSpec, asked: Asked, plan: SweepPlan) -> State:
    """sweep.json and recipe.yaml, before the first run."""
    before = SweepRecord.read(spec.folder)
    inputs = inputs_of_runs([spec.base, *plan.recipes.values()])
    if before is not None:
        other = [name for name, content in before.inputs.items() if inputs.get(name, content) != content]
        if other:
            raise ResumeError(
                "files that the runs of this sweep read have changed since it began",
                where=spec.folder,
                found=", ".join(other),
                expected="the files as they were: runs over other rows are not comparable with those that are done",
                remedy="put them back, or give the new sweep a name: `--name OTHER` (from Python: name=)",
            )
        inputs = {**before.inputs, **inputs}
    same_rungs = before is not None and (before.halving == asked.halving)
    runs = []
    for run in plan.runs:
        if run.status == FAILED and asked.restart_failed:
            kept = tuple(score for score in run.rungs or () if score is not None)
            run = replace(run, status=PENDING, error=None, rungs=kept or None)
        runs.append(run if same_rungs or run.rungs is None else replace(run, rungs=None))
    record = SweepRecord(
        schema=SCHEMA,
        name=spec.folder.name,
        design=asked.design,
        axes=tuple(str(axis) for axis in spec.axes),
        date=before.date if before is not None else today(),
        inputs=inputs,
        runs=tuple(runs),
        by=asked.by,
        better=None if asked.by is None else By.parse(asked.by).direction(spec.base, asked.better),
        halving=asked.halving,
        trials=asked.trials,
        design_seed=asked.design_seed,
    )
    record.write(spec.folder)
    write_text(spec.folder / RECIPE, spec.base.to_yaml())
    return State(spec.folder, record, dict(plan.recipes))


def _queue(spec: SweepSpec, asked: Asked, state: State) -> Queue:
    lower = state.record.better == LOWER
    if asked.design == OPTUNA:
        return Chosen(state, spec, asked.trials or 0, asked.design_seed, lower=lower, at_once=asked.jobs)
    if asked.halving is not None:
        return Halved(state, _stage_to_halve(spec.base, asked), *asked.halving, lower=lower)
    return InOrder(state)


def _stage_to_halve(recipe: Recipe, asked: Asked) -> str:
    """The stage that pauses at rungs: the last that trains a policy, since `by` is asked of what it trains.

    Raises:
        ConfigError: it is none that can, or `by` is no suite that could be asked of it while it trains.
    """
    by = By.parse(str(asked.by))
    last = next((stage for stage in reversed(recipe.stages) if stage.OUTPUTS == "policy"), None)
    if by.suite not in [suite.name for suite in recipe.evaluate.suites]:
        raise ConfigError(
            "an early stop asks a suite at rungs, and this figure is of none",
            where=f"--by {by}",
            found=by.suite,
            expected=f"one of {', '.join(suite.name for suite in recipe.evaluate.suites) or 'the recipe`s suites'}",
            remedy="choose by a suite's metric, or leave out `--early-stop`",
        )
    if not isinstance(last, TrainingStage) or (by.stage is not None and by.stage != last.name):
        found = "no stage" if last is None else f"`{last.name}` ({last.method})"
        raise ConfigError(
            "an early stop needs a last stage that trains the policy which `by` is asked of",
            where=f"--by {by}",
            found=f"the last policy is of {found}",
            remedy="leave out the stage in `--by`, or leave out `--early-stop`",
        )
    return last.name


def _work(state: State, queue: Queue, workers: Here | Processes, plan: SweepPlan, progress: Progress) -> None:
    while True:
        while workers.running < workers.slots and (job := queue.next()) is not None:
            run = state.run(job.run)
            state.change(begun(run))
            rung = f", until rung {job.rung + 1}" if job.pause is not None and job.rung is not None else ""
            progress.say(f"--- {job.run}{rung}")
            workers.start(job)
        if not workers.running:
            return
        job, outcome = workers.outcome()
        state.change(over(state.run(job.run), outcome))
        figure = "" if outcome.score is None else f", {job.by} {outcome.score:.4g}"
        why = "" if outcome.error is None else f": {outcome.error}"
        progress.say(f"--- {job.run}: {outcome.status}{figure}{why}")
        queue.ended(job, outcome)
        over_now = sum(run.status in (DONE, FAILED) for run in state.record.runs)
        seconds = replace(plan, runs=state.record.runs, recipes=state.recipes).seconds_left()
        if over_now < len(state.record.runs) and seconds is not None and state.record.halving is None:
            progress.say(
                f"--- {over_now} of {len(state.record.runs)} runs are over; about {clock(seconds)} of work left"
            )
