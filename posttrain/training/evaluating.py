"""A model asked suites without any training: `posttrain eval`.

    asked = evaluate_alone("runs/mine/sft/model", suites, Path("evals/mine"), against="smollm2-135m-instruct")
    asked.run.path                  # evals/mine: figures, samples, paired.json, report.html as of a run

The model that it is compared with stands where a run has its start, so that the same tables, paired tests and report
are made. Answers that are there already, from the same model and the same questions, stay.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from posttrain.config.nested import scorers_of
from posttrain.config.suites import SuiteSettings, WinRateSuite
from posttrain.config.text_suites import LmEvalSuite, TextPerplexitySuite
from posttrain.data.encoder_settings import EncoderSettings
from posttrain.errors import ConfigError
from posttrain.evaluate.runner import evaluate_model
from posttrain.models.folders.loading import resolve
from posttrain.models.folders.own_code import folder_code
from posttrain.models.folders.spoken import speech_of
from posttrain.models.reward.folders import require_policy
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.layout import model_label
from posttrain.runs.records.run import StageEntry
from posttrain.runs.showing import Shown, showing
from posttrain.training.evaluation import write_summary
from posttrain.training.interrupts import ending_signals
from posttrain.training.loop import how_it_ended
from posttrain.training.provenance import now
from posttrain.training.run_record import begin_run


@dataclass(frozen=True, slots=True)
class AskedAlone:
    """AskedAlone(RunFolder("evals/mine"), titles={"start": "smollm2-135m-instruct", "mine": "mine"})"""

    run: RunFolder
    titles: Mapping[str, str]
    """What the columns of its table are called."""


def evaluate_alone(
    model: str,
    suites: Sequence[SuiteSettings],
    out: Path,
    *,
    against: str | None = None,
    template: str = "auto",
    seed: int = 0,
    device: str = "auto",
    model_code: Literal["refuse", "run"] = "refuse",
    progress: Shown = None,
) -> AskedAlone:
    """Ask a model some suites, and another one before it where the two are to be compared.

    Args:
        out: the folder of the results, made as a run's.
        against: the model that it is compared with on the same items.
        template: how prompts become text; `auto` as each model was trained. Suites that ask without a template need
            none.

    Raises:
        ConfigError: no suite; a suite whose judge is a stage of a recipe.
        ModelError: a model that cannot be loaded, or a reward model where one that answers is needed.
        PosttrainError: what a suite raises.
    """
    _require_askable(suites)
    run = RunFolder(out)
    label = label_of(model)
    stage = run.stage(label if label != run.start.name else f"{label}-model")
    with showing(progress, in_logs=True) as shown, folder_code(model_code):
        for name in (model, *([against] if against else [])):
            require_policy(resolve(name, say=shown.say))
        with ending_signals(), run.locked(shown.say):
            begin_run(run, run.path.name, ())

            def ask(name: str, folder: StageFolder) -> None:
                evaluate_model(
                    name,
                    suites,
                    folder,
                    baseline=run.start.path,
                    seed=seed,
                    progress=shown,
                    encoding=_encoding(name, template, suites),
                    device=device,
                )

            try:
                ask(against or model, run.start)
                if against:
                    stage.write_stage(name=stage.name, method="eval", status="running")
                    run.write_run(stages=(StageEntry(stage.name, "eval", "running", 0.0),))
                    ask(model, stage)
                    stage.write_stage(status="done")
                    run.write_run(stages=(StageEntry(stage.name, "eval", "done", 0.0),))
            except BaseException as error:
                run.write_run(status=how_it_ended(error))
                raise
            write_summary(run, [stage.name] if against else [], suites)
            run.write_run(status="done", ended=now())
    titles = {"start": label_of(against), stage.name: label} if against else {"start": label}
    return AskedAlone(run, titles)


def label_of(model: str) -> str:
    """A model by a short name: a folder by its own, wherever the command runs."""
    return model_label(os.path.abspath(model) if Path(model).exists() else model)


def _encoding(model: str, template: str, suites: Sequence[SuiteSettings]) -> EncoderSettings:
    settings = speech_of(resolve(model)).settings()
    if template != "auto":
        return replace(settings, template=template, template_kwargs={})
    # A base model has no template, and most of the harness's tasks want none.
    return replace(settings, template="raw", template_kwargs={}) if all(map(_wants_none, suites)) else settings


def _wants_none(suite: SuiteSettings) -> bool:
    return isinstance(suite, TextPerplexitySuite) or (isinstance(suite, LmEvalSuite) and not suite.apply_chat_template)


def _require_askable(suites: Sequence[SuiteSettings]) -> None:
    if not suites:
        raise ConfigError(
            "nothing is asked", remedy="give `--tasks gsm8k,./my_tasks`, `--suites recipe.yaml` or `--retention`"
        )
    for suite in suites:
        stages = [scorer.stage for _, scorer in scorers_of(suite) if scorer.stage is not None]
        if isinstance(suite, WinRateSuite) and suite.reward_model and suite.reward_model.stage is not None:
            stages.append(suite.reward_model.stage)
        if stages:
            raise ConfigError(
                f"the suite `{suite.name}` is judged by a stage of its recipe, and no stage is run here",
                where=suite.name,
                found=f"stage: {stages[0]}",
                remedy=f"write the folder of the trained model in its place, runs/NAME/{stages[0]}/model",
            )
