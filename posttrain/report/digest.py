"""A run in a few lines, for a terminal, a CI job or a message: `digest(Path("runs/mine"))`.

What the report says at length, from the same records and the same verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.diagnostics.metrics import METRICS
from posttrain.report.evaluation import Table, final_table
from posttrain.report.numbers import duration, number
from posttrain.report.panels import group_alarms
from posttrain.report.verdict import RunVerdict, verdict
from posttrain.runs.read import Curve, RunContents, Stage, read_run

SCHEMA = 1
"""Of the JSON; a key is added without a change of it, and taken away only with one."""
TOLD = ("loss", "reward_accuracy", "accuracy", "score", "reward_margin", "step_accuracy")
"""Held-out figures that the text has; the JSON has all of them."""
SIGNS = {"good": "ok", "bad": "BAD", "warn": "look"}


@dataclass(frozen=True, slots=True)
class Digest:
    """Digest(run=RunContents(...), verdict=RunVerdict("good", "clean", ...), table=Table(...))"""

    run: RunContents
    verdict: RunVerdict
    table: Table

    @property
    def is_failed(self) -> bool:
        """Whether it ended in any other way than at its end, or has not ended."""
        return self.run.status != "done"

    # ------------------------------------------------------------ for people

    def lines(self) -> list[str]:
        """The headline, what each stage came to, what moved, what was found, what to do, and where it is."""
        lines = [f"{self.run.name}: {self.verdict.grade}. {self.verdict.headline}"]
        for stage in self.run.stages:
            lines.append(f"  {stage.name} ({stage.method}): {stage.status}{_took(stage)}")
            lines += [f"    {said}" for said in _held_out_lines(stage)]
            if stage.about.error:
                lines.append(f"    failed: {stage.about.error.splitlines()[0]}")
        for row in (row for row in self.table.rows if row.telling):
            cells = [f"{name} {_cell(cell)}" for name, cell in zip(self.table.columns, row.cells, strict=True) if cell]
            moved = row.last.change.value if row.last is not None else ""
            lines.append(f"  {row.suite}.{row.metric}: {', '.join(cells)}" + (f"  ({moved})" if moved else ""))
        lines += [f"  {SIGNS[one.kind]}: {one.text}" for one in self.verdict.found if one.kind in ("bad", "warn")]
        lines += [f"  to do: {one.text}" for one in self.verdict.actions]
        return [*lines, f"  {self.run.folder}/report.html"]

    # ------------------------------------------------------------ for programs

    def to_json(self) -> dict[str, Any]:
        """The same with every figure: {"schema", "name", "status", "grade", "headline", "stages", "suites", ...}."""
        return {
            "schema": SCHEMA,
            "name": self.run.name,
            "folder": str(self.run.folder),
            "posttrain": self.run.about.posttrain_version,
            "status": self.run.status,
            "grade": self.verdict.grade,
            "headline": self.verdict.headline,
            "seconds": self.run.seconds,
            "stages": [_stage_json(stage) for stage in self.run.stages],
            "suites": {name: _figures_json(found.scores) for name, found in self.run.measured if found.scores},
            "moved": [
                {
                    "suite": row.suite,
                    "metric": row.metric,
                    "change": row.last.change.value or "unknown",
                    "why": row.last.why,
                }
                for row in self.table.rows
                if row.last is not None
            ],
            "findings": [{"kind": one.kind, "text": one.text} for one in self.verdict.found],
            "actions": [one.text for one in self.verdict.actions],
            "problems": [f"{problem.where}: {problem.message}" for problem in self.run.problems],
        }


def digest(run_dir: Path) -> Digest:
    """Of a run that is done, failed, interrupted or still going on.

    Raises:
        SourceError: `run_dir` is no run folder.
    """
    run = read_run(run_dir)
    table = final_table(run)
    return Digest(run, verdict(run, table), table)


def _took(stage: Stage) -> str:
    steps = "" if stage.last_step is None else f", {stage.last_step:,} steps"
    return steps + ("" if stage.seconds is None else f", {duration(stage.seconds)}")


def _cell(cell: Any) -> str:
    return cell.value + (f" [{cell.interval}]" if cell.interval else "")


def _held_out_lines(stage: Stage) -> Iterator[str]:
    for name, course in _courses(stage).items():
        if name in TOLD:
            known = METRICS.get(name)
            title, unit = (name, "") if known is None else (known.title.lower(), known.unit)
            named = f" {unit}" if unit not in ("", "share") else ""
            ends = f"{number(course['first'], unit)} -> {number(course['last'], unit)}{named}"
            best = f", best {number(course['best'], unit)} at step {course['best_step']}" if "best" in course else ""
            yield f"held-out {title}: {ends}{best}"


def _courses(stage: Stage) -> dict[str, dict[str, Any]]:
    """{metric: {"first", "last", "best", "best_step"}} of the held-out rows; no best where neither way is better."""
    courses = {}
    for name, curve in stage.curves.get("held_out", {}).items():
        points = _finite(curve)
        if not points:
            continue
        course: dict[str, Any] = {"first": points[0][1], "last": points[-1][1]}
        choose = {"up": max, "down": min}.get(METRICS[name].better) if name in METRICS else None
        if choose is not None:
            # Of equals the earliest: max and min keep the first that they meet.
            step, value = choose(points, key=lambda point: point[1])
            course |= {"best": value, "best_step": int(step)}
        courses[name] = course
    return courses


def _finite(curve: Curve) -> list[tuple[float, float]]:
    pairs = zip(curve.steps, curve.values, strict=True)
    return [(step, value) for step, value in pairs if value is not None and math.isfinite(value)]


def _stage_json(stage: Stage) -> dict[str, Any]:
    about = stage.about
    return {
        "name": stage.name,
        "method": stage.method,
        "status": stage.status,
        "steps": stage.last_step,
        "seconds": stage.seconds,
        "seed": about.seed,
        "start": about.model_name or None,
        "rows": None if about.data is None else about.data.rows,
        "trained_tokens": None if about.data is None else about.data.trained_tokens,
        "held_out": _courses(stage),
        "alarms": [
            {"name": group.name, "severity": group.severity, "steps": group.steps, "message": group.message}
            for group in group_alarms(stage)
        ],
        "warnings": list(about.warnings),
        "error": about.error,
        "model": str(stage.folder / "model") if (stage.folder / "model").is_dir() else None,
    }


def _figures_json(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {
        suite: {metric: figure.to_json() for metric, figure in figures.items()} for suite, figures in scores.items()
    }
