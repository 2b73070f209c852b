"""posttrain solve: a recipe's budget suites, asked of one model; nothing is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from posttrain.cli.options import Out, Overrides, RecipeName
from posttrain.cli.run import read_recipe, with_out

Other = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Ask this model, not the recipe's start.")]
Stage = Annotated[
    str | None, typer.Option("--stage", metavar="NAME", help="Ask the model that this stage of the recipe has trained.")
]


def solve(
    recipe: RecipeName, overrides: Overrides = None, model: Other = None, stage: Stage = None, out: Out = None
) -> None:
    """Measure strategies of test-time compute against the tokens that they spend: the recipe's suites of kind budget.

    Figures and report go into a folder beside the run's, RUN.solve-start or RUN.solve-STAGE.
    """
    loaded = read_recipe(recipe, with_out(overrides or [], out))
    if model is not None:
        from posttrain.models import require_known

        require_known(model, where="--model")

    # After the recipe: a mistake in it is shown without a wait for what only an evaluation needs.
    from posttrain.cli.progress import progress_on
    from posttrain.cli.tables import final_table, shares_of
    from posttrain.cli.terminal import terminal
    from posttrain.report import write_report
    from posttrain.training.budgets import findings_of, solve_recipe

    console = terminal()
    with progress_on(console) as progress:
        run = solve_recipe(loaded, model=model, stage=stage, progress=progress)
    console.print(final_table(run.evaluations(), shares=shares_of(run)))
    for said in findings_of(run, [suite.name for suite in loaded.evaluate.suites]):
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    console.print(f"report  {write_report(run.path)}", soft_wrap=True, highlight=False)
