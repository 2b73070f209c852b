"""posttrain eval: what a model can do, by tasks of lm-eval and by suites, without any training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posttrain.cli import options
from posttrain.errors import ConfigError

if TYPE_CHECKING:
    from posttrain.config.suites import SuiteSettings


def evaluate(
    model: options.ModelName,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", metavar="NAMES", help="Tasks of lm-eval, with commas: names, files ./my.yaml, folders ./mine."
        ),
    ] = None,
    suites: Annotated[
        str | None, typer.Option("--suites", metavar="RECIPE", help="Ask the suites of this recipe.")
    ] = None,
    retention: Annotated[
        bool, typer.Option("--retention", help="Ask the suite of kind retention: what did training cost?")
    ] = False,
    against: Annotated[
        str | None, typer.Option("--against", metavar="MODEL", help="Compare with this model on the same items.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Ask only so many documents of each task, or rows of a part.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="Examples before each question of a task.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask tasks through the model's chat template.")
    ] = False,
    system: options.System = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the results (default: evals/MODEL).")
    ] = None,
    template: options.Template = "auto",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    model_code: options.ModelCode = "refuse",
) -> None:
    """Measure a model: tasks of lm-eval by their names or from files, the suites of a recipe, what training cost.

    Prints one table with 95 % intervals; with --against also the paired differences on the same items.
    """
    from posttrain.models import require_known

    for name, where in ((model, "MODEL"), *([(against, "--against")] if against else [])):
        require_known(name, where=where)
    asked = _asked(tasks, suites, retention, limit, num_fewshot, apply_chat_template, system)

    # After the recipe: a mistake in it is shown without a wait for what only an evaluation needs.
    from posttrain.cli.progress import progress_on
    from posttrain.cli.tables import final_table, paired_lines, shares_of
    from posttrain.cli.terminal import terminal
    from posttrain.report import write_report
    from posttrain.training.evaluating import evaluate_alone, label_of

    console = terminal()
    with progress_on(console) as progress:
        found = evaluate_alone(
            model,
            asked,
            out or Path("evals") / label_of(model),
            against=against,
            template=template,
            seed=seed,
            device=device,
            model_code=model_code,
            progress=progress,
        )
    console.print(final_table(found.run.evaluations(), found.titles, shares_of(found.run)))
    for said in paired_lines(found.run.paired_changes()):
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    console.print(f"results {found.run.path}", soft_wrap=True, highlight=False)
    console.print(f"report  {write_report(found.run.path)}", soft_wrap=True, highlight=False)


def _asked(
    tasks: str | None,
    suites: str | None,
    retention: bool,
    limit: int | None,
    num_fewshot: int | None,
    apply_chat_template: bool,
    system: str | None,
) -> list[SuiteSettings]:
    """The suites that the options name.

    Raises:
        ConfigError: none, or options of tasks without any task.
    """
    from posttrain.cli.run import read_recipe
    from posttrain.cli.unused import note_unused
    from posttrain.config.text_suites import LmEvalSuite, RetentionSuite

    found: list[SuiteSettings] = [*read_recipe(suites, []).evaluate.suites] if suites is not None else []
    if tasks is not None:
        found.append(
            LmEvalSuite(
                name="tasks",
                kind="lm_eval",
                tasks=tasks,  # type: ignore[arg-type]
                limit=limit,
                num_fewshot=num_fewshot,
                apply_chat_template=apply_chat_template,
                system_instruction=system,
            )
        )
    else:
        why = "no task of lm-eval is asked (`--tasks`)"
        note_unused(why, num_fewshot=num_fewshot is not None, system=system is not None)
        note_unused(why, apply_chat_template=apply_chat_template)
    if retention:
        found.append(RetentionSuite(name="retention", kind="retention", limit=limit))
    if limit is not None and tasks is None and not retention:
        note_unused("the suites of a recipe have a `limit` of their own", limit=True)
    if not found:
        raise ConfigError(
            "nothing is asked", remedy="give `--tasks gsm8k,./my_tasks`, `--suites recipe.yaml` or `--retention`"
        )
    return found
