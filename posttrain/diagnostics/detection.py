"""What a check of the recent metrics is, and what it detects.

After every step `Alarms` asks each `AlarmCheck`; its `Detection` becomes an `Alarm`, unless one of the same name is
under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from posttrain.diagnostics.history import History
from posttrain.runs.records.logs import AlarmSeverity


@dataclass(frozen=True, slots=True)
class Detection:
    """What a check has detected: Detection("warning", "the loss rose ...", {"loss": 2.1}, "lower ...", since=40)."""

    severity: AlarmSeverity
    message: str
    evidence: dict[str, Any]
    remedy: str
    since: int
    """The last step at which all was well, as far as the history tells."""
    stops: bool = False
    """Whether the run ends there whatever the recipe says: each further step is wasted for certain."""


class AlarmCheck(Protocol):
    """A check's dataclass fields are its thresholds."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]

    # Pure: the history goes into the checkpoint and nothing of a check does, so that a resumed run detects the same.
    def look(self, history: History) -> Detection | None: ...


class OnlineAlarmCheck(AlarmCheck, Protocol):
    """A check of a stage that samples, which knows when it cannot see."""

    needs: ClassVar[tuple[str, ...]]
    """Metrics without which it can never ring."""
    absent: ClassVar[str]
    """What brings those metrics."""
