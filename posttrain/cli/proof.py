"""A preflight on the terminal: its checks, and the rows as the model will see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from posttrain.runs.records.preflight import DecodedRow
    from posttrain.training.checks.preflight import Preflight

MARKS = {"pass": ("pass", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}
LONGEST_PIECE = 400
"""Characters of a piece of a row; of longer ones the middle is left out."""


def show_preflight(
    console: Console, stage: str, proven: Preflight, *, explain: bool = False, rows: bool = True
) -> None:
    """The checks, and the decoded rows.

    Args:
        explain: under each line what it proves, why that matters, and what to do where it does not hold.
        rows: they were not shown before.
    """
    from posttrain.training.checks.explained import EXPLAINED  # a table of texts

    console.print(Text(f"\n{stage}", style="bold"))
    for check in proven.checks:
        mark, style = MARKS[check.status]
        console.print(Text.assemble("  ", (mark, style), f"  {check.title}: {check.detail}"), soft_wrap=True)
        if check.remedy and check.status != "pass":
            console.print(Text(f"        {check.remedy}"), soft_wrap=True)
        if explain:
            row = EXPLAINED[check.name]
            for line in (row.proves, f"Without it: {row.matters}", f"If it fails: {row.otherwise}"):
                console.print(Text(f"        {line}", style="dim"), soft_wrap=True)
    if rows and proven.rows:
        console.print(Text("  rows as the model sees them; what trains is marked", style="dim"))
        show_rows(console, proven.rows)


def show_first(console: Console, stage: str, rows: Sequence[DecodedRow]) -> None:
    """A stage's first rows, while all others are still to be read; its checks follow at the end."""
    console.print(Text.assemble((f"\n{stage}", "bold"), ("  the first rows; what trains is marked", "dim")))
    show_rows(console, rows)


def show_rows(console: Console, rows: Sequence[DecodedRow]) -> None:
    """Trained text is green on a terminal, and stands in [[ ]] where there is no colour."""
    for row in rows:
        console.print(Text(f"  {row.row} ({row.kind})", style="bold"))
        text = Text("    ")
        for piece in row.pieces:
            words = _cut(piece.text).replace("\n", "\n    ")
            if piece.trained:
                text.append(words if console.color_system else f"[[{words}]]", style="bold green")
            else:
                text.append(words)
        console.print(text, soft_wrap=True)


def _cut(text: str) -> str:
    half = LONGEST_PIECE // 2
    return text if len(text) <= LONGEST_PIECE else f"{text[:half]} ... {text[-half:]}"
