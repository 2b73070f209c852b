"""posttrain report: a run folder as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.terminal import echo_exact


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder that holds run.json.")],
) -> None:
    """Write a run's report again, from what is in its folder: finished, interrupted or still going on."""
    from posttrain.report import write_report

    echo_exact(str(write_report(run_dir)))
