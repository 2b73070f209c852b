"""What a selection of rows shows: a table of its steps, what each took and why, and a sentence for each random twin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from posttrain.report.numbers import MISSING, count, number
from posttrain.runs.read import Stage
from posttrain.runs.records.selection import SelectionStep, TwinFigures


@dataclass(frozen=True, slots=True)
class StepRow:
    """A line of the table: StepRow("deduplicate", "1 000", "911", "89 duplicate", "", "")."""

    step: str
    rows_in: str
    rows_out: str
    reasons: str
    """Removed rows by reason, the most frequent first."""
    scores: str
    """Of each score its mean before and after: "length 41.2 → 55.1"."""
    notes: str


@dataclass(frozen=True, slots=True)
class SelectionView:
    steps: list[StepRow]
    twins: list[str]


def selection_view(stage: Stage) -> SelectionView | None:
    """None where the stage is no selection, or its manifest is not there."""
    if (manifest := stage.selection) is None:
        return None
    return SelectionView([_row(step) for step in manifest.steps], list(_twins(manifest.twins)))


def _row(step: SelectionStep) -> StepRow:
    return StepRow(
        step.step,
        count(step.rows_in),
        count(step.rows_out),
        ", ".join(f"{count(rows)} {reason.replace('_', ' ')}" for reason, rows in _largest_first(step.removed)),
        ", ".join(
            f"{name} {number(figures.mean)} → {number(figures.kept_mean)}"
            for name, figures in step.scores.items()
            if figures.mean is not None and figures.kept_mean is not None
        ),
        " ".join(step.notes),
    )


def _twins(twins: tuple[TwinFigures, ...]) -> Iterator[str]:
    for twin in twins:
        # Shared rows are said, because a twin that is nearly the selection itself can show no difference from it.
        drawn = f"{twin.file}: {count(twin.rows)} rows at random of {count(twin.drawn_from)}"
        tokens = "" if twin.tokens is None else f", {count(twin.tokens)} tokens (selected: {_or_missing(twin)})"
        yield f"{drawn}{tokens}; {count(twin.shared)} of them are selected too."


def _or_missing(twin: TwinFigures) -> str:
    return MISSING if twin.selected_tokens is None else count(twin.selected_tokens)


def _largest_first(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(reasons.items(), key=lambda item: -item[1])
