"""run.json and summary.json: which stages a run has, how each ended, and the final figures.

run.json      RunRecord      written when a run begins, when a stage begins or ends, and when the run ends
summary.json  Summary        written after each stage that was evaluated
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.runs.records.base import Record, WholeFile, optional_key, other_keys

SCHEMA = 2
"""Version of the layout that this program writes, in run.json and stage.json."""

LACKED: Mapping[int, str] = {
    1: "stage.json had no `schema`, and of its keys only those that the stage had come to write",
}
"""What older layouts lacked beside the present one; all of them are read."""


@dataclass(frozen=True, slots=True)
class StageEntry(Record):
    """One stage in run.json: StageEntry("dpo", "dpo_nll", "done", 36.2)."""

    name: str
    method: str | None
    status: str | None
    """pending, running, done, interrupted or failed."""
    seconds: float | None
    """Of work, over all attempts."""
    warnings: tuple[str, ...] | None = optional_key()
    """What is wrong with the stage as a whole."""
    more: Mapping[str, Any] = other_keys()


@dataclass(frozen=True, slots=True)
class Restart(Record):
    """All processes of a run were started again, after one had failed.

    Restart("2026-03-01T12:00:00+00:00", rank=2, phase="`score`, at 12 of 30 steps of grpo: training",
            problem="the process was killed by SIGKILL")
    """

    time: str
    rank: int | None
    """Which failed; None where it left no word and nobody else could tell."""
    phase: str | None
    problem: str | None

    @property
    def said(self) -> str:
        """rank 2 (`score`, at 12 of 30 steps of grpo: training): the process was killed by SIGKILL"""
        if self.rank is None:
            return "the cause is not known"
        return f"rank {self.rank} ({self.phase}): {self.problem}"


@dataclass(frozen=True, slots=True)
class RunRecord(WholeFile):
    """run.json.

    RunRecord(schema=2, name="quickstart", posttrain_version="0.1.0", created="2026-03-01T12:00:00+00:00",
              date="2026-03-01", status="done", stages=(StageEntry("sft", "sft", "done", 67.6), ...),
              ended="2026-03-01T12:02:00+00:00")
    """

    FILE = "run.json"

    schema: int | None
    """Version of the layout; see `LACKED`."""
    name: str | None
    posttrain_version: str | None
    created: str | None
    date: str | None
    """The day that templates write which ask for today's; a run that goes on tomorrow keeps it."""
    status: str | None
    """running, done, interrupted or failed."""
    stages: tuple[StageEntry, ...]
    """In the recipe's order."""
    ended: str | None = optional_key()
    processes: int | None = optional_key()
    """How many shared the work, where it were several."""
    restarts: tuple[Restart, ...] | None = optional_key()
    """Since the run began."""
    more: Mapping[str, Any] = other_keys()

    @property
    def newer(self) -> bool:
        """Whether a later version wrote it: what is known of it is read, and nothing is written over it."""
        return self.schema is not None and self.schema > SCHEMA


@dataclass(frozen=True, slots=True)
class Summary(WholeFile):
    """summary.json: Summary({"start": {"identity.match": 0.0}, "dpo": {"identity.match": 0.97}})."""

    FILE = "summary.json"

    stages: Mapping[str, Mapping[str, float | None]] = other_keys()
    """{stage: {suite.metric: value}}, the start first."""
