"""posttrain push: a model with a card that is true, or rows, to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.terminal import echo


def push(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A run, a stage, a model's folder; with --dataset a file of rows."),
    ],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; made if it is not there.")],
    public: Annotated[bool, typer.Option("--public", help="For all the world (default: private).")] = False,
    dry_run: Annotated[
        Path | None,
        typer.Option("--dry-run", metavar="DIR", help="Write what would be pushed into this folder, and push nothing."),
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Of what is pushed: apache-2.0, say.")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="OWNER/NAME", help="What the model was trained from, at the hub.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN[/STAGE]", help="The run that made it, if it lies elsewhere.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="NAME", help="Stage of the run (default: the last with a model).")
    ] = None,
    dataset: Annotated[bool, typer.Option("--dataset", help="Push rows: a .jsonl, .parquet or .csv file.")] = False,
) -> None:
    """Push a model or rows to the hub, private unless --public, with a card made from the run's records.

    The token is that of `hf auth login`, or HF_TOKEN. Optimizer states, checkpoints, logs and training rows are never
    taken; a file that holds what looks like a key is refused.
    """
    from posttrain.cli.pushing import Asked, staged_dataset, staged_model
    from posttrain.cli.unused import refuse_unused
    from posttrain.models.folders.push import push_folder, require_repository
    from posttrain.runs.owner import scratch

    require_repository(name)
    refuse_unused("nothing is pushed in a dry run", "leave it out", public=public and dry_run is not None)
    refuse_unused(
        "rows have none", "leave it out", base=base is not None and dataset, run=run is not None and dataset,
        stage=stage is not None and dataset,
    )  # fmt: skip
    asked = Asked(folder.expanduser(), name, license, base, run, stage)
    make = staged_dataset if dataset else staged_model
    with scratch("push") as temporary:
        staged = make(asked, temporary / "staged" if dry_run is None else dry_run)
        for file in staged.files:
            echo(f"  {file}")
        if staged.left_out:
            echo(f"not taken: {', '.join(staged.left_out)}")
        if dry_run is not None:
            echo(f"nothing was pushed: {len(staged.files)} files ({staged.bytes / 1e6:,.1f} MB) are in {dry_run}")
            return
        echo(str(push_folder(staged, name, kind="dataset" if dataset else "model", public=public)))
