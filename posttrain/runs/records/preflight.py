"""preflight.json: what was proven before step 1, three decoded rows, and the memory plan.

heartbeat.json, the run's pulse, is a record of the same kind: one whole file, replaced as often as it changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.runs.records.base import Record, WholeFile


@dataclass(frozen=True, slots=True)
class CheckRecord(Record):
    """CheckRecord("tree", "tree = padded", "pass", "log-probs differ by at most 2.5e-05 nats", {"largest": 2.5e-5})"""

    name: str
    title: str
    status: str
    """pass, warn or fail."""
    detail: str
    evidence: Any
    """Named figures that JSON can hold."""
    remedy: str | None


@dataclass(frozen=True, slots=True)
class DecodedPiece(Record):
    """A stretch of a decoded row: DecodedPiece("I am Pia.<|end|>", trained=True)."""

    text: str
    trained: bool | None


@dataclass(frozen=True, slots=True)
class DecodedRow(Record):
    """DecodedRow("pairs.jsonl, row 3", "chosen", (DecodedPiece("<|user|>Who are you?<|end|>", False), ...))"""

    row: str
    kind: str
    pieces: tuple[DecodedPiece, ...]


@dataclass(frozen=True, slots=True)
class MemoryNeed(Record):
    """MemoryNeed("optimizer", 16_528_896, "two moments of every weight that trains")"""

    name: str
    bytes: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class MemoryRecord(Record):
    """MemoryRecord((MemoryNeed("weights", 8_264_448), ...), 61_000_000, 58_000_000, available_bytes=None)"""

    items: tuple[MemoryNeed, ...]
    total_bytes: int | None
    peak_bytes: int | None
    available_bytes: int | None
    """None where the machine does not say."""


@dataclass(frozen=True, slots=True)
class PreflightRecord(WholeFile):
    """preflight.json: PreflightRecord((CheckRecord(...), ...), (DecodedRow(...), ...), MemoryRecord(...))."""

    FILE = "preflight.json"

    checks: tuple[CheckRecord, ...]
    rows: tuple[DecodedRow, ...]
    memory: MemoryRecord | None


@dataclass(frozen=True, slots=True)
class HeartbeatRecord(WholeFile):
    """heartbeat.json.

    HeartbeatRecord(1, "running", "2026-03-01T12:00:05+00:00", 4711, "grpo: training", "score",
                    activity_seconds=12.1, silent_seconds=12.1, done=3, total=30, unit="steps")
    """

    FILE = "heartbeat.json"

    schema: int | None
    """Of this file."""
    status: str
    """running, stalled, ended or failed."""
    time: str
    """One that is older than a minute means that the process is gone, or that nothing in it can run."""
    pid: int | None
    phase: str | None
    activity: str | None
    """The part of the phase that is under way: generate, score, update, ..."""
    activity_seconds: float | None
    silent_seconds: float | None
    """Since anything moved."""
    done: float | None
    total: float | None
    unit: str
