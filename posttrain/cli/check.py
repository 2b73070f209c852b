"""posttrain check: the preflight alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from posttrain.cli.options import Out, Overrides, RecipeName
from posttrain.cli.run import read_recipe, with_out

if TYPE_CHECKING:
    from posttrain.runs.records.preflight import DecodedRow

Explain = Annotated[bool, typer.Option("--explain", help="Say of each line what it proves and why it matters.")]


def check(recipe: RecipeName, overrides: Overrides = None, out: Out = None, explain: Explain = False) -> None:
    """Prove what a recipe needs, before anything is trained: its rows, its masks, its identities, its memory.

    Exits with 1 if a check fails.
    """
    loaded = read_recipe(recipe, with_out(overrides or [], out))

    # After the recipe: a mistake in it is shown without a wait for what only a check needs.
    from posttrain.cli.progress import progress_on
    from posttrain.cli.proof import show_first, show_preflight
    from posttrain.cli.terminal import terminal
    from posttrain.training.pipeline import check_recipe

    console = terminal()
    shown: set[str] = set()

    def show(stage: str, rows: Sequence[DecodedRow]) -> None:
        shown.add(stage)
        show_first(console, stage, rows)

    with progress_on(console) as progress:
        for note in loaded.notes:
            progress.say(note)
        proven = check_recipe(loaded, progress=progress, show_first=show)
    for stage, preflight in proven.items():
        show_preflight(console, stage, preflight, explain=explain, rows=stage not in shown)
    if any(preflight.failed for preflight in proven.values()):
        raise typer.Exit(1)
