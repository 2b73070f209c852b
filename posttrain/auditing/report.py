"""What an audit found: findings, what was audited, and how long each check took.

Apart from `run.py`, whose `AuditReport` adds the page and the cleaned copy, so that `fix.py` and `pictures.py` can take
it without a circle of imports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from posttrain.auditing.corpus import Corpus
from posttrain.auditing.finding import SEVERITIES, AuditFinding, AuditSeverity
from posttrain.auditing.subject import Subject
from posttrain.data.formats import KIND_NAMES
from posttrain.types import Example


@dataclass
class Findings:
    """What an audit found, worst first; prints as a table for people. `AuditReport` adds what it can be written as."""

    findings: list[AuditFinding]
    subject: Subject
    examples: Iterable[Example]
    """What was audited, for a cleaned copy."""
    ran: dict[str, float] = field(default_factory=dict)
    """Check -> seconds it took."""
    seconds: float = 0.0

    @property
    def errors(self) -> list[AuditFinding]:
        return self.of("error")

    @property
    def corpus(self) -> Corpus:
        return self.subject.corpus

    def of(self, severity: AuditSeverity) -> list[AuditFinding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def __iter__(self) -> Iterator[AuditFinding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def summary(self) -> str:
        """One line: "643 comparisons, 21 checks: 0 errors, 2 warnings, 1 note"."""
        kind = KIND_NAMES[self.corpus.kind] if self.corpus.kind is not None else "rows"
        counts = {severity: len(self.of(severity)) for severity in SEVERITIES}
        parts = ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())
        return f"{len(self.corpus):,} {kind}, {len(self.ran)} checks: {parts}"

    def __str__(self) -> str:
        lines = [self.summary()]
        for finding in self.findings:
            lines += ["", f"{finding.severity:<8} {finding.check}: {finding.message}"]
            if finding.rows:  # some findings are about all rows together, and name none
                shown = ", ".join(str(ref) for ref in finding.rows[:3])
                more = len(finding.rows) - 3
                lines.append(f"         rows:   {shown}" + (f" and {more:,} more" if more > 0 else ""))
            lines.append(f"         remedy: {finding.remedy}")
        return "\n".join(lines)

    __repr__ = __str__
