"""A run folder as records: `read_run(Path("runs/quickstart")).stages[1].curves["train"]["loss"]`.

    runs/<recipe>/  run.json  recipe.yaml  summary.json  cross_scores.json
      start/        evaluation.json  evaluations/<suite>.jsonl
      <stage>/      stage.json  config.yaml  preflight.json  metrics.jsonl  pairs.jsonl  samples.jsonl  alarms.jsonl
                    dropped.jsonl  data.jsonl  evaluation.json  evaluations/<suite>.jsonl  checkpoints/  model/
                    reward_evaluation.json  reward_scores.jsonl  rollouts.jsonl  examinations.jsonl
                    step_evaluation.json  step_scores.jsonl

Every file may be missing, torn or of another version; what cannot be read is a `Problem` of the run, no exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain.diagnostics.suite_metrics import Meaning, read_meaning
from posttrain.errors import SourceError
from posttrain.runs.sampled import Sampled, read_sampled
from posttrain.runs.tolerant import Files, Problem, as_list, as_mapping, as_number, as_text, numbers_of

SCHEMA = 1
"""The layout of run folders that this module knows."""
MOST_PAIRS = 20_000
MOST_COMPLETIONS = 5_000
MOST_ALARMS = 2_000
MOST_SAMPLES = 2_000
SHOWN_ROWS = 6
HEADS = ("untrained", "trained")
"""Before the figures of summary.json that are a reward model's on its held-out rows."""
HELD_OUT = "held_out"
"""Before the figures of summary.json that are an online stage's score on its held-out tasks."""
REMEDY = "give the folder that `posttrain run` wrote, runs/<recipe>"
RUN_FILES = ("run.json", "recipe.yaml", "summary.json")
STAGE_FILES = ("stage.json", "config.yaml", "metrics.jsonl", "preflight.json")


@dataclass(frozen=True, slots=True)
class Curve:
    """One measurement over the steps; None where it was not finite: Curve([1, 2, 3], [0.69, None, 0.66])."""

    steps: list[float]
    values: list[float | None]


@dataclass(frozen=True, slots=True)
class Score:
    """An evaluation figure and its 95 % interval: Score(0.94, 0.87, 0.98, 64)."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of an evaluation: Completion("Who are you?", "I am Pia.", "", 1.0, 6, "stop_token")."""

    prompt: str
    text: str
    answer: str
    score: float | None
    tokens: float | None
    finish: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What the suites found: scores as {suite: {metric: Score}}, answers as {suite: [Completion, ...]}."""

    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    answers: dict[str, list[Completion]] = field(default_factory=dict)
    meanings: dict[str, dict[str, Meaning]] = field(default_factory=dict)
    """{suite: {metric: Meaning}} of the figures that a suite's kind explains itself."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage's folder, as far as it has come."""

    name: str
    method: str
    status: str
    """done, running, failed, interrupted, planned (named in run.json, no folder yet) or unknown."""
    folder: Path
    about: dict[str, Any]
    """stage.json."""
    config: str | None
    preflight: dict[str, Any]
    curves: dict[str, dict[str, Curve]]
    """By split ("train", "held_out"), then by metric name."""
    epochs_per_step: float | None
    pairs: dict[str, list[dict[str, Any]]]
    """Held-out pairs by "start" and "end"; of feedback, judged responses, each with one side alone."""
    samples: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    """The first few refused rows."""
    written: list[dict[str, Any]]
    """The first few rows of data.jsonl, for a stage that makes data."""
    evaluated: Evaluated
    checkpoints: list[str]
    reward: dict[str, Any]
    """reward_evaluation.json of a stage that trained a reward model."""
    reward_scores: list[dict[str, Any]]
    """Its held-out pairs with their rewards."""
    sampled: Sampled | None = None
    """What an online stage sampled."""
    steps: dict[str, Any] = field(default_factory=dict)
    """step_evaluation.json of a stage that trained a process reward model."""
    step_scores: list[dict[str, Any]] = field(default_factory=list)
    """Its held-out responses with the score and the label of each step."""

    @property
    def last_step(self) -> int | None:
        steps = [curve.steps[-1] for curve in self.curves.get("train", {}).values() if curve.steps]
        return int(max(steps)) if steps else None

    @property
    def seconds(self) -> float | None:
        return as_number(self.about.get("seconds"))

    @property
    def judged(self) -> bool:
        """Whether its rows are single responses, good or bad, and no pairs."""
        return any(pair.get("judged") is True for pairs in self.pairs.values() for pair in pairs)

    @property
    def error(self) -> str:
        return as_text(self.about.get("error"))

    @property
    def data(self) -> dict[str, Any]:
        return as_mapping(self.about.get("data"))

    @property
    def model_folder(self) -> Path | None:
        """The exported model, if it is there."""
        output = self.about.get("output")
        folder = self.folder / (output if isinstance(output, str) and output else "model")
        return folder if folder.is_dir() and self.folder in folder.parents else None


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run folder."""

    folder: Path
    name: str
    about: dict[str, Any]
    """run.json."""
    recipe: str | None
    start: Evaluated
    stages: list[Stage]
    problems: list[Problem]
    cross_scores: dict[str, Any] = field(default_factory=dict)
    """Rewards of several policies' answers by several reward models."""

    @property
    def status(self) -> str:
        said = as_text(self.about.get("status"))
        return said or ("done" if self.stages and all(stage.status == "done" for stage in self.stages) else "unknown")

    @property
    def seconds(self) -> float | None:
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if known else None

    @property
    def environment(self) -> dict[str, Any]:
        """Where the last stage that says so ran."""
        said = [as_mapping(stage.about.get("environment")) for stage in self.stages]
        return next((environment for environment in reversed(said) if environment), {})


