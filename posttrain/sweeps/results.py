"""The table of a sweep: a row a setting, with mean and interval over its seeds, and the best with what choosing added.

    found = results(Path("runs/mine-sweep"), record)
    found.rows[0].figures["sums.accuracy"]       # Measured(0.62, 0.55, 0.69, by_seed={0: 0.60, 1: 0.64, 2: 0.62})
    found.best.said

The interval is over seeds (Student's t): what another training would give on the same prompts. Differences are paired
by seed, for runs of one seed share their first stages, the order of their rows and the draws of their suites. A setting
takes part in the choice when all of its seeds are done: the mean of those that did not fail would be of the lucky ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.intervals import Score, of_the_best, over_runs
from posttrain.runs.folder import RunFolder
from posttrain.runs.records.evaluation import Direction
from posttrain.sweeps.figures import LOWER, By, shown_figures
from posttrain.sweeps.record import DONE, FAILED, PAUSED, SweepRecord, SweepRun


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure of one setting: Measured(0.62, 0.55, 0.69, {0: 0.60, 1: 0.64, 2: 0.62})."""

    mean: float
    low: float | None
    """None of one seed, of which nobody knows how far another would lie."""
    high: float | None
    by_seed: Mapping[int, float]

    @classmethod
    def of(cls, by_seed: Mapping[int, float], *, of_a_whole: bool = False) -> Measured:
        """`of_a_whole`: the figure lies in [0, 1], and so does its interval: Student's does not know of it."""
        score = over_runs(list(by_seed.values()))
        low, high = (None, None) if score is None else (score.low, score.high)
        if of_a_whole and low is not None and high is not None:
            low, high = max(low, 0.0), min(high, 1.0)
        return cls(fmean(by_seed.values()), low, high, dict(by_seed))


@dataclass(frozen=True, slots=True)
class Row:
    """One setting: Row(0, {"dpo.beta": 0.05}, seeds=3, done=3, figures={...}, against=None, said="", errors={})."""

    setting: int
    settings: Mapping[str, Any]
    seeds: int
    """Runs that it has."""
    done: int
    figures: Mapping[str, Measured]
    against: Measured | None
    """The chosen figure minus that of the reference, seed by seed; None of the reference itself, and where no seed has
    both."""
    said: str
    """What has to be known of it: seeds that failed or are missing, the rung where it was stopped."""
    errors: Mapping[str, str]
    """By run folder."""

    @property
    def is_complete(self) -> bool:
        return self.done == self.seeds


@dataclass(frozen=True, slots=True)
class Best:
    """The setting that is chosen: Best(1, 0.62, 0.55, 0.69, expected=Score(0.60, ...), optimism=0.02, said="...")."""

    setting: int
    settings: Mapping[str, Any]
    mean: float
    low: float | None
    high: float | None
    expected: Score | None
    """On prompts and seeds that did not choose it; None where nothing tells."""
    optimism: float | None
    """How much better its figure looks than what is to be expected, because it was chosen by it."""
    said: str


@dataclass(frozen=True, slots=True)
class Column:
    """Column("sums.accuracy", "sums (accuracy)", "share")"""

    key: str
    title: str
    unit: str


@dataclass(frozen=True, slots=True)
class Results:
    """All of it; `to_json` is table.json."""

    name: str
    by: str | None
    better: str | None
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    reference: int | None
    """The setting that differences are from: the best, or without `by` the first."""
    best: Best | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def results(folder: Path, record: SweepRecord) -> Results:
    """Read every finished run; pure in what lies on the disk."""
    done = [run for run in record.runs if run.status == DONE]
    folders = {run.folder: RunFolder(folder / run.folder) for run in done}
    by = None if record.by is None else By.parse(record.by)
    columns: list[By] = []
    for run in done:
        columns = list(dict.fromkeys([*columns, *shown_figures(folders[run.folder])]))
    if by is not None and not any(str(one) == str(by) for one in columns):
        columns.insert(0, by)
    values = {
        str(column): {run.folder: value for run in done if (value := column.of(folders[run.folder])) is not None}
        for column in columns
    }
    groups = _groups(record.runs)
    lower = record.better == LOWER
    wholes = {str(column) for column in columns if _is_of_a_whole(column, folders.values())}
    best = None if by is None or record.better is None else _best(groups, by, folders, values[str(by)], lower, wholes)
    key = str(by) if by is not None else str(columns[0]) if columns else None
    reference = best.setting if best is not None else (next(iter(groups), None) if by is None else None)
    rows = [
        _row(number, runs, values, key, [] if reference is None else groups[reference], record, wholes)
        for number, runs in groups.items()
    ]
    told = [_column(column, [folders[run.folder] for run in done]) for column in columns]
    return Results(record.name, record.by, record.better, tuple(told), tuple(rows), reference, best)


def _groups(runs: Sequence[SweepRun]) -> dict[int, list[SweepRun]]:
    groups: dict[int, list[SweepRun]] = {}
    for run in runs:
        groups.setdefault(run.setting or 0, []).append(run)
    return groups


def _column(column: By, runs: Sequence[RunFolder]) -> Column:
    having = next((run for run in runs if column.of(run) is not None), None)
    if having is None:
        return Column(str(column), str(column), "")
    how = column.meaning(having)
    return Column(str(column), f"{column.suite} ({how.title})", how.unit)


