"""Settings that Optuna chooses from what the earlier ones gave (TPE: Bergstra et al. 2011, NeurIPS 24).

    queue = Chosen(state, spec, trials=20, seed=0, lower=False)

The study lies in `optuna.log` of the sweep's folder, and is gone on with. A trial is a setting with all of its seeds,
and its value their mean. Each trial is drawn by a sampler of its own seed, so that a sweep that was stopped and resumed
asks for the same settings as one that was not.
"""

from __future__ import annotations

import importlib.util
import json
from statistics import fmean
from typing import Any

from posttrain.errors import MissingExtraError
from posttrain.runs.folder import RunFolder
from posttrain.sweeps.axes import Axis, Choices
from posttrain.sweeps.designs import Settings
from posttrain.sweeps.figures import By
from posttrain.sweeps.plan import runs_of
from posttrain.sweeps.queues import State, require_figure
from posttrain.sweeps.record import DONE, FAILED, INTERRUPTED, PAUSED, PENDING
from posttrain.sweeps.runner import Job, Outcome
from posttrain.sweeps.spec import SweepSpec

LOG = "optuna.log"


def require_optuna() -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise MissingExtraError(
            "`--design optuna` needs the package `optuna`", remedy="install it: `pip install 'posttrain[sweep]'`"
        )
    import optuna

    return optuna


class Chosen:
    """Asks for a setting when a place is free, and tells the study what all of its seeds gave."""

    def __init__(self, state: State, spec: SweepSpec, trials: int, seed: int, *, lower: bool, at_once: int = 1):
        self.optuna = require_optuna()
        self.state, self.spec, self.trials, self.seed, self.at_once = state, spec, trials, seed, at_once
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        storages = self.optuna.storages
        backend = storages.journal.JournalFileBackend(str(state.folder / LOG))
        self.study = self.optuna.create_study(
            storage=storages.JournalStorage(backend),
            study_name=state.record.name,
            direction="minimize" if lower else "maximize",
            load_if_exists=True,
        )
        self._take_up()
        self._left = [run.folder for run in state.record.runs if run.status in (PENDING, INTERRUPTED, PAUSED)]

    def _take_up(self) -> None:
        """What was asked for and is not in the record, when the process was killed between the two; and what is done
        and was not told."""
        known = {run.setting for run in self.state.record.runs}
        for trial in self.study.get_trials(deepcopy=False):
            if trial.number not in known:
                self._add(trial.number, {axis.key: _read(axis, trial.params[axis.key]) for axis in self.spec.axes})
        for number in known:
            self._tell(int(number or 0))

    def next(self) -> Job | None:
        if not self._left:
            if len(self.study.get_trials(deepcopy=False)) >= self.trials:
                return None
            self._ask()
        return self.state.job(self.state.run(self._left.pop(0)))

    def ended(self, job: Job, outcome: Outcome) -> None:
        require_figure(self.state, job, outcome)
        self._tell(int(self.state.run(job.run).setting or 0))

    def _ask(self) -> None:
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = self.optuna.samplers.TPESampler(seed=self.seed + number, constant_liar=self.at_once > 1)
        trial = self.study.ask({axis.key: self._distribution(axis) for axis in self.spec.axes})
        self._left += self._add(
            trial.number, {axis.key: _read(axis, trial.params[axis.key]) for axis in self.spec.axes}
        )

    def _add(self, number: int, settings: Settings) -> list[str]:
        # TPE may ask for the same choices again: the trial has runs of its own all the same, which share every stage.
        runs = runs_of(self.spec, [settings], None, numbered=True, first=number)
        self.state.add(runs, {run.folder: self.spec.recipe(settings, run.seed or 0, run.folder) for run in runs})
        return [run.folder for run in runs]

    def _tell(self, number: int) -> None:
        """Once all seeds are over, and once only: a failed trial that is run again stays failed in the study."""
        runs = self.state.of_setting(number)
        trial = self.study.get_trials(deepcopy=False)[number]
        if trial.state.is_finished() or any(run.status not in (DONE, FAILED) for run in runs):
            return
        by = By.parse(str(self.state.record.by))
        scores = [by.of(RunFolder(self.state.folder / run.folder)) for run in runs if run.status == DONE]
        known = [score for score in scores if score is not None]
        if len(known) == len(runs):
            self.study.tell(number, fmean(known))
        else:
            # A setting that fails is one that TPE is not to look near; it has no value that could be told.
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL)

    def _distribution(self, axis: Axis) -> Any:
        kinds = self.optuna.distributions
        if isinstance(axis, Choices):
            # Its choices are texts and numbers alone; a recipe's may be groups and lists.
            return kinds.CategoricalDistribution([json.dumps(value) for value in axis.values])
        if axis.whole:
            return kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        return kinds.FloatDistribution(axis.low, axis.high, log=axis.log)


def _read(axis: Axis, value: Any) -> Any:
    return json.loads(value) if isinstance(axis, Choices) else value
