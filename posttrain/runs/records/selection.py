"""What a selection of rows writes beside them: which went and why, and what everything was made from.

manifest.json   SelectionManifest   inputs, settings, and each step in figures
rejected.jsonl  RejectedRow         every row that is not in data.jsonl
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.runs.records.base import Exact, LogLine, Record, WholeFile, optional_key
from posttrain.runs.records.run import SCHEMA


@dataclass(frozen=True, slots=True)
class RejectedRow(LogLine):
    """RejectedRow("chat.jsonl, row 17", "deduplicate", "near_duplicate", "says nearly what the kept row says: 93% ...",
    scores={"length": 41.0}, content={"messages": [...]}, nearest="chat.jsonl, row 3", similarity=0.93)"""

    FILE = "rejected.jsonl"

    row: str
    step: str
    """The step that took it out; `read` where it could not be read."""
    reason: str
    message: str
    scores: Mapping[str, Exact | None]
    """What it was worth by every score that was computed before it went."""
    content: Any
    """The row itself, every column."""
    nearest: str | None = optional_key()
    """The kept row that it is most like, where a step looked for one."""
    similarity: float | None = optional_key()


@dataclass(frozen=True, slots=True)
class SelectionInput(Record):
    """SelectionInput("chat.jsonl", "9f2c...")"""

    name: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class ScoreFigures(Record):
    """A score over the rows that a step was given, and over those that it kept.

    ScoreFigures(rows=1000, unscored=3, mean=41.2, least=1.0, p5=4.0, median=38.0, p95=97.0, most=412.0, kept_mean=55.1)
    """

    rows: int | None
    unscored: int | None
    """Rows without one, in no other figure here."""
    mean: Exact | None
    least: Exact | None
    p5: Exact | None
    median: Exact | None
    p95: Exact | None
    most: Exact | None
    kept_mean: Exact | None


@dataclass(frozen=True, slots=True)
class SelectionStep(Record):
    """SelectionStep("deduplicate", rows_in=1000, rows_out=911, removed={"duplicate": 89}, seconds=0.4)"""

    step: str
    rows_in: int | None
    rows_out: int | None
    removed: Mapping[str, int]
    """Rows by reason; with `rows_out` they are `rows_in`."""
    seconds: float | None
    """That it took when it was computed; not now, where `computed_before`."""
    computed_before: bool | None = None
    """Whether its result was found in OUT/.steps, of an earlier run on the same rows and settings."""
    scores: Mapping[str, ScoreFigures] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TwinFigures(Record):
    """TwinFigures(file="random.jsonl", rows=1000, shared=124, drawn_from=9_870, tokens=None, selected_tokens=None)"""

    file: str
    rows: int | None
    shared: int | None
    """Rows that are in the selection too."""
    drawn_from: int | None
    tokens: int | None
    """Of the twin that is as large in tokens; None of the one in rows."""
    selected_tokens: int | None
    """Of the selection; the twin has at most this many."""


@dataclass(frozen=True, slots=True)
class SelectionManifest(WholeFile):
    """SelectionManifest(kind="demonstrations", read=1000, kept=900, rejected=100, seed=0, inputs=(...), ...)"""

    FILE = "manifest.json"

    kind: str
    """demonstrations, comparisons, feedback or tasks."""
    read: int | None
    """Rows; `kept` and `rejected` add up to it."""
    kept: int | None
    rejected: int | None
    refused: Mapping[str, int]
    """Of the rejected those that could not be read, by reason."""
    seed: int | None
    inputs: tuple[SelectionInput, ...]
    settings: Mapping[str, Any]
    """The steps with all values, defaults included."""
    steps: tuple[SelectionStep, ...]
    twins: tuple[TwinFigures, ...]
    versions: Mapping[str, str]
    schema: int = SCHEMA
