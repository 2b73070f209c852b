"""posttrain run: a recipe from its first unfinished stage to its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.cli.options import Fresh, Out, Overrides, RecipeName
from posttrain.errors import ConfigError

if TYPE_CHECKING:
    from posttrain.config import Recipe


def run(recipe: RecipeName, overrides: Overrides = None, out: Out = None, fresh: Fresh = False) -> None:
    """Run a recipe: train, evaluate and report.

    Finished stages are not run again unless their inputs changed; an interrupted one goes on from its last checkpoint.
    """
    execute(recipe, overrides or [], out, fresh)


def execute(recipe: str, overrides: list[str], out: Path | None, fresh: bool) -> None:
    loaded = read_recipe(recipe, with_out(overrides, out))

    # After the recipe: a mistake in it is shown without a wait for what only a run needs.
    from rich.text import Text

    from posttrain.cli.progress import progress_on
    from posttrain.cli.tables import final_table, held_out_table, reward_table, step_table, verdict_lines
    from posttrain.cli.terminal import terminal
    from posttrain.report import verdict_of
    from posttrain.runs.folder import RunFolder
    from posttrain.training.interrupts import Stopped
    from posttrain.training.loop import Interrupted
    from posttrain.training.pipeline import run_recipe

    console = terminal()
    with progress_on(console) as progress:
        try:
            result = run_recipe(loaded, fresh=fresh, progress=progress)
        except Interrupted as stop:
            raise Stopped(stop.number, stop.problem) from stop
    folder = RunFolder(result.folder)
    if evaluations := folder.evaluations():
        console.print(final_table(evaluations))
    if rewards := folder.reward_evaluations():
        console.print(reward_table(rewards))
    if steps := folder.step_evaluations():
        console.print(step_table(steps))
    if scores := folder.held_out_scores():
        console.print(held_out_table(scores))
    for change in folder.pass_at_k_changes():
        console.print(f"{change.suite}: {change.said}", markup=False, highlight=False)
    for skill in folder.merged_skills():
        console.print(skill.said, markup=False, highlight=False)
    for comparison in folder.twin_comparisons():
        for said in (comparison.said, *(figure.said for figure in comparison.figures)):
            console.print(said, markup=False, highlight=False, soft_wrap=True)
    for stage, warning in folder.warnings():
        console.print(Text(f"{stage}: {warning}", style="bold yellow"), soft_wrap=True)
    for kept in folder.earlier():
        replaced = kept.stage().replaced
        because = f" ({'; '.join(replaced.because)})" if replaced is not None else ""
        console.print(f"earlier {kept.path}{because}", soft_wrap=True, markup=False, highlight=False)
    console.print(verdict_lines(verdict_of(result.folder)), soft_wrap=True)
    console.print(f"run     {result.folder}", soft_wrap=True, highlight=False)
    console.print(f"report  {result.report}", soft_wrap=True, highlight=False)


def read_recipe(recipe: str, overrides: list[str]) -> Recipe:
    """A recipe by file or name, with its models' names checked.

    Raises:
        PosttrainError: there is no such recipe, or it has a mistake.
    """
    from posttrain.config.find import find_recipe

    path = find_recipe(recipe)  # before the records of a recipe are built
    from posttrain.config.load import load_recipe

    loaded = load_recipe(path, overrides)
    require_models(loaded)
    return loaded


def require_models(recipe: Recipe) -> None:
    """Refuse names that no model can have while nothing is loaded; what lies in the folders is seen later.

    Raises:
        ModelError: names the key.
    """
    from posttrain.config.paths import models_of
    from posttrain.models import require_known

    for key, name in models_of(recipe):
        require_known(name, where=f"`{key}`")


def with_out(overrides: list[str], out: Path | None) -> list[str]:
    """`--out DIR` is an override like any other; quoted, for a folder may be called 2024.

    Raises:
        ConfigError: both `--out` and `out=` say where.
    """
    twice = next((text for text in overrides if text.startswith("out=")), None)
    if out is not None and twice is not None:
        raise ConfigError("the folder is given twice", found=f"--out {out} and {twice}", remedy="write one of the two")
    return overrides if out is None else [*overrides, "out='" + str(out).replace("'", "''") + "'"]
