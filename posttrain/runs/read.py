"""A run folder as records: `read_run(Path("runs/quickstart")).stages[1].curves["train"]["loss"]`.

The report reads a run with it, once and whole; a page that follows a running stage reads on with `Cursor`. Which files
there are and what they hold is said by `posttrain.runs.records`. Every file may be missing, torn or of another version;
what cannot be read is a `Problem` of the run, no exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from posttrain.errors import SourceError
from posttrain.runs.folder import EARLIER, RunFolder
from posttrain.runs.layout import RESERVED_NAMES
from posttrain.runs.owner import gone_since
from posttrain.runs.records.budget import BudgetCurves, SolutionLine
from posttrain.runs.records.evaluation import (
    AnswerLine,
    Figure,
    Meaning,
    PairedChanges,
    PassAtKChange,
    PassAtKChanges,
    PassAtKCounts,
    SuiteMeanings,
    SuiteScores,
)
from posttrain.runs.records.logs import Alarm, CorrectedPair, DroppedRow, HeldOutRow, MetricsLine, WatchedRow
from posttrain.runs.records.merging import KeptSkill, MergeComparison, MergedSkills, SearchRecord
from posttrain.runs.records.preflight import PreflightRecord
from posttrain.runs.records.ratings import RunRatings
from posttrain.runs.records.reward import CrossScores, PairRewards, RewardEvaluation, StepEvaluation, StepRewards
from posttrain.runs.records.run import SCHEMA, RunRecord, StageEntry, Summary
from posttrain.runs.records.selection import SelectionManifest
from posttrain.runs.records.stage import Machine, StageRecord
from posttrain.runs.records.twins import TwinComparison, TwinComparisons
from posttrain.runs.sampled import SampledStage, read_sampled
from posttrain.runs.tolerant import Files, Problem
from posttrain.runs.values import as_number, missing_steps

MOST_PAIRS = 20_000
MOST_COMPLETIONS = 5_000
MOST_ALARMS = 2_000
MOST_SAMPLES = 2_000
SHOWN_ROWS = 6
HEADS = ("untrained", "trained")
"""Before the figures of summary.json that are a reward model's on its held-out rows."""
HELD_OUT = "held_out"
"""Before the figures of summary.json that are an online stage's score on its held-out tasks."""
SEARCH = "search"
"""The method of stages that write what a strategy found."""
PAIRING = ("correction", "pairs")
"""Methods whose data.jsonl holds pairs, which the report shows."""
SAMPLING = (SEARCH, "best_of")
"""Methods that write what they tried into trees.jsonl."""
SELECTING = "select"
MAKING = (SELECTING, "distil", "prompts")
"""Other methods that write rows into data.jsonl, and train nothing."""
MERGING = "merge"
REMEDY = "give the folder that `posttrain run` wrote, runs/<recipe>"
RUN_FILES = ("run.json", "recipe.yaml", "summary.json")
"""Any of these makes a folder a run's; any of the others a stage's."""
STAGE_FILES = ("stage.json", "config.yaml", "metrics.jsonl", "preflight.json")


