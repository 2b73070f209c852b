"""Results side by side: stages that started from one model, and a stage beside its own earlier results.

A column a result, a row each setting, content, seed and figure that may differ; and their curves in one picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.diagnostics.suite_metrics import meaning
from posttrain.report.charts import Chart, Line, line_chart
from posttrain.report.lineage import siblings
from posttrain.report.numbers import count, duration, interval, number
from posttrain.report.panels import PANELS, own_panel, smoothing
from posttrain.report.text import moment
from posttrain.runs.differences import START_MODEL, setting_differences, shown
from posttrain.runs.folder import EARLIER
from posttrain.runs.read import Curve, RunContents, Stage
from posttrain.runs.records.stage import StepScore

MEASURED = (
    ("loss", "loss", ""),
    ("reward_accuracy", "reward accuracy", "share"),
    ("reward_margin", "reward margin", ""),
    ("step_accuracy", "step accuracy", "share"),
)
"""Metrics of curves that a result is judged by, with their titles and units."""
COLOURS = ("accent", "second", "chosen", "rejected", "good", "bad", "warn", "ink-3")
"""Of the curves in one picture; no more results than these are drawn."""
NOTHING = "–"
HASH_DIGITS = 8


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """ComparedRow("beta", ["0.1", "0.5"], "setting")"""

    label: str
    cells: list[str]
    kind: str
    """setting, run, curve or suite: what the row is, which begins a new block of the table."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table and pictures of several results."""

    title: str
    said: str
    columns: list[str]
    rows: list[ComparedRow]
    charts: list[Chart]


def compared_siblings(run: RunContents) -> list[Comparison]:
    """Of every group of stages that started from one model."""
    return [
        _compare(
            f"Compared: {len(group.stages)} stages that started from {group.origin}",
            "Settings that are the same for all are left out.",
            group.stages,
            [stage.name for stage in group.stages],
            siblings=True,
        )
        for group in siblings(run)
    ]


def compared_earlier(run: RunContents) -> list[Comparison]:
    """Of every stage that has earlier results in the folder, these beside the present one."""
    found = []
    present = {stage.name: stage for stage in run.stages}
    by_stage: dict[str, list[Stage]] = {}
    for stage in run.earlier:
        match = EARLIER.fullmatch(stage.name)
        by_stage.setdefault(match[1] if match is not None else stage.name, []).append(stage)
    for name, results in by_stage.items():
        now = [present[name]] if name in present else []
        columns = [stage.name for stage in results] + [f"{stage.name} (now)" for stage in now]
        said = "; ".join(_because(stage) for stage in results)
        found.append(_compare(name, said, [*results, *now], columns))
    return found


def _because(stage: Stage) -> str:
    replaced = stage.about.replaced
    if replaced is None:
        return f"{stage.name}: why it was replaced is not known"
    when = f" on {moment(replaced.when)}" if replaced.when else ""
    return f"{stage.name} was replaced{when}: {', '.join(replaced.because)}".replace("`", "")


def _compare(
    title: str, said: str, stages: Sequence[Stage], columns: list[str], *, siblings: bool = False
) -> Comparison:
    rows = [*_settings(stages, siblings=siblings), *_ran(stages), *_curves(stages), *_suites(stages)]
    # A row of which nothing is known in any column says nothing.
    rows = [row for row in rows if any(cell != NOTHING for cell in row.cells)]
    return Comparison(title, said, columns, rows, _charts(stages, columns))


# ---------------------------------------------------------------- what went in


def _settings(stages: Sequence[Stage], *, siblings: bool) -> Iterator[ComparedRow]:
    """The settings that differ between any two, the seeds, and the contents."""
    configs = [_config(stage) for stage in stages]
    known = [config for config in configs if config]
    keys = dict.fromkeys(difference.key for config in known[1:] for difference in setting_differences(known[0], config))
    for key in ("seed", *(key for key in keys if key != "seed")):
        yield ComparedRow(key, [_at(config, key) for config in configs], "setting")
    contents = [stage.about.contents or {} for stage in stages]
    for key in dict.fromkeys(key for content in contents for key in content):
        # One start for all: its hash differs by the fresh adapter alone, which each seed draws anew.
        if siblings and key == START_MODEL:
            continue
        hashes = [content.get(key) for content in contents]
        if len(set(hashes)) > 1:
            label = "start model, weights" if key == START_MODEL else f"{key}, content"
            yield ComparedRow(label, [text[:HASH_DIGITS] if text else NOTHING for text in hashes], "setting")


