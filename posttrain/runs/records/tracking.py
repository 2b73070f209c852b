"""tracking.json: which trackers follow a stage, and how far each has been told.

It is written before a tracker is told, so that a run that is killed and goes on tells nothing twice; what was on its
way at that moment may be missing there, and stands in metrics.jsonl all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.runs.records.base import Record, WholeFile


@dataclass(frozen=True, slots=True)
class TrackerState(Record):
    """TrackerState("wandb", id="9f2c41aa", steps={"train": 40, "held_out": 25}, alarms=1, suites=False)"""

    kind: str
    id: str
    """By which the tracker knows the stage: a resumed one goes on in the same run."""
    steps: Mapping[str, int]
    """The last step that it was told, by split."""
    alarms: int | None
    """How many alarms it was told."""
    suites: bool | None
    """Whether it was told what the suites measured."""


@dataclass(frozen=True, slots=True)
class StageTracking(WholeFile):
    """StageTracking("2026-03-01T12:00:00+00:00", (TrackerState("tensorboard", "dpo", {"train": 40}, 0, False),))"""

    FILE = "tracking.json"

    started: str | None
    """When the stage began: one that begins anew has another run in each tracker."""
    trackers: tuple[TrackerState, ...]
