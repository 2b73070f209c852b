"""posttrain rate: who is better, by a file of votes or games."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def rate(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Votes or games: own layout, LMArena's, AlpacaEval's, Arena-Hard's."),
    ],
    anchor: Annotated[
        str | None,
        typer.Option(
            "--anchor", metavar="NAME", help="The policy that the others are compared with (the one with most games)."
        ),
    ] = None,
    anchor_rating: Annotated[float, typer.Option("--anchor-rating", help="Its rating.")] = 1000.0,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Only games among these; give it once for each."),
    ] = None,
    style: Annotated[
        str,
        typer.Option("--style", metavar="LIST", help="What is held equal: of length, headers, bold, lists; or none."),
    ] = "length,headers,bold,lists",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the figures here as JSON, too.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The figures as JSON on stdout instead of the tables.")] = False,
) -> None:
    """Rate policies by votes: win rates, raw and at equal length, and Bradley-Terry ratings.

    All intervals are 95 % over prompts: all games of a prompt are drawn together.
    """
    from posttrain.cli.outputs import check_out, echo_json
    from posttrain.cli.terminal import echo
    from posttrain.evaluate.ratings.rate import rate as rated
    from posttrain.runs.files import write_json

    check_out(out, "the figures")
    features = () if style.strip() == "none" else [name.strip() for name in style.split(",")]
    record = rated(
        files[0] if len(files) == 1 else files,
        anchor=anchor,
        anchor_rating=anchor_rating,
        models=model,
        style=features,
    )
    if out is not None:
        write_json(out, record.to_json())
    if json:
        echo_json(record.to_json())
    else:
        for line in str(record).splitlines():
            echo(line)
