"""What an audit finds, and how it is written down: the record that every check returns, a line of findings.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from posttrain.types import RowRef

AuditSeverity = Literal["error", "warning", "note"]

SEVERITIES: tuple[AuditSeverity, ...] = ("error", "warning", "note")
"""Worst first. `error`: training on these rows is meaningless. `warning`: the model will learn something that nobody
meant. `note`: worth knowing."""


@dataclass(frozen=True, slots=True, repr=False)
class AuditFinding:
    """One thing that is wrong with the data, with its rows and what to do about it.

    AuditFinding("length_bias", "warning", "the longer side is chosen in 71.0 % of 9,812 pairs", share=0.71,
            evidence={"interval": [0.701, 0.719], "cv_accuracy": 0.72}, remedy="posttrain audit ... --fix ...")
    """

    check: str
    """Name of the check in the table of checks."""
    severity: AuditSeverity
    message: str
    share: float
    """The share that the message is about: of the rows unless it says otherwise. Between 0 and 1."""
    rows: tuple[RowRef, ...] = ()
    """The rows concerned; empty where all of them together are the finding."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Figures and excerpts, as plain values that JSON holds."""
    remedy: str = ""

    def __repr__(self) -> str:
        return (
            f"AuditFinding({self.check!r}, {self.severity!r}, {self.message!r}, share={self.share:.4g}, "
            f"{len(self.rows):,} rows, evidence={dict(self.evidence)!r}, remedy={self.remedy!r})"
        )

    def record(self) -> dict[str, Any]:
        """One line of findings.jsonl; rows by file: {"pairs.jsonl": [3, 17]}."""
        # The file's name once and not for each row: a check may name every row of a large file.
        rows: dict[str, list[int]] = {}
        for ref in self.rows:
            rows.setdefault(ref.source, []).append(ref.row)
        return {
            "check": self.check,
            "severity": self.severity,
            "message": self.message,
            "share": self.share,
            "num_rows": len(self.rows),
            "rows": rows,
            "evidence": dict(self.evidence),
            "remedy": self.remedy,
        }


def worst_first(findings: Sequence[AuditFinding]) -> list[AuditFinding]:
    """Errors, warnings, notes; within each in the order of the checks."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def rows_text(count: int) -> str:
    """rows_text(1) -> "1 row", rows_text(1200) -> "1,200 rows"."""
    return f"{count:,} row{'' if count == 1 else 's'}"


def percent(share: float) -> str:
    """percent(0.7104) -> "71.0 %"; small shares keep a digit that matters."""
    value = 100 * share
    return f"{value:.1f} %" if value >= 0.1 or value == 0 else f"{value:.2g} %"


def excerpt(text: str, limit: int = 160) -> str:
    """The beginning of a text on one line."""
    # Cut before splitting: a text may be a megabyte, and white space seldom makes three quarters of it.
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
