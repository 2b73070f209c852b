"""posttrain convert: another tool's configuration as a recipe, and what it could not say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from posttrain.cli.terminal import echo

if TYPE_CHECKING:
    from posttrain.converting import Converted

Source = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="A YAML or JSON file of Axolotl, LLaMA-Factory or TRL, or OpenRLHF's script."),
]
Tool = Annotated[
    Literal["axolotl", "llamafactory", "trl", "openrlhf"] | None,
    typer.Option("--from", help="Whose file it is, where its keys do not tell."),
]
Method = Annotated[
    str | None,
    typer.Option("--method", metavar="NAME", help="What TRL trains with the file: sft, dpo, kto, reward, grpo, ..."),
]
Processes = Annotated[
    int,
    typer.Option(
        "--processes",
        metavar="N",
        min=1,
        help="How many GPUs the other tool was started on: it multiplies its batch size by them.",
    ),
]
RecipeFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="The recipe to write (default: NAME.recipe.yaml here).")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 if something could not be said.")]


def convert(
    file: Source,
    tool: Tool = None,
    method: Method = None,
    processes: Processes = 1,
    out: RecipeFile = None,
    strict: Strict = False,
) -> None:
    """Write what another tool's configuration says as a recipe, and list what it could not say. Overwrites nothing."""
    from posttrain.cli.outputs import check_out
    from posttrain.converting import convert as converted_from
    from posttrain.errors import ConfigError

    target = Path(f"{file.stem}.recipe.yaml") if out is None else out
    if target.exists():
        raise ConfigError("this file is there already", where=target, remedy="name another: `--out FILE`")
    check_out(target, "the recipe")
    converted = converted_from(file, tool=tool, method=method, processes=processes, out=target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # "x": a recipe that somebody else wrote since it was looked for stays as it is.
    with target.open("x", encoding="utf-8", newline="\n") as recipe:
        recipe.write(converted.text)
    _show(converted, file)
    echo(f"wrote {target}")
    echo(f"next: posttrain check {target}")
    if strict and converted.missed:
        raise typer.Exit(1)


def _show(converted: Converted, file: Path) -> None:
    """The same lists as at the head of the recipe, but for the keys that say nothing here."""
    from posttrain.converting.recipe_text import shown

    echo(
        f"{file}, a file of {converted.tool}: {len(converted.said)} keys said, {len(converted.idle)} say nothing here, "
        f"{len(converted.missed)} could not be said"
    )
    for entry in converted.missed:
        value = "" if entry.value is None else f": {shown(entry.value)}"
        echo(f"  {entry.key}{value}\n    why:    {entry.why}\n    remedy: {entry.remedy}")
    for sentence in converted.assumed:
        echo(f"  assumed: {sentence}")
