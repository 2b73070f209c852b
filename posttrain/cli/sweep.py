"""posttrain sweep: many runs of one recipe, shared stages once, one table."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from posttrain.cli.options import Out, RecipeName

Varied = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUES",
        help="What varies: 'dpo.beta=[0.05,0.1]', seed=0..4, 'dpo.learning_rate=1e-5..1e-3 log'; KEY=VALUE sets it in "
        "every run.",
    ),
]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="FIGURE", help="Choose the best by this figure: SUITE.METRIC, STAGE:SUITE.METRIC."),
]
Better = Annotated[
    Literal["higher", "lower"] | None,
    typer.Option("--better", help="Which way is better (default: as the suite says)."),
]
Design = Annotated[
    Literal["grid", "random", "optuna"],
    typer.Option("--design", help="Every combination, draws, or what Optuna chooses."),
]
Trials = Annotated[int | None, typer.Option("--trials", metavar="N", help="Settings to draw or to choose.")]
DesignSeed = Annotated[int, typer.Option("--design-seed", metavar="N", help="Equal seeds draw equal settings.")]
EarlyStop = Annotated[
    bool, typer.Option("--early-stop", help="Pause runs at rungs, and go on with the best there (ASHA); needs --by.")
]
Rungs = Annotated[
    int, typer.Option("--rungs", metavar="N", help="Places at which runs are compared, the end included.")
]
Keep = Annotated[int, typer.Option("--keep", metavar="N", help="One in N goes on from a rung.")]
Jobs = Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Runs at a time, each a process.")]
RestartFailed = Annotated[bool, typer.Option("--restart-failed", help="Run those again that failed.")]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Show the runs and what they share, and run nothing.")]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of the sweep's folder (RECIPE-sweep).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the table as one JSON object.")]


def sweep(
    recipe: RecipeName,
    varied: Varied = None,
    by: By = None,
    better: Better = None,
    design: Design = "grid",
    trials: Trials = None,
    design_seed: DesignSeed = 0,
    early_stop: EarlyStop = False,
    rungs: Rungs = 3,
    keep: Keep = 3,
    jobs: Jobs = 1,
    restart_failed: RestartFailed = False,
    plan: PlanOnly = False,
    name: Name = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe with every setting and seed of a design, and show one table.

    The same command goes on with what is not done. Stages that are the same in several runs are trained once. A run
    that fails is in the table with its error, and the exit code is 1.
    """
    from posttrain.cli.unused import refuse_unused
    from posttrain.config.find import find_recipe

    path = find_recipe(recipe)  # before torch is loaded
    if not early_stop:
        refuse_unused("runs go to their end", "add `--early-stop`", rungs=rungs != 3, keep=keep != 3)
    from posttrain.cli.run import read_recipe
    from posttrain.sweeps.axes import read_axes

    _, fixed = read_axes(varied or [])
    read_recipe(recipe, fixed)
    from posttrain.cli.sweeping import execute, show_plan
    from posttrain.sweeps.spec import SweepSpec
    from posttrain.sweeps.sweep import Asked

    halving = (rungs, keep) if early_stop else None
    asked = Asked(design, by, better, trials, design_seed, halving, jobs, restart_failed)
    spec = SweepSpec.of(path, varied or [], name=name, out=out)
    if plan:
        show_plan(spec, asked)
    elif execute(spec, asked, as_json=as_json):
        raise typer.Exit(1)