@dataclass(frozen=True, slots=True)
class Curve:
    """One measurement over the steps; None where it was not finite: Curve([1, 2, 3], [0.69, None, 0.66])."""

    steps: list[float]
    values: list[float | None]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the suites measured: scores as {suite: {metric: Figure}}, answers as {suite: [AnswerLine, ...]}."""

    scores: Mapping[str, Mapping[str, Figure]] = field(default_factory=dict)
    answers: Mapping[str, list[AnswerLine]] = field(default_factory=dict)
    counts: Mapping[str, PassAtKCounts] = field(default_factory=dict)
    """Of suites that ask for pass@k."""
    meanings: Mapping[str, Mapping[str, Meaning]] = field(default_factory=dict)
    """{suite: {metric: Meaning}} of the figures that a suite's kind explains itself."""
    budgets: Mapping[str, BudgetCurves] = field(default_factory=dict)
    """Of suites that measure strategies against what they spend."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage's folder, as far as it has come."""

    name: str
    method: str
    status: str
    """done, running, failed, interrupted, planned (named in run.json, no folder yet) or unknown."""
    folder: Path
    about: StageRecord
    config: str | None
    preflight: PreflightRecord | None
    curves: dict[str, dict[str, Curve]]
    """By split ("train", "held_out"), then by metric name."""
    epochs_per_step: float | None
    pairs: dict[str, list[HeldOutRow]]
    """Held-out rows by "start" and "end"."""
    samples: list[WatchedRow]
    alarms: list[Alarm]
    dropped: list[DroppedRow]
    """The first few refused rows."""
    written: list[CorrectedPair]
    """The first few rows of data.jsonl, for a stage that makes data."""
    evaluated: Evaluated
    checkpoints: list[str]
    reward: RewardEvaluation | None
    """Of a stage that trained a reward model."""
    reward_scores: list[PairRewards]
    solved: list[SolutionLine] = field(default_factory=list)
    """The first prompts of a stage `search`, with all that was tried."""
    sampled: SampledStage | None = None
    """What an online stage sampled."""
    steps: StepEvaluation | None = None
    """Of a stage that trained a process reward model."""
    step_scores: list[StepRewards] = field(default_factory=list)
    merge: MergeComparison | None = None
    """Of a stage that merged models."""
    weight_search: SearchRecord | None = None
    selection: SelectionManifest | None = None
    """Of a stage that selected rows."""

    @property
    def last_step(self) -> int | None:
        steps = [curve.steps[-1] for curve in self.curves.get("train", {}).values() if curve.steps]
        return int(max(steps)) if steps else None

    @property
    def seconds(self) -> float | None:
        return self.about.seconds

    @property
    def judged(self) -> bool:
        """Whether its rows are single responses, good or bad, and no pairs."""
        return any(row.judged for rows in self.pairs.values() for row in rows)

    @property
    def reward_findings(self) -> tuple[Alarm, ...]:
        """Found after the last step, on the held-out rows: they belong to no place on the curves."""
        return self.reward.findings if self.reward is not None else ()

    @property
    def model_folder(self) -> Path | None:
        """The exported model, if it is there."""
        folder = self.folder / (self.about.output or "model")
        # `output` is text from a file: `/elsewhere` or `../elsewhere` in it would offer a folder that is not the
        # stage's. Without resolving links: a model folder that was moved away and linked is still the stage's.
        inside = ".." not in folder.parts[len(self.folder.parts) :] and self.folder in folder.parents
        return folder if inside and folder.is_dir() else None


@dataclass(frozen=True, slots=True)
class RunContents:
    """A whole run folder."""

    folder: Path
    name: str
    about: RunRecord
    recipe: str | None
    start: Evaluated
    stages: list[Stage]
    problems: list[Problem]
    cross_scores: CrossScores | None = None
    """Rewards of several policies' answers by several reward models."""
    ratings: RunRatings | None = None
    """Ratings of all policies, by suite of win rates."""
    pass_at_k: tuple[PassAtKChange, ...] = ()
    """What each stage did to pass@k."""
    paired: PairedChanges = field(default_factory=lambda: PairedChanges((), {}))
    """What each stage changed on the same items."""
    merged_skills: tuple[KeptSkill, ...] = ()
    """What merges kept of their parents' skills."""
    twins: tuple[TwinComparison, ...] = ()
    """What selections of rows are worth against their random twins."""
    earlier: list[Stage] = field(default_factory=list)
    """Results of the stages that other settings or data gave before: `dpo.1`, `dpo.2`."""
    gone_since: str | None = None
    """When the process was last heard of, of a run whose files say `running` while it is gone: it was killed. Its
    status, and that of its stage, is then interrupted."""

    @property
    def status(self) -> str:
        done = bool(self.stages) and all(stage.status == "done" for stage in self.stages)
        return self.about.status or ("done" if done else "unknown")

    @property
    def seconds(self) -> float | None:
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if known else None

    @property
    def environment(self) -> Machine:
        """Where the last stage that says so ran."""
        known = [stage.about.environment for stage in self.stages if stage.about.environment is not None]
        return known[-1] if known else Machine.from_json({})

    @property
    def measured(self) -> list[tuple[str, Evaluated]]:
        """The start and every stage, by name, with what the suites measured."""
        return [("start", self.start), *((stage.name, stage.evaluated) for stage in self.stages)]


