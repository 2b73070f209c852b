"""What the suites ask of each model of a run, and the tables that come of it: summary, cross scores, pass@k changes.

Answers that are there already, from the same model and the same questions, stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config import Recipe
from posttrain.config.budget import BudgetSuite
from posttrain.config.merged import parents_of_merges
from posttrain.config.nested import scorers_of, with_scorers
from posttrain.config.strategies.base import RewardModelScorer
from posttrain.config.suites import PassAtKSuite, RewardModelOf, SuiteSettings, WinRateSuite
from posttrain.config.twins import twin_pairs
from posttrain.evaluate.cross_scoring import cross_scores_of_run, write_cross_scores
from posttrain.evaluate.merging.kept import skills_of_run, write_skills
from posttrain.evaluate.paired_changes import changes_of_run, write_paired
from posttrain.evaluate.pass_at_k_change import changes_of_run as pass_at_k_changes_of_run
from posttrain.evaluate.pass_at_k_change import write_changes
from posttrain.evaluate.rating_runs import ratings_of_run, write_ratings
from posttrain.evaluate.runner import evaluate_model
from posttrain.evaluate.twins import write_twins
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.read import HELD_OUT
from posttrain.runs.records.evaluation import SuiteScores
from posttrain.runs.records.reward import RewardEvaluation, StepEvaluation
from posttrain.runs.records.run import Summary
from posttrain.training.checks.memory import EVALUATION_REMEDY, explain_out_of_memory
from posttrain.training.order import stream_seed
from posttrain.training.stages.speech import AnswerSettings


@dataclass(frozen=True, slots=True)
class RunSuites:
    """What every model of a run is asked: RunSuites(run, recipe.evaluate.suites, seed=0)."""

    run: RunFolder
    suites: tuple[SuiteSettings, ...]
    seed: int
    """The run's."""

    def ask(
        self, folder: StageFolder, model: Any, answers: AnswerSettings, progress: Progress, *, tokenizer: Any = None
    ) -> None:
        """Ask the suites; answers that are there already, from the same model and the same questions, stay."""
        if not self.suites:
            return
        doing = progress.doing(f"{folder.name}: evaluation")
        with explain_out_of_memory(None, "the evaluation", EVALUATION_REMEDY), doing:
            evaluate_model(
                model,
                self._askable(folder, progress),
                folder,
                # Every stage is asked the same questions with the same draws as the start, or a difference says
                # nothing.
                baseline=self.run.start.path,
                seed=stream_seed(self.seed, "evaluation"),
                progress=progress,
                tokenizer=tokenizer,
                encoding=answers.encoding,
                device=answers.device,
            )

    def _askable(self, folder: StageFolder, progress: Progress) -> list[SuiteSettings]:
        """The suites with their judges' models. One whose scorer is yet to be trained is asked when it is: its answers
        are chosen by the scorer while they are drawn, so that there is nothing to ask before."""
        suites = []
        for suite in self.suites:
            if isinstance(suite, BudgetSuite) and suite.models and folder.name not in suite.models:
                continue
            resolved = _with_judge(suite, self.run)
            waits = [scorer.stage for _, scorer in scorers_of(resolved) if scorer.stage is not None]
            if isinstance(resolved, BudgetSuite) and waits:
                progress.say(f"{folder.name}: the suite `{suite.name}` is asked when `{waits[0]}` is trained")
            else:
                suites.append(resolved)
        return suites


def evaluate_start(run: RunFolder, recipe: Recipe, answers: AnswerSettings, progress: Progress) -> None:
    if not recipe.evaluate.suites:
        return
    evaluate_stage(run.start, recipe, recipe.model, answers, progress)
    summarise(run, recipe)


def judge_earlier(
    judge: str,
    asked: Sequence[tuple[StageFolder, str | Path, AnswerSettings]],
    run: RunFolder,
    recipe: Recipe,
    progress: Progress,
) -> None:
    """What models are asked that were there before the reward model was trained that judges them."""
    if all(judge not in _judges_of(suite) for suite in recipe.evaluate.suites):
        return
    # Only win rates and budgets are new: answers and other suites stay, see `evaluate_stage`.
    for folder, model, answers in asked:
        evaluate_stage(folder, recipe, model, answers, progress)
    summarise(run, recipe)


def write_run_cross_scores(run: RunFolder, suites: Sequence[SuiteSettings]) -> None:
    """What the win rates' reward models gave every policy, side by side; and ratings of all policies by each suite."""
    judges = {
        suite.name: suite.reward_model.stage or Path(str(suite.reward_model.path)).name
        for suite in suites
        if isinstance(suite, WinRateSuite) and suite.reward_model is not None
    }
    folders = {folder.name: folder.path for folder in [run.start, *run.stages()]}
    record = cross_scores_of_run(folders, judges)
    if record is not None:
        write_cross_scores(run.path, record)
    rated = ratings_of_run(folders, [suite for suite in suites if isinstance(suite, WinRateSuite)])
    if rated is not None:
        write_ratings(run.path, rated)


