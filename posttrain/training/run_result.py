"""A run that has been made: its figures as a table, a summary, curves and its model; by `train`, or opened from disk.

run = pt.Run.open("runs/mine")
run.metrics("held_out")        # a DataFrame, one row a measurement
print(run.summary())
run.plot("loss").savefig("loss.png")
policy = run.load()
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from posttrain.arguments import checked_name, checked_path, checked_text
from posttrain.diagnostics.metrics import METRICS
from posttrain.errors import ConfigError, MissingExtraError, SourceError, unknown
from posttrain.models.folders import loading
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.folders.own_code import ModelCode, folder_code
from posttrain.models.folders.source import resolve
from posttrain.models.reward.folders import is_reward_folder
from posttrain.models.reward.scoring import RewardModel, load_reward
from posttrain.report.notebook import stage_html
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.progress import clock
from posttrain.runs.records.evaluation import Figure
from posttrain.runs.records.logs import MetricsLine
from posttrain.runs.records.stage import StageRecord

SPLITS = ("train", "held_out")
SHOWN_METRICS = ("score", "loss", "reward_accuracy", "accuracy", "reward_margin")
"""Held-out figures that a printed summary has a line for, as far as the stage measured them."""


@dataclass(frozen=True, slots=True)
class Course:
    """How a held-out figure went: Course(first=0.693, last=0.41, best=0.40, best_step=60)."""

    first: float
    last: float
    best: float | None
    """None where neither way is better."""
    best_step: int | None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a stage came to; prints as a few lines.

    RunSummary(Path("runs/mine"), "dpo", "dpo", "done", steps=75, seconds=36.2, seed=0, start="embedded", rows=950,
               held_out={"loss": Course(0.693, 0.41, 0.40, 60)}, suites={}, alarms=(), warnings=())
    """

    folder: Path
    stage: str
    method: str | None
    status: str | None
    steps: int
    seconds: float | None
    seed: int | None
    """None of a run whose records do not say it."""
    start: str
    rows: int | None
    held_out: Mapping[str, Course]
    """By metric."""
    suites: Mapping[str, tuple[Figure | None, Figure]]
    """{suite.metric: (of the start, of this stage's model)}; none where nothing was asked."""
    alarms: tuple[str, ...]
    """Name and step of each."""
    warnings: tuple[str, ...]
    """What is wrong with the stage as a whole."""

    def rows_of_text(self) -> list[tuple[str, str]]:
        """Label and text of each line."""
        took = "" if self.seconds is None else f" in {clock(self.seconds)}"
        seed = "" if self.seed is None else f", seed {self.seed}"
        trained = "" if self.rows is None else f", {self.rows:,} rows"
        kind = self.stage if self.method in (None, self.stage) else f"{self.stage} ({self.method})"
        lines = [
            ("stage", f"{kind}: {self.status or 'not begun'}, {self.steps:,} steps{took}{trained}{seed}"),
            ("start", self.start or "not known"),
        ]
        for name in (*SHOWN_METRICS, *(name for name in self.held_out if name.startswith("loss/"))):
            if (course := self.held_out.get(name)) is not None:
                best = "" if course.best is None else f", best {course.best:.4g} at step {course.best_step}"
                lines.append((f"held-out {name}", f"{course.first:.4g} -> {course.last:.4g}{best}"))
        for name, (before, after) in self.suites.items():
            lines.append((name, f"{after.value:.4g}" if before is None else f"{before.value:.4g} -> {after.value:.4g}"))
        lines += [("alarm", alarm) for alarm in self.alarms]
        lines += [("warning", warning) for warning in self.warnings]
        model = self.folder / self.stage / "model"
        # Not there under `export: none`, and while the stage has not ended: a path to nothing would be taken for one.
        lines.append(("model", str(model) if model.is_dir() else "none is written"))
        lines.append(("report", str(self.folder / "report.html")))
        return lines

    def __str__(self) -> str:
        rows = self.rows_of_text()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(label)}</th><td style='text-align:left'>"
            f"{html.escape(text)}</td></tr>"
            for label, text in self.rows_of_text()
        )
        return f"<table>{cells}</table>"


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A stage that was run, finished or not: Run(Path("runs/mine"), stage="dpo", steps=75)."""

    folder: Path
    stage: str
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", checked_path("folder", self.folder, "runs/mine"))
        checked_text("stage", self.stage, "dpo")

    @classmethod
    def open(cls, folder: str | Path, stage: str | None = None) -> Run:
        """A run from its folder, whoever made it: `train`, a recipe, another machine.

        Args:
            stage: by name; None: the last that has a model, or the last that has begun.

        Raises:
            SourceError: there is no run here, or none of its stages has begun.
            UnknownKeyError: no stage of that name has begun.
        """
        path = checked_path("folder", folder, "runs/mine").expanduser()
        if stage is None and not RunFolder(path).exists and StageFolder(path).exists:  # one stage's own folder
            path, stage = path.resolve().parent, path.resolve().name
        begun = RunFolder(path).stages()
        if not begun:
            raise SourceError(
                "there is no run here, or none of its stages has begun",
                where=path,
                expected="a run folder, which holds run.json",
                remedy="give the `out` of pt.train, or `runs/<recipe>`",
            )
        names = [found.name for found in begun]
        if stage is not None:
            chosen = checked_name("stage", stage, names)
        else:
            chosen = next((found.name for found in reversed(begun) if found.model.is_dir()), names[-1])
        found = RunFolder(path).stage(chosen)
        return cls(path, chosen, found.stage().steps or _last_step(found.metrics("train")))

    # ------------------------------------------------------------ places

    @property
    def model(self) -> Path:
        """The folder that transformers, peft and vLLM load.

        Raises:
            ConfigError: the stage ended without one, under `export: none`.
        """
        folder = self._stage_folder
        if folder.exists and (record := folder.stage()).status == "done" and record.output is None:
            raise ConfigError(
                f"the stage `{self.stage}` wrote no model folder",
                where=folder.path,
                found="`export: none`",
                remedy="train it without `export`, which is `auto` then",
            )
        return folder.model

    @property
    def report(self) -> Path:
        """The page of the whole run."""
        return self.folder / "report.html"

    @property
    def _stage_folder(self) -> StageFolder:
        return RunFolder(self.folder).stage(self.stage)

    # ------------------------------------------------------------ figures

    def metrics(self, split: str | None = None) -> Any:
        """What was measured: a pandas DataFrame with a row for each measurement and a column for each value.

        The columns are `step`, `epoch`, `seconds`, `split`, then the values by name; a value that was not measured at a
        row, or was not finite, is missing there. Without pandas, a list of such rows as dicts.

        Args:
            split: "train" or "held_out"; None for both.

        Raises:
            UnknownKeyError: no such split.
            SourceError: metrics.jsonl cannot be read.
        """
        lines = self.lines(split)
        rows = [
            {"step": line.step, "epoch": line.epoch, "seconds": line.seconds, "split": line.split, **line.values}
            for line in lines
        ]
        try:
            pandas = import_module("pandas")
        except ImportError:
            return rows
        # Columns named even where nothing was measured, so that `run.metrics().step` is there in any case.
        return pandas.DataFrame(rows, columns=None if rows else ["step", "epoch", "seconds", "split"])

    def lines(self, split: str | None = None) -> list[MetricsLine]:
        """The lines of metrics.jsonl, with the denominators of each mean (`counts`); raises as `metrics`."""
        if split is not None:
            checked_name("split", split, SPLITS)
        return self._stage_folder.metrics(split)

    def alarms(self) -> list[dict[str, Any]]:
        """The lines of alarms.jsonl: {"name", "severity", "step", "message", "remedy", ...}; [] where nothing rang."""
        return [alarm.to_json() for alarm in self._stage_folder.alarms()]

    def summary(self) -> RunSummary:
        """Status, steps, held-out figures, suites, alarms and places.

        Raises:
            SourceError: a record of the run cannot be read.
        """
        folder = self._stage_folder
        record = folder.stage() if folder.exists else StageRecord()
        evaluated = RunFolder(self.folder).evaluations()
        before, after = (evaluated.get(name) for name in ("start", self.stage))
        suites = {
            f"{suite}.{metric}": (None if before is None else before.suites.get(suite, {}).get(metric), figure)
            for suite, figures in (after.suites if after is not None else {}).items()
            for metric, figure in figures.items()
        }
        return RunSummary(
            folder=self.folder,
            stage=self.stage,
            method=record.method,
            status=record.status,
            steps=self.steps,
            seconds=record.seconds,
            seed=record.seed,
            start=record.model_name,
            rows=None if record.data is None else record.data.rows,
            held_out=_courses(folder.metrics("held_out")),
            suites=suites,
            alarms=tuple(f"{alarm.name} at step {alarm.step}: {alarm.message}" for alarm in folder.alarms()),
            warnings=record.warnings,
        )

    def plot(self, metric: str = "loss") -> Any:
        """A matplotlib figure of one metric over the steps, on what trains and on what is held out; a notebook's cell
        that ends with it shows it.

        Raises:
            UnknownKeyError: the stage measured no such metric; the nearest is named.
            MissingExtraError: matplotlib is not installed.
        """
        curves = {split: _curve(self.lines(split), metric) for split in SPLITS}
        if not any(curves.values()):
            measured = {name: None for line in self.lines() for name in line.values}
            checked_text("metric", metric, "loss")
            raise unknown("metric", metric, measured, where=self._stage_folder.path / MetricsLine.FILE)
        try:
            matplotlib = import_module("matplotlib.figure")
        except ImportError as error:
            raise MissingExtraError(
                "a figure is drawn by matplotlib, which is not installed",
                remedy="`pip install 'posttrain[notebook]'`; the report shows the curves too, and so does a notebook's "
                "cell that ends with the run itself",
            ) from error
        # Without pyplot: no window opens, and no figure stays in memory after its caller has let it go.
        drawing = matplotlib.Figure(figsize=(7, 4), layout="constrained")
        axes = drawing.subplots()
        for split, points in curves.items():
            if points:
                steps, values = zip(*points, strict=True)
                # A held-out set is measured a few times: its points are marked, for a line alone would not show them.
                axes.plot(steps, values, marker="o" if split == "held_out" else None, label=split.replace("_", "-"))
        known = METRICS.get(metric)
        axes.set(xlabel="step", ylabel=metric if known is None else f"{known.title} {known.unit and f'({known.unit})'}")
        axes.set_title(f"{self.folder.name}: {self.stage}")
        axes.legend()
        # A figure without pyplot is shown as its name: a notebook knows how to draw only what that module made.
        drawing._repr_png_ = partial(_png, drawing)
        return drawing

    # ------------------------------------------------------------ the model

    def load(
        self,
        *,
        dtype: str | torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        model_code: ModelCode = "refuse",
    ) -> LoadedModel | RewardModel:
        """The trained model, as `pt.load` gives it; of a stage that trained a reward model, as `pt.load_reward`.

        Raises:
            ConfigError: the stage has no model yet, or makes none.
            ModelError: the folder is not what was saved.
        """
        if not self.model.is_dir():
            record = self._stage_folder
            raise ConfigError(
                f"the stage `{self.stage}` has no model",
                where=self.model,
                found=f"status: {record.stage().status}" if record.exists else "no such stage",
                remedy="train it to its end: call pt.train again with the same arguments, and it goes on",
            )
        if is_reward_folder(resolve(self.model)):
            return load_reward(self.model, dtype=dtype, device=device, model_code=model_code)
        with folder_code(model_code):
            return loading.load(self.model, dtype=dtype, device=device)

    # ------------------------------------------------------------ how it is shown

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, stage={self.stage!r}, steps={self.steps})"

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return stage_html(self.folder, self.stage, self.summary().rows_of_text())


def _png(drawing: Any) -> bytes:
    file = BytesIO()
    drawing.savefig(file, format="png")
    return file.getvalue()


def _last_step(lines: Sequence[MetricsLine]) -> int:
    return max((line.step or 0 for line in lines), default=0)


def _curve(lines: Sequence[MetricsLine], metric: object) -> list[tuple[int, float]]:
    """(step, value) wherever the metric was measured and finite."""
    found = [(line.step, line.values.get(metric)) for line in lines] if isinstance(metric, str) else []
    return [(step, value) for step, value in found if step is not None and value is not None]


def _courses(lines: Sequence[MetricsLine]) -> dict[str, Course]:
    courses: dict[str, Course] = {}
    for name in {name: None for line in lines for name in line.values}:
        if points := _curve(lines, name):
            better = METRICS[name].better if name in METRICS else "none"
            choose = {"up": max, "down": min}.get(better)
            # Of equals the earliest: max and min keep the first that they meet.
            step, best = choose(points, key=lambda point: point[1]) if choose else (None, None)
            courses[name] = Course(points[0][1], points[-1][1], best, step)
    return courses
