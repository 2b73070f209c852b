"""posttrain check: the preflight alone."""

from __future__ import annotations

import typer

from posttrain.cli.options import Out, Overrides, RecipeName
from posttrain.cli.run import require_models, with_out


def check(recipe: RecipeName, overrides: Overrides = None, out: Out = None) -> None:
    """Prove what a recipe needs, before anything is trained: its rows, its masks, its identities, its memory.

    Exits with 1 if a check fails.
    """
    from rich.console import Console

    from posttrain.cli.progress import progress_on
    from posttrain.cli.proof import show_preflight
    from posttrain.config import find_recipe, load_recipe

    loaded = load_recipe(find_recipe(recipe), with_out(overrides or [], out))
    require_models(loaded)

    from posttrain.training.pipeline import check_recipe  # after the recipe: a mistake in it is shown without a wait

    console = Console()
    with progress_on(console) as progress:
        for note in loaded.notes:
            progress.say(note)
        proven = check_recipe(loaded, progress=progress)
    for stage, preflight in proven.items():
        show_preflight(console, stage, preflight)
    if any(preflight.failed for preflight in proven.values()):
        raise typer.Exit(1)