def read_run(folder: Path) -> Run:
    """Read everything the report shows.

    Raises SourceError if `folder` is no run folder at all.
    """
    if not folder.is_dir():
        raise SourceError("there is no run folder here", where=folder, remedy=REMEDY)
    files = Files(folder)
    about = files.record(folder / "run.json")
    listed = [entry for entry in map(as_mapping, as_list(about.get("stages"))) if as_text(entry.get("name"))]
    names = [as_text(entry["name"]) for entry in listed]
    stray = [path.name for path in sorted(folder.iterdir()) if path.name not in (*names, "start") and _is_stage(path)]
    if not any((folder / name).exists() for name in RUN_FILES) and not stray:
        raise SourceError(
            "this is no run folder",
            where=folder,
            found=", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "an empty folder",
            expected="run.json, or stage folders with stage.json or metrics.jsonl",
            remedy=REMEDY,
        )
    if not about and not any(problem.where == "run.json" for problem in files.problems):
        files.note(folder / "run.json", "is missing; the stages are in the order of their names")
    schema = about.get("schema")
    if about and schema != SCHEMA:
        files.note(folder / "run.json", f"was written in layout {schema}, this report knows layout {SCHEMA}")
    entries = {as_text(entry["name"]): entry for entry in listed} | {name: {} for name in stray}
    # A stage's name is a folder's name; one that climbs out of the run folder would show somebody else's files.
    safe = {name: entry for name, entry in entries.items() if (folder / name).resolve().parent == folder.resolve()}
    stages = [_read_stage(files, folder / name, entry) for name, entry in safe.items()]
    summary = {} if any(stage.evaluated.scores for stage in stages) else files.record(folder / "summary.json")
    return Run(
        folder=folder,
        name=folder.resolve().name,
        about=about,
        recipe=files.text(folder / "recipe.yaml"),
        start=_with_summary(_read_evaluated(files, folder / "start"), summary.get("start")),
        stages=[_stage_with_summary(stage, summary.get(stage.name)) for stage in stages],
        problems=files.problems,
        cross_scores=files.record(folder / "cross_scores.json"),
    )


def _is_stage(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in STAGE_FILES)


def _read_stage(files: Files, folder: Path, entry: Mapping[str, Any]) -> Stage:
    about = files.record(folder / "stage.json")
    curves, epochs_per_step = _read_curves(files, folder / "metrics.jsonl")
    checkpoints = folder / "checkpoints"
    reward = files.record(folder / "reward_evaluation.json")
    # Found after the last step, on the held-out rows: they belong to no place on the curves.
    after = {"step": None, "when": "after the last step"}
    findings = [as_mapping(finding) | after for finding in as_list(reward.get("findings")) if as_mapping(finding)]
    status = as_text(about.get("status")) or as_text(entry.get("status"))
    if not status or status == "pending":
        status = "unknown" if folder.is_dir() and any(folder.iterdir()) else "planned"
    stage = Stage(
        name=folder.name,
        method=as_text(about.get("method")) or as_text(entry.get("method")) or "unknown method",
        status=status,
        folder=folder,
        about={"seconds": None if status == "planned" else entry.get("seconds")} | about,
        config=files.text(folder / "config.yaml"),
        preflight=files.record(folder / "preflight.json"),
        curves=curves,
        epochs_per_step=epochs_per_step,
        pairs=_read_pairs(files, folder / "pairs.jsonl"),
        samples=files.lines(folder / "samples.jsonl", MOST_SAMPLES),
        alarms=[*files.lines(folder / "alarms.jsonl", MOST_ALARMS), *findings],
        dropped=files.lines(folder / "dropped.jsonl", SHOWN_ROWS),
        written=files.lines(folder / "data.jsonl", SHOWN_ROWS),
        evaluated=_read_evaluated(files, folder),
        checkpoints=sorted(path.name for path in checkpoints.iterdir()) if checkpoints.is_dir() else [],
        reward=reward,
        reward_scores=files.lines(folder / "reward_scores.jsonl", MOST_PAIRS),
        sampled=read_sampled(files, folder, _best_step(about)),
        steps=files.record(folder / "step_evaluation.json"),
        step_scores=files.lines(folder / "step_scores.jsonl", MOST_PAIRS),
    )
    _note_what_is_missing(files, stage)
    return stage


def _best_step(about: Mapping[str, Any]) -> int | None:
    """The step whose weights an online stage ended with, if it ended with the best."""
    step = as_number(as_mapping(about.get("best")).get("step"))
    return None if step is None else int(step)


