"""A selection on the terminal: what each step took, and what can be done with what is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.config.scores import ColumnScore
from posttrain.config.select import Score
from posttrain.curation.selection import DATA, Selection
from posttrain.data.counts import RowCounts

TRAINED_WITH = {"demonstrations": "chat", "comparisons": "dpo", "tasks": "grpo"}
"""The recipe that `posttrain new` writes for rows of a kind, where it writes one."""


def show_selection(console: Console, selection: Selection) -> None:
    """A row for each step: rows in, rows out, and each reason with its count and an example."""
    title = f"{selection.rows_read:,} {selection.kind} read, {len(selection.pool):,} kept"
    console.print(Text(title, style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("step")
    for name in ("in", "out"):
        table.add_column(name, justify="right")
    table.add_column("why rows went, with an example each", overflow="fold")
    if selection.refused:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in selection.refused.items())
        table.add_row("read", f"{selection.rows_read:,}", f"{len(selection.rows):,}", Text(reasons))
    for result in selection.steps:
        why = Text()
        for reason, count in result.by_reason.items():
            one = result.examples(reason)[0]
            why.append(f"{count:,} {reason}", style="yellow")
            kept = "" if one.nearest is None else f" ({selection.rows.ref(one.nearest)})"
            why.append(f"  {selection.rows.ref(one.row)}: {one.message}{kept}\n", style="dim")
        for note in result.taken.notes:
            why.append(f"{note}\n", style="cyan")
        why.rstrip()
        table.add_row(result.step.label, f"{len(result.pool):,}", f"{len(result.taken.kept):,}", why)
    console.print(table)


def counts_beside(selection: Selection) -> RowCounts:
    """What reading said, without the columns that a score has read: those are not unread."""
    scores = [step.score for step in selection.settings.steps if isinstance(step, Score)]
    read = {
        top for score in scores if isinstance(score, ColumnScore) for top in (score.column, *score.column.split("."))
    }
    return replace(selection.counts, unused_columns=selection.counts.unused_columns - read)


def next_commands(selection: Selection) -> list[str]:
    """Where everything is, and how to find out whether the selection is worth more than its twin."""
    out = selection.out
    assert out is not None  # the command writes always
    lines = [
        f"{out / DATA}: the {len(selection.pool):,} rows",
        f"{out / 'rejected.jsonl'}: each other row with its step, its reason and its scores",
    ]
    for twin in selection.twins:
        shared = int(np.isin(twin.rows, selection.pool.kept).sum())
        tokens = "" if twin.tokens is None else f" of {twin.tokens:,} tokens (the selection: {twin.selected_tokens:,})"
        drawn = f"{len(twin.rows):,} random rows{tokens} of {twin.drawn_from:,}"
        lines.append(f"{out / twin.file}: {drawn}; {shared:,} of them were kept too")
    kind = TRAINED_WITH.get(selection.kind)
    command = f"posttrain new {kind} --data" if kind else "posttrain audit"
    lines.append(f"next: {command} {out / DATA}, and the same with the twin")
    return lines
