"""posttrain summary: a run in a few lines, as text or JSON; for a terminal, and for a job that has to judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.cli.terminal import echo


def summary(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder that holds run.json.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, with every figure.")] = False,
    fail_on: Annotated[
        Literal["never", "failed", "bad", "warn"],
        typer.Option(
            "--fail-on",
            help="Exit code 1 if the run did not come to its end (failed), or also if its verdict found something bad, "
            "or also if it found anything to look at (warn).",
        ),
    ] = "never",
) -> None:
    """Show what a run came to: its verdict, held-out figures, suites, alarms, and what to do."""
    from posttrain.cli.outputs import echo_json
    from posttrain.report.digest import digest

    found = digest(run)
    if json:
        echo_json(found.to_json())
    else:
        for line in found.lines():
            echo(line)
    kinds = {one.kind for one in found.verdict.found}
    fails = {
        "never": False,
        "failed": found.is_failed,
        "bad": found.is_failed or "bad" in kinds,
        "warn": found.is_failed or bool(kinds & {"bad", "warn"}),
    }
    if fails[fail_on]:
        raise typer.Exit(1)
