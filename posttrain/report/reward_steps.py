"""A process reward model's section: how well it judges held-out steps and finds first errors, and what it scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from posttrain.report.charts import Chart
from posttrain.report.distributions import common_bins, histogram
from posttrain.report.numbers import count, difference, number
from posttrain.report.reward import FigureRow, figure_cell
from posttrain.runs.read import Stage
from posttrain.runs.records.reward import StepEvaluation, StepRewards

HEADS = ("trained", "untrained")
RIGHT = 0.5
"""A label from here on calls a step right."""
FIGURES = (
    ("step_accuracy", "steps judged right", "share", "of held-out steps; a score of 0 counts half"),
    ("first_error_accuracy", "first error found", "share", "of responses: the first wrong step, or that there is none"),
    ("error_found", "… with a wrong step", "share", "of these responses alone"),
    ("no_error_found", "… without a wrong step", "share", "of these responses alone"),
    ("first_error_f1", "first error, F1", "share", "harmonic mean of the two"),
    ("mean", "mean score", "", "of all steps; above 0 calls a step right"),
    ("std", "standard deviation", "", "of all scores"),
)
GAINS = {"step_accuracy": "Steps judged right", "first_error_accuracy": "First errors found"}


@dataclass(frozen=True, slots=True)
class StepsView:
    """The section as the template lays it out."""

    steps: str
    responses: str
    has_untrained: bool
    figures: list[FigureRow]
    said: list[str]
    charts: list[Chart]


def steps_view(stage: Stage) -> StepsView | None:
    """The section, or None for a stage that trained no process reward model."""
    record, lines = stage.steps, stage.step_scores
    if record is None and not lines:
        return None
    record = record or StepEvaluation.from_json({})
    judged = sum(len(line.labels) for line in lines)
    return StepsView(
        steps=count(record.steps or judged),
        responses=count(record.responses or len(lines)),
        has_untrained=bool(record.untrained),
        figures=list(_figures(record)),
        said=list(_said(record)),
        charts=[chart for head in HEADS if (chart := _histogram(lines, head)) is not None],
    )


# ---------------------------------------------------------------- figures and words


def _figures(record: StepEvaluation) -> Iterator[FigureRow]:
    untrained = record.untrained or {}
    for key, title, unit, help in FIGURES:
        if key in record.trained:
            yield FigureRow(title, help, figure_cell(record.trained[key], unit), figure_cell(untrained.get(key), unit))


def _said(record: StepEvaluation) -> Iterator[str]:
    right = record.trained.get("right_steps")
    if right is not None:
        # Most steps of a solution are right as a rule: without that share beside it, 90 % looks like skill.
        yield f"To call every step right would judge {number(right.value, 'share')} of them rightly."
    for key, title in GAINS.items():
        gain = (record.gain or {}).get(key)
        if gain is None or gain.low is None or gain.high is None:
            continue
        low, high = difference(gain.low, "share").removesuffix(" points"), difference(gain.high, "share")
        clear = "" if gain.low > 0 or gain.high < 0 else ": no clear change"
        yield f"{title}, against the untrained head: {difference(gain.value, 'share')} ({low} to {high}){clear}."


# ---------------------------------------------------------------- pictures


def _histogram(lines: list[StepRewards], head: str) -> Chart | None:
    """Scores of right and of wrong steps, each head on its own bins: their scales differ."""
    sides = {"right": _scores(lines, head, True), "wrong": _scores(lines, head, False)}
    edges = common_bins(*sides.values())
    if edges is None:
        return None
    groups = {"right": ("chosen", sides["right"]), "wrong": ("rejected", sides["wrong"])}
    chart = histogram(f"Scores of steps, {head} head", groups, edges, "score of a step")
    above = "; ".join(
        f"{number(sum(value > 0 for value in values) / len(values), 'share')} of {count(len(values))} {side} steps"
        for side, values in sides.items()
        if values
    )
    return replace(chart, caption=f"{chart.caption}; above zero: {above}")


def _scores(lines: list[StepRewards], head: str, right: bool) -> list[float]:
    found = []
    for line in lines:
        scores = line.head(head)
        # With lists of different lengths nobody knows which label belongs to which score: the line is dropped.
        known = zip(scores, line.labels, strict=True) if len(scores) == len(line.labels) else ()
        found += [
            score for score, label in known if score is not None and label is not None and (label >= RIGHT) == right
        ]
    return found
