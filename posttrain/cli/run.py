"""posttrain run: a recipe from its first unfinished stage to its report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from posttrain.cli.options import Fresh, Out, Overrides, Patience, Processes, RecipeName, Restarts
from posttrain.cli.terminal import echo, terminal
from posttrain.errors import ConfigError
from posttrain.parallel.job import Job, job_of

if TYPE_CHECKING:
    from posttrain.config import Recipe
    from posttrain.runs.folder import RunFolder
    from posttrain.runs.progress import Progress


def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    fresh: Fresh = False,
    processes: Processes = None,
    restarts: Restarts = 0,
    patience: Patience = None,
) -> None:
    """Run a recipe: train, evaluate and report.

    Finished stages are not run again unless their inputs changed; an interrupted one goes on from its last checkpoint.
    With `--processes`, or under torchrun, several processes share the work; the numbers do not depend on how many.
    """
    job = job_of(os.environ)
    if processes is None and restarts:
        raise ConfigError("`--restarts` needs `--processes`", remedy="write `--processes 1`, or more")
    if processes is None or (job is not None and job.launcher != "torchrun"):
        execute(recipe, overrides or [], out, fresh, patience)
        return
    if job is not None:
        raise ConfigError(
            "torchrun has started this process, and `--processes` would start more inside of it",
            found=f"--processes {processes}, as rank {job.rank} of {job.size}",
            remedy="leave out `--processes`; torchrun has `--nproc-per-node`",
        )
    # What the processes are told: a mistake in the recipe is shown once, here.
    folder = read_recipe(recipe, with_out(overrides or [], out)).folder
    from posttrain.launching.local import Launch, launch, worker_command

    told = [
        "--processes",
        str(processes),
        "--restarts",
        str(restarts),
        *(["--out", str(out)] if out is not None else []),
    ]
    told += ["--fresh"] if fresh else []
    told += ["--patience", str(patience)] if patience is not None else []
    command = worker_command(["run", *told, "--", recipe, *(overrides or [])])
    if code := launch(command, Launch(processes, restarts, folder / "logs"), lambda text: echo(text, err=True)):
        raise typer.Exit(code)


def execute(recipe: str, overrides: list[str], out: Path | None, fresh: bool, patience: float | None = None) -> None:
    """The recipe, by this process alone or as one rank of a job."""
    job = job_of(os.environ)
    with _recipe_of(job, recipe, with_out(overrides, out), patience) as (loaded, follow):
        # After the recipe: a mistake in it is shown without a wait for what only a run needs.
        from posttrain.cli.progress import progress_on
        from posttrain.runs.folder import RunFolder
        from posttrain.training.interrupts import Stopped
        from posttrain.training.loop import Interrupted
        from posttrain.training.pipeline import run_recipe

        console = terminal()
        with progress_on(console) as progress:
            follow(progress)
            try:
                # A job that is started again goes on; only its first start begins anew.
                result = run_recipe(loaded, fresh=fresh and (job is None or not job.attempt), progress=progress)
            except Interrupted as stop:
                raise Stopped(stop.number, stop.problem) from stop
        if job is None or job.is_main:
            show_result(RunFolder(result.folder), result.report)


@contextmanager
def _recipe_of(
    job: Job | None, recipe: str, overrides: list[str], patience: float | None
) -> Iterator[tuple[Recipe, Callable[[Progress], None]]]:
    """The recipe, and what is to be told of the progress."""
    if job is None:
        yield read_recipe(recipe, overrides), lambda progress: None
        return
    from posttrain.launching.worker import rank_of_job
    from posttrain.parallel.watch import PATIENCE

    patience = PATIENCE if patience is None else patience
    with rank_of_job(lambda: read_recipe(recipe, overrides), patience=patience) as (loaded, here):
        yield loaded, here.follow


def show_result(folder: RunFolder, report: Path) -> None:
    """What a run came to: its tables, what it has to say, and where everything is."""
    from rich.text import Text

    from posttrain.cli.tables import (
        final_table,
        held_out_table,
        paired_lines,
        reward_table,
        shares_of,
        step_table,
        verdict_lines,
    )
    from posttrain.report import verdict_of

    console = terminal()
    if evaluations := folder.evaluations():
        console.print(final_table(evaluations, shares=shares_of(folder)))
    for said in paired_lines(folder.paired_changes()):
        console.print(said, markup=False, highlight=False, soft_wrap=True)
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
    console.print(verdict_lines(verdict_of(folder.path)), soft_wrap=True)
    console.print(f"run     {folder.path}", soft_wrap=True, highlight=False)
    console.print(f"report  {report}", soft_wrap=True, highlight=False)


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