def _config(stage: Stage) -> Mapping[str, Any]:
    # Only here: the page of a run without anything to compare needs no parser.
    import yaml

    try:
        # Written by this program, but read from a folder that anybody may have edited.
        config = yaml.safe_load(stage.config or "")
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict):
        return {}
    recorded = {"seed": stage.about.seed, "split_seed": stage.about.split_seed}
    return {str(key): value for key, value in config.items()} | {k: v for k, v in recorded.items() if v is not None}


def _at(config: Mapping[str, Any], key: str) -> str:
    node: Any = config
    for word in key.split("."):
        if not isinstance(node, dict) or word not in node:
            return NOTHING
        node = node[word]
    return shown(node)


def _ran(stages: Sequence[Stage]) -> Iterator[ComparedRow]:
    if any(stage.status != "done" for stage in stages):
        yield ComparedRow("status", [stage.status for stage in stages], "run")
    steps = [stage.last_step for stage in stages]
    yield ComparedRow("steps", [NOTHING if step is None else count(step) for step in steps], "run")
    yield ComparedRow("took", [NOTHING if s.seconds is None else duration(s.seconds) for s in stages], "run")


# ---------------------------------------------------------------- what came out


def _curves(stages: Sequence[Stage]) -> Iterator[ComparedRow]:
    for metric, title, unit in MEASURED:
        split = _split(stages, metric)
        if split is not None:
            curves = [stage.curves.get(split, {}).get(metric) for stage in stages]
            name = "held-out " if split == "held_out" else "training "
            yield ComparedRow(name + title, [_ends(curve, unit) for curve in curves], "curve")
    scores = [stage.about.held_out_score for stage in stages]
    if any(score is not None for score in scores):
        cells = [NOTHING if s is None else f"{_score(s.start)} → {_score(s.kept)}" for s in scores]
        yield ComparedRow("held-out score, start → saved", cells, "curve")


def _score(score: StepScore) -> str:
    spread = interval(score.low, score.high)
    return f"{number(score.value)} ({spread})" if spread else number(score.value)


def _split(stages: Sequence[Stage], metric: str) -> str | None:
    """Held-out where any has it: what a model gained on its training rows it may have learned by heart."""
    return next((s for s in ("held_out", "train") if any(metric in stage.curves.get(s, {}) for stage in stages)), None)


def _ends(curve: Curve | None, unit: str) -> str:
    known = [value for value in curve.values if value is not None] if curve is not None else []
    if not known:
        return NOTHING
    return f"{number(known[0], unit)} → {number(known[-1], unit)}"


def _suites(stages: Sequence[Stage]) -> Iterator[ComparedRow]:
    """What each suite is asked for, after the stage."""
    names = dict.fromkeys(
        (suite, metric) for stage in stages for suite, own in stage.evaluated.scores.items() for metric in own
    )
    for suite, metric in names:
        said = (stage.evaluated.meanings.get(suite, {}).get(metric) for stage in stages)
        how = next((own for own in said if own is not None), None) or meaning(metric)
        if not how.primary:
            continue
        cells = []
        for stage in stages:
            figure = stage.evaluated.scores.get(suite, {}).get(metric)
            spread = interval(figure.low, figure.high, how.unit) if figure is not None else ""
            value = NOTHING if figure is None else number(figure.value, how.unit)
            cells.append(f"{value} ({spread})" if spread else value)
        yield ComparedRow(f"{suite}: {how.title}", cells, "suite")


def _charts(stages: Sequence[Stage], columns: Sequence[str]) -> list[Chart]:
    """The curves of each metric that two results and more have, in one picture."""
    drawn = list(zip(columns, COLOURS, stages, strict=False))
    charts = []
    for metric, _, _ in MEASURED:
        for split in ("held_out", "train"):
            lines = [
                Line(name, colour, curve, held_out=split == "held_out")
                for name, colour, stage in drawn
                if (curve := stage.curves.get(split, {}).get(metric)) is not None
                and any(value is not None for value in curve.values)
            ]
            if len(lines) < 2:
                continue
            panel = next((one for one in PANELS if metric in [name for name, _, _ in one.series]), own_panel(metric))
            span = max(smoothing(stage) for stage in stages)
            chart = line_chart(panel.title, lines, panel.style, span)
            where = "on held-out rows" if split == "held_out" else "on the training rows"
            charts.append(replace(chart, unit=", ".join(part for part in (panel.subtitle, where) if part)))
    return charts