def _note_what_is_missing(files: Files, stage: Stage) -> None:
    if stage.status == "planned":
        return
    if not stage.about.get("status") and not any(p.where == f"{stage.name}/stage.json" for p in files.problems):
        files.note(stage.folder / "stage.json", "is missing: what ran, on what data and on what machine is not known")
    if stage.method == "correction":
        if not stage.written:
            files.note(stage.folder / "data.jsonl", "is missing or empty: no pairs were written")
        return
    if not stage.curves:
        files.note(stage.folder / "metrics.jsonl", "is missing or empty: there are no curves")
    if not stage.preflight and not any(p.where == f"{stage.name}/preflight.json" for p in files.problems):
        files.note(stage.folder / "preflight.json", "is missing: the checks before step 1 did not end")


def _read_curves(files: Files, path: Path) -> tuple[dict[str, dict[str, Curve]], float | None]:
    """Curves by split and name. A step that was written twice (the run was resumed) counts with its later values."""
    by_split: dict[str, dict[float, dict[str, float | None]]] = {}
    repeated = 0
    epochs_per_step = None
    for line in files.lines(path):
        step = as_number(line.get("step"))
        values = as_mapping(line.get("values"))
        if step is None or not values:
            continue
        rows = by_split.setdefault(as_text(line.get("split")) or "train", {})
        repeated += step in rows
        rows[step] = {name: as_number(value) for name, value in values.items()}
        epoch = as_number(line.get("epoch"))
        if epoch and step:
            epochs_per_step = epoch / step
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


def _read_pairs(files: Files, path: Path) -> dict[str, list[dict[str, Any]]]:
    pairs: dict[str, list[dict[str, Any]]] = {"start": [], "end": []}
    for line in files.lines(path, MOST_PAIRS):
        if line.get("when") in ("start", "end"):
            pairs[line["when"]].append(_one_side(line) if "good" in line else line)
    return pairs


def _one_side(line: Mapping[str, Any]) -> dict[str, Any]:
    """A judged response as a pair that has one side: good is chosen, bad is rejected."""
    side = "chosen" if as_number(line.get("good")) else "rejected"
    figures = {f"{name}_{side}": line.get(name) for name in ("rewards", "logprob", "tokens")}
    return {"when": line["when"], "row": line.get("row"), "judged": True, **figures}


def _read_evaluated(files: Files, folder: Path) -> Evaluated:
    scores: dict[str, dict[str, Score]] = {}
    for suite, metrics in files.record(folder / "evaluation.json").items():
        read = {name: _score(value) for name, value in as_mapping(metrics).items()}
        scores[suite] = {name: score for name, score in read.items() if score is not None}
    answers = {}
    evaluations = folder / "evaluations"
    for path in sorted(evaluations.glob("*.jsonl")) if evaluations.is_dir() else ():
        rows = [_completion(line) for line in files.lines(path, MOST_COMPLETIONS)]
        if rows:
            answers[path.stem] = rows
    return Evaluated(scores, answers, _read_meanings(files, evaluations / "metrics.json"))


def _read_meanings(files: Files, path: Path) -> dict[str, dict[str, Meaning]]:
    read = {
        suite: {metric: read_meaning(as_mapping(record)) for metric, record in as_mapping(metrics).items()}
        for suite, metrics in files.record(path).items()
    }
    return {
        suite: {metric: meaning for metric, meaning in metrics.items() if meaning is not None}
        for suite, metrics in read.items()
    }


def _score(value: object) -> Score | None:
    plain = as_number(value)
    if plain is not None:
        return Score(plain)
    record = as_mapping(value)
    figure = as_number(record.get("value"))
    if figure is None:
        return None
    n = as_number(record.get("n"))
    return Score(figure, as_number(record.get("low")), as_number(record.get("high")), None if n is None else int(n))


def _completion(line: Mapping[str, Any]) -> Completion:
    return Completion(
        prompt=as_text(line.get("prompt")),
        text=as_text(line.get("completion")),
        answer=as_text(line.get("answer")),
        score=as_number(line.get("score")),
        tokens=as_number(line.get("tokens")),
        finish=as_text(line.get("finish")),
    )


def _with_summary(evaluated: Evaluated, summary: object) -> Evaluated:
    """The figures of summary.json, for a folder whose evaluation.json files are gone; they have no intervals."""
    figures = numbers_of(summary)
    if evaluated.scores or not figures:
        return evaluated
    scores: dict[str, dict[str, Score]] = {}
    for name, value in figures.items():
        suite, _, metric = name.partition(".")
        if suite == HELD_OUT or suite in HEADS:
            continue  # of a stage that samples, of a reward model: its own section shows it
        scores.setdefault(suite if metric else "summary", {})[metric or name] = Score(value)
    return Evaluated(scores, evaluated.answers, evaluated.meanings)


def _stage_with_summary(stage: Stage, summary: object) -> Stage:
    return replace(stage, evaluated=_with_summary(stage.evaluated, summary)) if summary else stage