def read_run(folder: Path) -> RunContents:
    """Read everything the report shows.

    Raises SourceError if `folder` is no run folder at all.
    """
    if not folder.is_dir():
        raise SourceError("there is no run folder here", where=folder, remedy=REMEDY)
    files = Files(folder)
    about = files.document(folder / "run.json", RunRecord)
    entries = _entries(files, about)
    stages = [_read_stage(files, folder / name, entry) for name, entry in entries.items()]
    about = about if about is not None else RunRecord.from_json({})
    gone = None
    if "running" in (about.status, *(stage.status for stage in stages)):
        gone = gone_since(folder)
    if gone is not None:
        # A process that is killed writes no last word: what its files say last would be said for ever.
        about = replace(about, status="interrupted" if about.status == "running" else about.status)
        stages = [replace(stage, status="interrupted") if stage.status == "running" else stage for stage in stages]
    evaluated = any(stage.evaluated.scores for stage in stages)
    # summary.json repeats the figures without their intervals, so it is read only where nothing better is left.
    summary = None if evaluated else files.document(folder / "summary.json", Summary)
    figures = summary.stages if summary is not None else {}
    changes = files.document(folder / "pass_at_k.json", PassAtKChanges)
    paired = files.document(folder / PairedChanges.FILE, PairedChanges)
    skills = files.document(folder / "merges.json", MergedSkills)
    twins = files.document(folder / TwinComparisons.FILE, TwinComparisons)
    return RunContents(
        folder=folder,
        name=folder.resolve().name,
        about=about,
        recipe=files.text(folder / "recipe.yaml"),
        start=_with_summary(_read_evaluated(files, folder / "start"), figures.get("start", {})),
        stages=[
            replace(stage, evaluated=_with_summary(stage.evaluated, figures.get(stage.name, {}))) for stage in stages
        ],
        problems=files.problems,
        cross_scores=files.document(folder / "cross_scores.json", CrossScores),
        ratings=files.document(folder / "ratings.json", RunRatings),
        pass_at_k=changes.changes if changes is not None else (),
        paired=paired if paired is not None else PairedChanges((), {}),
        merged_skills=skills.skills if skills is not None else (),
        twins=twins.comparisons if twins is not None else (),
        earlier=[
            _read_stage(files, kept.path, StageEntry.from_json({}))
            for kept in RunFolder(folder).earlier()
            if kept.path.resolve().parent == folder.resolve()  # as for stages: a link could show somebody else's files
        ],
        gone_since=gone,
    )


def _entries(files: Files, about: RunRecord | None) -> dict[str, StageEntry]:
    """The stages that run.json lists, then those that have a folder all the same."""
    folder = files.root
    listed = {entry.name: entry for entry in (about.stages if about is not None else ()) if entry.name}
    others = [path.name for path in sorted(folder.iterdir()) if path.name not in (*listed, *RESERVED_NAMES[:1])]
    # A result that was moved aside is read apart: as a stage it would stand in tables beside the one after it.
    stray = [name for name in others if _is_stage(folder / name) and not EARLIER.fullmatch(name)]
    # Most likely a mistyped path: an empty report of it would look like a run that did nothing.
    if not any((folder / name).exists() for name in RUN_FILES) and not stray:
        raise SourceError(
            "this is no run folder",
            where=folder,
            found=", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder",
            expected="run.json, or stage folders with stage.json or metrics.jsonl",
            remedy=REMEDY,
        )
    if about is None and not files.noted(folder / "run.json"):
        files.note(folder / "run.json", "is missing; the stages are in the order of their names")
    if about is not None and about.newer:
        files.note(
            folder / "run.json",
            f"was written in layout {about.schema}, this report knows layouts up to {SCHEMA}: what is new is not shown",
        )
    entries = listed | {name: StageEntry.from_json({}) for name in stray}
    # A stage's name is a folder's name; one that climbs out of the run folder would show somebody else's files.
    return {name: entry for name, entry in entries.items() if (folder / name).resolve().parent == folder.resolve()}


