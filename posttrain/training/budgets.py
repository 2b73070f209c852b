"""A recipe's budget suites, asked of one model without training: `posttrain solve`.

    run = solve_recipe(load_recipe("mine.yaml"), stage="sft")
    run.path                                  # runs/mine.solve-sft: figures, curves, trees

The results have a folder of their own beside the run's, so that nothing that the run measured is written over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.config import Recipe
from posttrain.config.budget import BudgetSuite
from posttrain.config.nested import scorers_of, with_scorers
from posttrain.data.templates.clock import today
from posttrain.errors import ConfigError, unknown
from posttrain.evaluate.runner import evaluate_model
from posttrain.models.folders.loading import resolve
from posttrain.models.folders.own_code import folder_code
from posttrain.models.folders.spoken import speech_of
from posttrain.models.reward.folders import require_policy
from posttrain.runs.folder import RunFolder
from posttrain.runs.read import read_run
from posttrain.runs.showing import Shown, showing
from posttrain.training.evaluation import with_trained, write_summary
from posttrain.training.interrupts import ending_signals
from posttrain.training.loop import how_it_ended
from posttrain.training.order import stream_seed
from posttrain.training.provenance import now
from posttrain.training.run_record import begin_run
from posttrain.training.stages.speech import AnswerSettings, answer_settings, first_trained


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who is asked, and how: _Asked("runs/mine/sft/model", "sft", AnswerSettings(...))."""

    model: str | Path
    label: str
    """What the folder of the results is called by."""
    answers: AnswerSettings


def solve_recipe(
    recipe: Recipe, *, model: str | None = None, stage: str | None = None, progress: Shown = None
) -> RunFolder:
    """Ask a model the recipe's suites of kind budget; nothing is trained. `write_report(run.path)` makes the page.

    Args:
        model: another model than the recipe's start.
        stage: the model that this stage of the recipe has trained.

    Raises:
        ConfigError: the recipe has no such suite, `model` and `stage` are both given, or a stage that is needed is not
            trained yet.
        ModelError: a model that cannot be loaded, or a reward model where one that answers is needed.
        PosttrainError: what a suite raises.
    """
    suites = [suite for suite in recipe.evaluate.suites if isinstance(suite, BudgetSuite)]
    if not suites:
        raise ConfigError(
            "the recipe has no suite that measures strategies",
            where=recipe.name,
            found=", ".join(f"{suite.name} ({suite.kind})" for suite in recipe.evaluate.suites) or "no suite",
            expected="a suite of `kind: budget` (docs/evaluation.md)",
            example="{name: spent, kind: budget, prompts: heldout.jsonl, scorers: {logprob: logprob}}",
            remedy="add one to `evaluate.suites`",
        )
    trained = RunFolder(recipe.folder)
    asked = _asked(recipe, trained, model, stage)
    suites = [_with_trained(suite, trained, recipe) for suite in suites]
    run = RunFolder(recipe.folder.with_name(f"{recipe.folder.name}.solve-{asked.label}"))
    with showing(progress, in_logs=True) as shown, folder_code(recipe.model_code):
        require_policy(resolve(asked.model, say=shown.say))
        with ending_signals(), run.locked(shown.say):
            begin_run(run, run.path.name, ())
            run.write_recipe(recipe.to_yaml())
            try:
                evaluate_model(
                    asked.model,
                    suites,
                    run.start,
                    baseline=run.start.path,
                    seed=stream_seed(recipe.seed, "evaluation"),
                    progress=shown,
                    encoding=asked.answers.encoding,
                    device=asked.answers.device,
                )
            except BaseException as error:
                run.write_run(status=how_it_ended(error))
                raise
            write_summary(run, [], suites)
            run.write_run(status="done", ended=now())
    return run


def _asked(recipe: Recipe, trained: RunFolder, model: str | None, stage: str | None) -> _Asked:
    if model is not None and stage is not None:
        raise ConfigError(
            "two models are given", found=f"model {model} and stage {stage}", remedy="give the model or the stage"
        )
    if stage is not None:
        names = [one.name for one in recipe.stages if one.OUTPUTS == "policy"]
        if stage not in names:
            raise unknown("stage that trains a policy", stage, names)
        folder = trained.stage(stage)
        _require_trained(trained, stage, recipe, "is to be asked")
        return _Asked(folder.model, stage, _as_trained(folder.model))
    if model is not None:
        return _Asked(model, Path(model).name, _as_trained(model))
    # As the run asks its start: in the words of the first stage, which is trained from it.
    first = first_trained(recipe.stages)
    date = str(trained.run().date) if trained.exists else today()
    return _Asked(recipe.model, "start", answer_settings(first, recipe.model, date))


def _as_trained(model: str | Path) -> AnswerSettings:
    return AnswerSettings(speech_of(resolve(model)).settings(), "auto")


def _with_trained(suite: BudgetSuite, trained: RunFolder, recipe: Recipe) -> BudgetSuite:
    for _, scorer in scorers_of(suite):
        if scorer.stage is not None:
            _require_trained(trained, scorer.stage, recipe, f"scores in `{suite.name}`")
    return with_scorers(suite, lambda scorer: with_trained(scorer, trained))


def _require_trained(trained: RunFolder, stage: str, recipe: Recipe, why: str) -> None:
    folder = trained.stage(stage)
    if folder.exists and folder.stage().status == "done" and folder.model.is_dir():
        return
    raise ConfigError(
        f"the stage `{stage}` {why}, and it is not trained yet",
        where=folder.path,
        found=f"status: {folder.stage().status}" if folder.exists else "no folder",
        expected="the model folder of a finished stage",
        remedy=f"run the recipe first: `posttrain run {recipe.name}`",
    )


def findings_of(run: RunFolder, suites: Sequence[str]) -> list[str]:
    """What the curves of a solved recipe say, a sentence each."""
    budgets = read_run(run.path).start.budgets
    return [f"{suite}: {found.said}" for suite in suites if suite in budgets for found in budgets[suite].findings]