def _judges_of(suite: SuiteSettings) -> set[str | None]:
    """The stages that train what judges in a suite."""
    if isinstance(suite, WinRateSuite):
        return set() if suite.reward_model is None else {suite.reward_model.stage}
    return {scorer.stage for _, scorer in scorers_of(suite)}


def with_trained(scorer: RewardModelScorer, run: RunFolder) -> RewardModelScorer:
    """A scorer with `stage: NAME` resolved to that stage's model, once it is trained; until then as it is."""
    if scorer.stage is None or (model := _trained(scorer.stage, run)) is None:
        return scorer
    return scorer.model_copy(update={"model": str(model), "stage": None})


def _trained(stage: str, run: RunFolder) -> Path | None:
    folder = run.stage(stage)
    is_there = folder.exists and folder.stage().status == "done" and folder.model.is_dir()
    return folder.model if is_there else None


def _with_judge(suite: SuiteSettings, run: RunFolder) -> SuiteSettings:
    """A suite with `reward_model: {stage: NAME}` resolved to that stage's model, once it is trained; and so its
    scorers."""
    if isinstance(suite, BudgetSuite):
        return with_scorers(suite, lambda scorer: with_trained(scorer, run))
    if not isinstance(suite, WinRateSuite) or suite.reward_model is None or suite.reward_model.stage is None:
        return suite
    judge = _trained(suite.reward_model.stage, run)
    # Until then the suite says itself that its judge is yet to be trained.
    return suite if judge is None else suite.model_copy(update={"reward_model": RewardModelOf(path=str(judge))})


def evaluate_stage(
    folder: StageFolder,
    recipe: Recipe,
    model: Any,
    answers: AnswerSettings,
    progress: Progress,
    *,
    tokenizer: Any = None,
) -> None:
    """Of a recipe; see `RunSuites.ask`."""
    asked = RunSuites(RunFolder(recipe.folder), recipe.evaluate.suites, recipe.seed)
    asked.ask(folder, model, answers, progress, tokenizer=tokenizer)


def summarise(run: RunFolder, recipe: Recipe) -> None:
    """Of a recipe; see `write_summary`. And twins.json, where a stage trains on a selection's random twin; merges.json,
    where models are merged: what each merge kept."""
    write_summary(run, [stage.name for stage in recipe.stages], recipe.evaluate.suites)
    write_twins(run, twin_pairs(recipe.stages))
    if merges := parents_of_merges(recipe.stages):
        folders = {folder.name: folder.path for folder in [run.start, *run.stages()]}
        write_skills(run.path, skills_of_run(folders, merges))


def write_summary(run: RunFolder, stage_names: Sequence[str], asked: Sequence[SuiteSettings]) -> None:
    """summary.json: {stage: {suite.metric: value}}, the start first; a reward model has its held-out figures, a stage
    that samples its held-out score at the start, at its best, at the end, and of the weights that it kept. Earlier
    results of the stages (`dpo.1`) stand last.

    And pass_at_k.json, where a suite asks for it: what each stage did to the reach of the policy before it.
    """
    stages = [run.start, *(run.stage(name) for name in stage_names)]
    table = {folder.name: figures for folder in [*stages, *run.earlier()] if (figures := _figures(folder))}
    run.write(Summary(table))
    if asked:
        write_paired(run.path, changes_of_run(stages))
    suites = [suite.name for suite in asked if isinstance(suite, PassAtKSuite)]
    if suites:
        write_changes(run.path, pass_at_k_changes_of_run({folder.name: folder.path for folder in stages}, suites))


def _figures(folder: StageFolder) -> dict[str, float | None]:
    """A stage's rows of summary.json; {} where nothing was measured."""
    evaluation = folder.document(SuiteScores)
    reward = folder.document(RewardEvaluation) or folder.document(StepEvaluation)
    examined = folder.stage().held_out_score if folder.exists else None
    figures: dict[str, float | None] = {}
    for suite, metrics in evaluation.suites.items() if evaluation else ():
        figures |= {f"{suite}.{metric}": figure.value for metric, figure in metrics.items()}
    for head, scored in (("untrained", reward.untrained), ("trained", reward.trained)) if reward else ():
        figures |= {f"{head}.{metric}": figure.value for metric, figure in (scored or {}).items()}
    if examined is not None:
        moments = {"start": examined.start, "best": examined.best, "last": examined.last, "kept": examined.kept}
        figures |= {f"{HELD_OUT}.{moment}": score.value for moment, score in moments.items()}
    return figures
