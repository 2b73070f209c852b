"""posttrain launch: a recipe on many machines, by Slurm or on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from posttrain.cli.boundary import guarded
from posttrain.cli.options import Fresh, Out, Overrides, Patience, RecipeName, Restarts
from posttrain.cli.run import read_recipe, with_out
from posttrain.cli.terminal import echo, echo_exact
from posttrain.cli.usage import Verb, Verbs

launch = typer.Typer(cls=Verbs, help="A recipe on many machines: by Slurm, or on a Ray cluster.", no_args_is_help=True)

Nodes = Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Machines.")]
PerNode = Annotated[
    int, typer.Option("--processes-per-node", metavar="N", min=1, help="Processes of each machine: one a GPU.")
]


def slurm(
    recipe: RecipeName,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    processes_per_node: PerNode = 1,
    submit: Annotated[bool, typer.Option("--submit", help="Hand the script to sbatch instead of printing it.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option of sbatch: --set partition=gpu --set time=24:00:00"),
    ] = None,
    restarts: Restarts = 0,
    patience: Patience = None,
    out: Out = None,
) -> None:
    """Write the script of a Slurm job that runs the recipe; print it, or submit it."""
    from posttrain.launching.slurm import SlurmJob, options_of, sbatch_script
    from posttrain.launching.slurm import submit as submit_script

    loaded = read_recipe(recipe, with_out(overrides or [], out))
    logs = loaded.folder.absolute() / "logs"
    job = SlurmJob(
        arguments=tuple(run_arguments(recipe, overrides, out, patience)),
        name=loaded.name,
        nodes=nodes,
        processes_per_node=processes_per_node,
        folder=Path.cwd(),
        log=f"{logs}/slurm-%j.log" if submit else f"{loaded.name}-%j.log",
        restarts=restarts,
        options=options_of(settings or []),
    )
    script = sbatch_script(job)
    if submit:
        echo(submit_script(script, logs / "job.sbatch"))
    else:
        echo_exact(script.rstrip("\n"))


def ray(
    recipe: RecipeName,
    overrides: Overrides = None,
    nodes: Nodes = 1,
    processes_per_node: PerNode = 1,
    cpus: Annotated[int, typer.Option("--cpus-per-process", metavar="N", min=1, help="Cores of each process.")] = 1,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus-per-process", metavar="N", min=0, help="0 or 1; by default 1 where there are enough."),
    ] = None,
    address: Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="Of the cluster.")] = "auto",
    restarts: Restarts = 0,
    patience: Patience = None,
    out: Out = None,
    fresh: Fresh = False,
) -> None:
    """Run the recipe on an existing Ray cluster, whose machines share the folders that it names."""
    from posttrain.launching.ray_cluster import RayLaunch, launch_on_ray

    read_recipe(recipe, with_out(overrides or [], out))  # a mistake is shown before anything is started
    arguments = run_arguments(recipe, overrides, out, patience, fresh=fresh)
    wanted = RayLaunch(nodes, processes_per_node, cpus, gpus, restarts, address)
    if code := launch_on_ray(arguments, wanted, lambda text: echo(text, err=True)):
        raise typer.Exit(code)


def run_arguments(
    recipe: str, overrides: list[str] | None, out: Path | None, patience: float | None, *, fresh: bool = False
) -> list[str]:
    """What each process is told: run_arguments("mine.yaml", ["seed=3"], None, None) -> ["run", "--", "mine.yaml",
    "seed=3"]."""
    told = ["--out", str(out)] if out is not None else []
    told += ["--patience", str(patience)] if patience is not None else []
    told += ["--fresh"] if fresh else []
    return ["run", *told, "--", recipe, *(overrides or [])]


launch.command("slurm", cls=Verb)(guarded(slurm))
launch.command("ray", cls=Verb)(guarded(ray))
