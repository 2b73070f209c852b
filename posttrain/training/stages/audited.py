"""The cheap checks of the data audit: before a stage encodes its pairs, and on rows that a stage has made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from posttrain.auditing import AuditReport, audit
from posttrain.config import TrainingStage
from posttrain.config.custom import CustomPairwise
from posttrain.config.settings import Gate
from posttrain.config.stages import PreferenceStage, Reward
from posttrain.data.read import read
from posttrain.data.write import write_jsonl
from posttrain.errors import DataError
from posttrain.runs.folder import StageFolder
from posttrain.runs.progress import Progress
from posttrain.training.checks.preflight import Check
from posttrain.types import Example


def audit_rows(
    stage: TrainingStage, examples: Iterable[Example], folder: StageFolder, progress: Progress
) -> tuple[Check, ...]:
    """Audit a stage's rows, write findings.jsonl, and say what was found as a line of the preflight.

    Raises:
        DataError: a finding has the severity `error`, and `audit.on_error` is `stop`.
    """
    # The audit asks what makes pairs worth learning from; demonstrations and feedback have no such settings.
    if not isinstance(stage, PreferenceStage | CustomPairwise | Reward) or stage.audit.on_error == "off":
        return ()
    return (check_of(_audited(examples, stage.audit.on_error, "audit: {on_error: warn}", folder, progress)),)


def audit_made(
    rows: Path,
    gate: Gate,
    folder: StageFolder,
    progress: Progress,
    *,
    checks: Sequence[str] | None = None,
    against: Sequence[str] = (),
) -> list[str]:
    """Audit the rows that a stage has made; what it found, a sentence each, errors and warnings only.

    Args:
        checks: by name; None: the cheap ones.
        against: evaluation sets that they are to hold nothing of.

    Raises:
        DataError: a finding has the severity `error`, and the gate is `stop`.
    """
    if gate == "off":
        return []
    report = _audited(read(rows), gate, "gate: warn", folder, progress, checks=checks, against=against)
    return [
        f"{finding.severity} of the audit: {finding.check}: {finding.message}"
        for finding in report
        if finding.severity != "note"
    ]


def _audited(
    examples: Iterable[Example],
    gate: Gate,
    instead: str,
    folder: StageFolder,
    progress: Progress,
    *,
    checks: Sequence[str] | None = None,
    against: Sequence[str] = (),
) -> AuditReport:
    report = audit(examples, checks=checks, cheap=checks is None, against=list(against), progress=progress)
    write_jsonl(folder.path / "findings.jsonl", (finding.record() for finding in report))
    if report.errors and gate == "stop":
        raise _refusal(report, folder, instead)
    return report


def check_of(report: AuditReport) -> Check:
    """A warning of the audit does not make the preflight warn: a bias may be what the rows are to teach."""
    evidence = {"errors": len(report.errors), "warnings": len(report.of("warning")), "notes": len(report.of("note"))}
    detail = report.summary()
    serious = [f"{finding.check}: {finding.message}" for finding in report if finding.severity != "note"]
    if serious:
        detail += (
            f" ({serious[0]}"
            + (f"; and {len(serious) - 1} more" if len(serious) > 1 else "")
            + "; `posttrain audit` shows all)"
        )
    remedy = "; ".join(finding.remedy for finding in report.errors) or None
    return Check("audit", "data audit", "warn" if report.errors else "pass", detail, evidence, remedy)


def _refusal(report: AuditReport, folder: StageFolder, instead: str) -> DataError:
    first = report.errors[0]
    return DataError(
        "the data audit found what makes training meaningless: " + "; ".join(f.message for f in report.errors),
        where=", ".join(report.corpus.sources) or folder.name,
        found=f"{first.check}, in {', '.join(str(row) for row in first.rows[:3])}" if first.rows else first.check,
        remedy="; ".join(finding.remedy for finding in report.errors)
        + f". All findings are in {folder.path / 'findings.jsonl'}; `posttrain audit` shows more, `--fix` writes a "
        f"cleaned copy, and `{instead}` trains in spite of it",
    )
