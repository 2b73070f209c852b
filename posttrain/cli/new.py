"""posttrain new: a commented recipe for rows of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.terminal import echo

Kind = Annotated[str, typer.Argument(metavar="KIND", help="identity, chat, dpo, reward or grpo.")]
Data = Annotated[str, typer.Option("--data", metavar="FILE", help="Your rows: a file, pattern, folder or hub id.")]
Model = Annotated[
    str,
    typer.Option("--model", metavar="MODEL", help="Where it starts: a catalogue name, a folder or a hub id."),
]
Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="identity: the name to teach (default: the one in the answers)."),
]
RecipeFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The recipe to write (default: KIND.yaml).")
]


def new(
    kind: Kind, data: Data, model: Model = "smollm2-135m-instruct", name: Name = None, out: RecipeFile = None
) -> None:
    """Write a recipe for your own rows, with the settings that so many rows need. Overwrites nothing."""
    from posttrain.cli.outputs import check_out
    from posttrain.starting import plan, write
    from posttrain.starting.text import advice, commands

    check_out(out, "the recipe")
    start = plan(kind, data, model=model, name=name, out=out)
    written = write(start)
    echo(f"{data}: {start.rows.count:,} rows, format {start.rows.format}")
    for sentence in advice(start):
        echo(sentence)
    echo("wrote " + ", ".join(map(str, written)))
    echo("next:")
    typed = commands(start)
    width = max(len(command) for command, _ in typed) + 2
    for command, does in typed:
        echo(f"  {command:<{width}}# {does}")
