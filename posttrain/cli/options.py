"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that comes with posttrain.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="STAGE.KEY=VALUE", help="Settings that win over the recipe's: dpo.beta=0.2 seed=3"),
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Folder that holds run folders (default: the recipe's).")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run every stage anew, finished or not.")]

Processes = Annotated[
    int | None,
    typer.Option("--processes", metavar="N", min=1, help="Share the work among N processes of this machine."),
]
Restarts = Annotated[
    int,
    typer.Option("--restarts", metavar="N", min=0, help="Start all processes again after a failure, at most N times."),
]
Patience = Annotated[
    float | None,
    typer.Option(
        "--patience",
        metavar="SECONDS",
        min=1,
        help="End a job of several processes as stuck when nothing has moved for so long (1800).",
    ),
]

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A catalogue name, a folder or a hub id.")]
Template = Annotated[
    str,
    typer.Option(
        "--template",
        metavar="NAME",
        help="auto (as the model was trained), chat (its own template), chatml, raw (bare text), or a Jinja file.",
    ),
]
ModelCode = Annotated[
    Literal["refuse", "run"],
    typer.Option("--model-code", help="run: run the Python files of the model's folder, with your rights."),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.")]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="What the system message says.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0 takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Only the k likeliest tokens.")]
TopP = Annotated[float, typer.Option("--top-p", help="The likeliest tokens that hold this share together.")]
MinP = Annotated[float, typer.Option("--min-p", help="Only tokens this share as likely as the likeliest.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="Above 1 discourages repetition.")]
Longest = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="End an answer before this text; may be given several times. A newline is one that the shell writes, "
        "$'\\n' in bash: a backslash and an n are taken as they are.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Equal seeds give equal answers.")]