def _is_stage(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in STAGE_FILES)


def _read_stage(files: Files, folder: Path, entry: StageEntry) -> Stage:
    about = files.document(folder / "stage.json", StageRecord) or StageRecord()
    # stage.json is the stage's own word; where it is torn or gone, run.json still knows how the stage ended.
    status = about.status or entry.status
    if not status or status == "pending":
        status = "unknown" if folder.is_dir() and any(folder.iterdir()) else "planned"
    # run.json is written first when a stage ends: killed between the two, the time is there alone.
    if about.seconds is None and status != "planned":
        about = replace(about, seconds=entry.seconds)
    curves, epochs_per_step = _read_curves(files, folder / "metrics.jsonl")
    first = min((curve.steps[0] for curve in curves.get("train", {}).values() if curve.steps), default=1)
    # The beginning alone: a log that was cut and gone on with lacks it, one that was thinned by hand does not.
    if lacking := missing_steps((), last=int(first) - 1):
        files.note(folder / "metrics.jsonl", f"lacks {lacking}: the curves begin at step {int(first)}")
    checkpoints = folder / "checkpoints"
    stage = Stage(
        name=folder.name,
        method=about.method or entry.method or "unknown method",
        status=status,
        folder=folder,
        about=about,
        config=files.text(folder / "config.yaml"),
        preflight=files.document(folder / "preflight.json", PreflightRecord),
        curves=curves,
        epochs_per_step=epochs_per_step,
        pairs=_read_pairs(files, folder / "pairs.jsonl"),
        samples=files.lines(folder / "samples.jsonl", WatchedRow, MOST_SAMPLES),
        alarms=files.lines(folder / "alarms.jsonl", Alarm, MOST_ALARMS),
        dropped=files.lines(folder / "dropped.jsonl", DroppedRow, SHOWN_ROWS),
        written=files.lines(folder / "data.jsonl", CorrectedPair, SHOWN_ROWS) if about.method in PAIRING else [],
        solved=files.lines(folder / "trees.jsonl", SolutionLine, SHOWN_ROWS),
        evaluated=_read_evaluated(files, folder),
        checkpoints=sorted(path.name for path in checkpoints.iterdir()) if checkpoints.is_dir() else [],
        reward=files.document(folder / "reward_evaluation.json", RewardEvaluation),
        reward_scores=files.lines(folder / "reward_scores.jsonl", PairRewards, MOST_PAIRS),
        sampled=read_sampled(files, folder, about.best_step),
        steps=files.document(folder / "step_evaluation.json", StepEvaluation),
        step_scores=files.lines(folder / "step_scores.jsonl", StepRewards, MOST_PAIRS),
        merge=files.document(folder / "merge.json", MergeComparison),
        weight_search=files.document(folder / "search.json", SearchRecord),
        # Only of its own method: a folder of rows may hold another program's manifest.json.
        selection=files.document(folder / SelectionManifest.FILE, SelectionManifest)
        if about.method == SELECTING
        else None,
    )
    _note_what_is_missing(files, stage)
    return stage


def _note_what_is_missing(files: Files, stage: Stage) -> None:
    if stage.status == "planned":
        return
    if not stage.about.status and not files.noted(stage.folder / "stage.json"):
        files.note(stage.folder / "stage.json", "is missing: what ran, on what data and on what machine is not known")
    if stage.method in PAIRING:
        if not stage.written:
            files.note(stage.folder / "data.jsonl", "is missing or empty: no pairs were written")
        return
    if stage.method in SAMPLING:
        if not stage.solved:
            files.note(stage.folder / "trees.jsonl", "is missing or empty: what was tried is not known")
        return
    if stage.method in MAKING:
        # Its presence alone is asked: a report reads no rows of them, of which there may be very many.
        if not (stage.folder / "data.jsonl").is_file():
            files.note(stage.folder / "data.jsonl", "is missing: no rows were written")
        return
    if stage.method == MERGING:  # it takes no step: without this line its report would miss curves and checks
        return
    if not stage.curves:
        files.note(stage.folder / "metrics.jsonl", "is missing or empty: there are no curves")
    if stage.preflight is None and not files.noted(stage.folder / "preflight.json"):
        files.note(stage.folder / "preflight.json", "is missing: the checks before step 1 did not end")


