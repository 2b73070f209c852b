"""How a sweep is shown: its plan, its progress on stderr, its table."""

from __future__ import annotations

import json

from rich.table import Table
from rich.text import Text

from posttrain.cli.progress import progress_on
from posttrain.cli.terminal import echo_exact, terminal
from posttrain.parallel.stopping import Stopped
from posttrain.sweeps.results import Results
from posttrain.sweeps.spec import SweepSpec
from posttrain.sweeps.sweep import Asked, plan_of, run_sweep
from posttrain.sweeps.table import best_lines, described, error_lines, heads_and_cells, is_best
from posttrain.training.loop import Interrupted


def show_plan(spec: SweepSpec, asked: Asked) -> None:
    console = terminal()
    found = plan_of(spec, asked)
    for line in found.said:
        console.print(Text(line), soft_wrap=True)
    for run in found.runs:
        console.print(
            Text(f"  {run.folder}: {described(run.settings)}, seed={run.seed} ({run.status})"), soft_wrap=True
        )


def execute(spec: SweepSpec, asked: Asked, *, as_json: bool) -> bool:
    """Run it and show the table; whether a run failed."""
    console = terminal(stderr=as_json)
    with progress_on(console) as progress:
        try:
            found = run_sweep(spec, asked, progress)
        except Interrupted as stop:
            raise Stopped(stop.number, stop.problem) from stop
    if as_json:
        echo_exact(json.dumps(found.results.to_json(), indent=1), json=True)
    else:
        console.print(table_of(found.results))
        for line in best_lines(found.results):
            console.print(Text(line), soft_wrap=True)
        console.print(f"sweep   {found.folder}", soft_wrap=True, highlight=False)
        console.print(f"page    {found.report}", soft_wrap=True, highlight=False)
    errors = error_lines(found.results)
    for line in errors:
        terminal(stderr=True).print(Text(line, style="bold red"), soft_wrap=True)
    if errors and not asked.restart_failed:
        terminal(stderr=True).print("to run what failed again: the same command with --restart-failed", soft_wrap=True)
    return bool(errors)


def table_of(found: Results) -> Table:
    heads, cells = heads_and_cells(found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head)
    for row, line in zip(found.rows, cells, strict=True):
        table.add_row(*map(Text, line), style="bold" if is_best(found, row) else "")
    return table
