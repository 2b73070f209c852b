"""Which run comes next: all in their order, or those that successive halving lets go on.

    queue = InOrder(state, by="sums.accuracy")
    while (job := queue.next()) is not None: ...
    queue.ended(job, outcome)

A queue knows what has become of every run from the state alone, so that a sweep that is resumed goes on as if it had
never stopped. `next` gives None where nothing can be begun until something else has ended; with nothing running, the
sweep is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Protocol

from posttrain.config import Recipe
from posttrain.errors import ConfigError
from posttrain.runs.folder import RunFolder
from posttrain.sweeps.asha import Halving
from posttrain.sweeps.figures import By, figure_names
from posttrain.sweeps.record import DONE, FAILED, INTERRUPTED, PAUSED, PENDING, RUNNING, SweepRecord, SweepRun
from posttrain.sweeps.runner import Job, Outcome
from posttrain.training.pausing import Pause


@dataclass(slots=True)
class State:
    """The record as it is on the disk, with the recipes of its runs."""

    folder: Path
    record: SweepRecord
    recipes: dict[str, Recipe]

    def run(self, name: str) -> SweepRun:
        return next(run for run in self.record.runs if run.folder == name)

    def change(self, run: SweepRun) -> None:
        runs = tuple(run if other.folder == run.folder else other for other in self.record.runs)
        self.record = replace(self.record, runs=runs)
        self.record.write(self.folder)

    def add(self, runs: list[SweepRun], recipes: Mapping[str, Recipe]) -> None:
        self.recipes |= recipes
        self.record = replace(self.record, runs=(*self.record.runs, *runs))
        self.record.write(self.folder)

    def job(self, run: SweepRun, pause: Pause | None = None, rung: int | None = None) -> Job:
        return Job(run.folder, self.recipes[run.folder], pause, self.record.by, rung)

    def of_setting(self, setting: int) -> list[SweepRun]:
        return [run for run in self.record.runs if run.setting == setting]


class Queue(Protocol):
    def next(self) -> Job | None: ...

    def ended(self, job: Job, outcome: Outcome) -> None:
        """To be called when the state has the outcome."""


class InOrder:
    """Every run that is not over, once."""

    def __init__(self, state: State):
        self.state = state
        self._left = [run.folder for run in state.record.runs if run.status in (PENDING, INTERRUPTED, PAUSED)]

    def next(self) -> Job | None:
        return self.state.job(self.state.run(self._left.pop(0))) if self._left else None

    def ended(self, job: Job, outcome: Outcome) -> None:
        require_figure(self.state, job, outcome)


class Halved:
    """Runs to their next rung, and those that are among the best on to the one after it; see `asha`."""

    def __init__(self, state: State, stage: str, rungs: int, keep: int, *, lower: bool):
        self.state, self.stage = state, stage
        settings = sorted({run.setting or 0 for run in state.record.runs})
        # Of a design whose numbers have gaps, the place of a setting and not its number.
        self._settings = settings
        self.halving = Halving(rungs, keep, len(settings), lower)
        self._waiting: list[tuple[str, int]] = []
        self._read_state()

    def _read_state(self) -> None:
        """What earlier calls have found, and the seeds that a rung still lacks."""
        for place in range(len(self._settings)):
            runs = self._runs(place)
            deepest = max((len(run.rungs or ()) for run in runs), default=0)
            for rung in range(deepest):
                missing = [run for run in runs if len(run.rungs or ()) <= rung]
                if missing and not self._has_failed(runs, rung):
                    self.halving.begun.add((place, rung))
                    self._waiting += [(run.folder, rung) for run in missing]
                    break
                self._reached(place, rung)

    def next(self) -> Job | None:
        while not self._waiting:
            step = self.halving.next()
            if step is None:
                return None
            self._waiting += [(run.folder, step.rung) for run in self._runs(step.setting)]
        name, rung = self._waiting.pop(0)
        share = self.halving.share(rung)
        suite = By.parse(str(self.state.record.by)).suite
        pause = Pause(self.stage, share, suite) if rung < self.halving.rungs - 1 else None
        return self.state.job(self.state.run(name), pause, rung)

    def ended(self, job: Job, outcome: Outcome) -> None:
        require_figure(self.state, job, outcome)
        assert job.rung is not None
        run = self.state.run(job.run)
        # A stage of one step has no place to pause: what is done has passed every rung.
        last = self.halving.rungs if outcome.status == DONE else job.rung + 1
        rungs = (*(run.rungs or ())[: job.rung], *[outcome.score] * (last - job.rung))
        self.state.change(replace(run, rungs=rungs))
        place = self._settings.index(run.setting or 0)
        runs = self._runs(place)
        if outcome.status == FAILED:
            # It cannot go on without this seed, so that the others need not come as far.
            self._waiting = [
                (name, rung) for name, rung in self._waiting if self.state.run(name).setting != run.setting
            ]
        for rung in range(job.rung, last):
            if all(len(other.rungs or ()) > rung for other in runs) or outcome.status == FAILED:
                self._reached(place, rung)

    def _reached(self, place: int, rung: int) -> None:
        scores = [run.rungs[rung] if run.rungs and len(run.rungs) > rung else None for run in self._runs(place)]
        known = [score for score in scores if score is not None]
        self.halving.reached(place, rung, fmean(known) if len(known) == len(scores) else None)

    def _has_failed(self, runs: list[SweepRun], rung: int) -> bool:
        return any(run.rungs is not None and len(run.rungs) > rung and run.rungs[rung] is None for run in runs)

    def _runs(self, place: int) -> list[SweepRun]:
        return self.state.of_setting(self._settings[place])


def require_figure(state: State, job: Job, outcome: Outcome) -> None:
    """After the first run that has an end: ten more of them would not have that figure either.

    Raises:
        ConfigError: the run measured nothing by the name of `--by`; names what it measured.
    """
    if job.by is None or outcome.score is not None or outcome.status not in (DONE, PAUSED):
        return
    run = RunFolder(state.folder / job.run)
    known = figure_names(run) if outcome.status == DONE else []
    raise ConfigError(
        f"the run measured no `{job.by}`",
        where=run.path,
        found=", ".join(known) or "no figure of that name",
        expected="a figure that the runs have: SUITE.METRIC, or STAGE:SUITE.METRIC",
        remedy="run the same command with another `--by`: what is done stays",
    )


def begun(run: SweepRun) -> SweepRun:
    return replace(run, status=RUNNING, error=None)


def over(run: SweepRun, outcome: Outcome) -> SweepRun:
    return replace(run, status=outcome.status, seconds=outcome.seconds, error=outcome.error)