def _is_of_a_whole(column: By, runs: Iterable[RunFolder]) -> bool:
    """A share that is wanted high: accuracy, a win rate. Changes are shares too, but wanted low or still."""
    having = [(value, run) for run in runs if (value := column.of(run)) is not None]
    if not having or not all(0 <= value <= 1 for value, _ in having):
        return False
    how = column.meaning(having[0][1])
    return how.unit == "share" and how.wanted is Direction.UP


# ---------------------------------------------------------------- a row


def _row(
    number: int,
    runs: Sequence[SweepRun],
    values: Mapping[str, Mapping[str, float]],
    key: str | None,
    reference: Sequence[SweepRun],
    record: SweepRecord,
    wholes: Collection[str],
) -> Row:
    figures = {
        name: Measured.of(by_seed, of_a_whole=name in wholes)
        for name, found in values.items()
        if (by_seed := _by_seed(runs, found))
    }
    against = None
    if key is not None and reference and reference[0].setting != runs[0].setting:
        theirs, own = _by_seed(reference, values[key]), _by_seed(runs, values[key])
        if shared := {seed: own[seed] - theirs[seed] for seed in own if seed in theirs}:
            against = Measured.of(shared)
    errors = {run.folder: run.error or "no word was left" for run in runs if run.status == FAILED}
    done = sum(run.status == DONE for run in runs)
    return Row(number, runs[0].settings, len(runs), done, figures, against, _said(runs, record), errors)


def _by_seed(runs: Sequence[SweepRun], found: Mapping[str, float]) -> dict[int, float]:
    return {run.seed or 0: found[run.folder] for run in runs if run.folder in found}


def _said(runs: Sequence[SweepRun], record: SweepRecord) -> str:
    parts = []
    counts = {status: sum(run.status == status for run in runs) for status in dict.fromkeys(run.status for run in runs)}
    for status, count in counts.items():
        if status not in (DONE, PAUSED):
            parts.append(f"{count} of {len(runs)} {status}")
    if counts.get(PAUSED) and record.halving is not None:
        rungs, keep = record.halving
        reached = min(len(run.rungs or ()) for run in runs if run.status == PAUSED)
        scores = [run.rungs[reached - 1] for run in runs if run.rungs and len(run.rungs) >= reached]
        known = [score for score in scores if score is not None]
        share = float(keep) ** (reached - rungs)
        figure = f", {record.by} {fmean(known):.3g} there" if known else ""
        parts.append(f"stopped after {share:.0%} of the steps{figure}")
    return "; ".join(parts)


# ---------------------------------------------------------------- the best


def _best(
    groups: Mapping[int, Sequence[SweepRun]],
    by: By,
    folders: Mapping[str, RunFolder],
    values: Mapping[str, float],
    lower: bool,
    wholes: Collection[str],
) -> Best | None:
    whole = {number: runs for number, runs in groups.items() if all(run.folder in values for run in runs)}
    if not whole:
        return None
    measured = {
        number: Measured.of(_by_seed(runs, values), of_a_whole=str(by) in wholes) for number, runs in whole.items()
    }
    sign = -1 if lower else 1
    chosen = max(measured, key=lambda number: (sign * measured[number].mean, -number))
    own = measured[chosen]
    scores_CSP, prompts = _scores(list(whole.values()), by, folders, values)
    expected = None if scores_CSP is None else of_the_best(scores_CSP, lower=lower)
    optimism = None if expected is None else sign * (own.mean - expected.value)
    said = _said_of_best(len(whole), len(groups), len(own.by_seed), prompts, expected is not None)
    return Best(chosen, whole[chosen][0].settings, own.mean, own.low, own.high, expected, optimism, said)


def _scores(
    groups: Sequence[Sequence[SweepRun]], by: By, folders: Mapping[str, RunFolder], values: Mapping[str, float]
) -> tuple[Any, int]:
    """([settings, seeds, prompts], prompts): the scores of single prompts where all runs kept those of the same ones,
    else the figures, as of one prompt."""
    import numpy as np

    seeds = sorted({run.seed or 0 for run in groups[0]})
    if any(sorted(run.seed or 0 for run in runs) != seeds for runs in groups):
        return None, 0
    cells = [sorted(runs, key=lambda run: run.seed or 0) for runs in groups]
    first = by.by_prompt(folders[cells[0][0].folder])
    if first is not None:
        found = [[by.by_prompt(folders[run.folder]) for run in runs] for runs in cells]
        if all(one is not None and one.keys() == first.keys() for runs in found for one in runs):
            scores = [[[one[prompt] for prompt in first] for one in runs if one is not None] for runs in found]
            return np.array(scores), len(first)
    return np.array([[[values[run.folder]] for run in runs] for runs in cells]), 0


def _said_of_best(whole: int, settings: int, seeds: int, prompts: int, is_known: bool) -> str:
    among = f"chosen among {whole} settings" if whole > 1 else "the only setting that is done with all of its seeds"
    others = f" of {settings}" if whole < settings and whole > 1 else ""
    if whole == 1:
        return f"{among}{f' of {settings}' if settings > 1 else ''}: nothing was chosen"
    if not is_known:
        return f"{among}{others} by this very figure; with one seed and no scores of prompts nothing says by how much"
    drawn = [f"{seeds} seeds"] * (seeds > 1) + [f"{prompts} prompts"] * (prompts > 1)
    fixed = "" if seeds > 1 else "; what the one seed did stays in it"
    return f"{among}{others}; expected on other draws of the {' and '.join(drawn)}{fixed}"
