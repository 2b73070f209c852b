"""Findings of the audit on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from posttrain.auditing import AuditReport

LOOK = {"error": "bold red", "warning": "yellow", "note": "cyan"}
SHOWN_ROWS = 3


def show_findings(console: Console, report: AuditReport) -> None:
    """The findings as a table, worst first."""
    console.print(Text(report.summary(), style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0), header_style="dim")
    for name in ("severity", "check", "finding"):
        table.add_column(name, overflow="fold")
    for finding in report:
        line = Text(finding.message)
        if finding.rows:
            shown = ", ".join(str(row) for row in finding.rows[:SHOWN_ROWS])
            more = f" and {len(finding.rows) - SHOWN_ROWS:,} more" if len(finding.rows) > SHOWN_ROWS else ""
            line.append(f"\n{shown}{more}", style="dim")
        line.append(f"\n{finding.remedy}", style="green")
        table.add_row(Text(finding.severity, style=LOOK[finding.severity]), finding.check, line)
    if len(report):
        console.print(table)