def _read_curves(files: Files, path: Path) -> tuple[dict[str, dict[str, Curve]], float | None]:
    """Curves by split and name. A step that was written twice (the run was resumed) counts with its later values."""
    by_split: dict[str, dict[float, dict[str, float | None]]] = {}
    repeated = 0
    epochs_per_step = None
    for line in files.lines(path, MetricsLine):
        if line.step is None or not line.values:
            continue
        # By split first: held-out metrics have the step that they follow, and would replace its training metrics.
        rows = by_split.setdefault(line.split or "train", {})
        step = float(line.step)
        repeated += step in rows
        # A value too large to draw is a gap of the picture; the file keeps it.
        rows[step] = {name: as_number(value) for name, value in line.values.items()}
        if line.epoch and line.step:
            # One ratio is enough for the pointer, which shows the epoch beside the step.
            epochs_per_step = line.epoch / step
    if repeated:
        files.note(path, f"{repeated} steps were written twice (the run was resumed); the later values are shown")
    return {split: _columns(rows) for split, rows in by_split.items()}, epochs_per_step


def _columns(rows: dict[float, dict[str, float | None]]) -> dict[str, Curve]:
    names = dict.fromkeys(name for values in rows.values() for name in values)
    ordered = sorted(rows.items())
    # A metric that a step did not write (as held-out metrics do not) is no gap; one that was written as null is.
    return {
        name: Curve(
            [step for step, values in ordered if name in values],
            [values[name] for _, values in ordered if name in values],
        )
        for name in names
    }


def _read_pairs(files: Files, path: Path) -> dict[str, list[HeldOutRow]]:
    rows = files.lines(path, HeldOutRow, MOST_PAIRS)
    return {when: [row for row in rows if row.when == when] for when in ("start", "end")}


def _read_evaluated(files: Files, folder: Path) -> Evaluated:
    figures = files.document(folder / "evaluation.json", SuiteScores)
    evaluations = folder / "evaluations"
    answers, counts, budgets = {}, {}, {}
    for path in sorted(evaluations.iterdir()) if evaluations.is_dir() else ():
        if path.name.endswith(".trees.jsonl"):
            continue  # the page shows what came of them
        if path.suffix == ".jsonl" and (lines := files.lines(path, AnswerLine, MOST_COMPLETIONS)):
            answers[path.stem] = lines
        elif path.name.endswith(".counts.json") and (found := files.document(path, PassAtKCounts)):
            counts[path.name.removesuffix(".counts.json")] = found
        elif path.name.endswith(".budget.json") and (spent := files.document(path, BudgetCurves)):
            budgets[path.name.removesuffix(".budget.json")] = spent
    meanings = files.document(evaluations / "metrics.json", SuiteMeanings)
    return Evaluated(
        figures.suites if figures is not None else {},
        answers,
        counts,
        meanings.suites if meanings is not None else {},
        budgets,
    )


def _with_summary(evaluated: Evaluated, summary: Mapping[str, float | None]) -> Evaluated:
    """The figures of summary.json, for a folder whose evaluation.json files are gone; they have no intervals."""
    if evaluated.scores:
        return evaluated
    scores: dict[str, dict[str, Figure]] = {}
    for name, value in summary.items():
        suite, _, metric = name.partition(".")
        if value is None or suite == HELD_OUT or suite in HEADS:
            continue  # of a stage that samples, of a reward model: its own section shows it
        scores.setdefault(suite if metric else "summary", {})[metric or name] = Figure(value)
    return replace(evaluated, scores=scores)
