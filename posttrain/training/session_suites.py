"""`train(..., evaluate=[...])`: a recipe's suites, asked of the start before the stage trains and of its model after.

    suites = suites_of([{"name": "tone", "kind": "function", "prompts": "heldout.jsonl", "function": polite}])
    asked = RunSuites(run, suites, seed)
    ask_start(asked, ctx, answers)

The run folder then holds what a recipe's does: `start/`, evaluations, summary.json, the table of the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.arguments import wrong_argument
from posttrain.config import Evaluation, TrainingStage
from posttrain.config.budget import BudgetSuite
from posttrain.config.suites import SuiteSettings
from posttrain.errors import ConfigError
from posttrain.evaluate.suites import load_suite
from posttrain.evaluate.suites.budget import require_scorers
from posttrain.models.folders.loading import LoadedModel
from posttrain.runs.records.evaluation import SuiteScores
from posttrain.training.evaluation import RunSuites, write_run_cross_scores, write_summary
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.speech import AnswerSettings

EXAMPLE = 'evaluate=[{"name": "tone", "kind": "function", "prompts": "heldout.jsonl", "function": polite}]'


def suites_of(evaluate: Any, stage: TrainingStage) -> tuple[SuiteSettings, ...]:
    """Suites in the forms that a recipe and a program have: entries `{name, kind, prompts, ...}` and their records; one
    may stand for a list of one.

    Raises:
        ConfigError: it is no list of these, two have one name, or the stage makes no policy that could answer.
        DataError: a file of prompts cannot be read.
    """
    if isinstance(evaluate, SuiteSettings | Mapping):
        evaluate = (evaluate,)
    if isinstance(evaluate, str | bytes) or not isinstance(evaluate, Sequence):
        raise _no_suites(evaluate)
    for suite in evaluate:
        if not isinstance(suite, SuiteSettings | Mapping):
            raise _no_suites(suite)
    if evaluate and stage.OUTPUTS != "policy":
        raise ConfigError(
            f"suites are given, and {stage.method} makes no policy that could answer them",
            found=f"{len(evaluate)} suite{'s' if len(evaluate) != 1 else ''}",
            remedy="leave `evaluate` out: a reward model is measured on its held-out pairs",
        )
    entries: Any = [dict(suite) if isinstance(suite, Mapping) else suite for suite in evaluate]
    suites = Evaluation(suites=entries).suites
    # Now, so that a function or a file that is not there is refused before a model is loaded.
    for suite in suites:
        load_suite(suite)
        if isinstance(suite, BudgetSuite):
            require_scorers(suite)
    return suites


def _no_suites(found: Any) -> ConfigError:
    # A function alone says how to judge, and not what to ask.
    alone = callable(found) and not isinstance(found, type)
    return wrong_argument(
        "evaluate",
        found,
        expected="a list of suites, as records or as a recipe has them (docs/evaluation.md)",
        remedy=f"say what is asked: `{EXAMPLE}`" if alone else f"write `{EXAMPLE}`",
    )


def ask_start(asked: RunSuites, ctx: StageContext[TrainingStage], answers: AnswerSettings) -> None:
    """Ask the model from which the first stage of the folder began; a later stage is compared with the same answers.

    Raises:
        ConfigError: the first stage began without a suite that is asked now.
    """
    run = asked.run
    first = next((entry.name for entry in run.run().stages), ctx.stage.name)
    if first == ctx.stage.name:
        start, tokenizer = (
            (ctx.start.model, ctx.start.tokenizer) if isinstance(ctx.start, LoadedModel) else (ctx.start, None)
        )
        asked.ask(run.start, start, answers, ctx.progress, tokenizer=tokenizer)
        return
    scores = run.start.document(SuiteScores)
    known = scores.suites if scores is not None else {}
    if missing := [suite.name for suite in asked.suites if suite.name not in known]:
        # This stage's own start is not the run's: its answers would stand in a column that says `start`.
        raise ConfigError(
            f"the start of this run was not asked `{missing[0]}`",
            where=run.path,
            found=f"the folder's first stage, `{first}`, was asked {', '.join(known) or 'nothing'}",
            expected="suites that the start of the folder's first stage has answered",
            remedy=f"give `{first}` the same `evaluate`, or give this stage a folder of its own (`out=...`)",
        )


def write_tables(asked: RunSuites) -> None:
    """summary.json and cross_scores.json of all stages that the folder holds."""
    write_summary(asked.run, [entry.name for entry in asked.run.run().stages], asked.suites)
    write_run_cross_scores(asked.run, asked.suites)
