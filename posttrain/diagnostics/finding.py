"""What a check is, and what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from posttrain.diagnostics.history import History

Severity = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check sees: Finding("warning", "the loss rose ...", {"loss": 2.1}, "lower ...", since=40)."""

    severity: Severity
    message: str
    evidence: dict[str, Any]
    remedy: str
    since: int
    """The last step at which all was well, as far as the history tells."""
    stops: bool = False
    """Whether the run ends there whatever the recipe says: each further step is wasted for certain."""


class Check(Protocol):
    """A check's dataclass fields are its thresholds."""

    name: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]

    def look(self, history: History) -> Finding | None: ...


class OnlineCheck(Check, Protocol):
    """A check of a stage that samples, which knows when it cannot see."""

    needs: ClassVar[tuple[str, ...]]
    """Metrics without which it can never ring."""
    absent: ClassVar[str]
    """What brings those metrics."""
