"""The same as a recipe's stage, from Python.

policy = load("smollm2-135m-instruct", adapter=LoRA(rank=16))
run = train(DPO(beta=0.1, learning_rate=2e-4), policy, read("pairs.jsonl"), out="runs/mine")
run.report, run.model, run.metrics()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from posttrain.arguments import checked_flag, checked_path, checked_seed
from posttrain.config import AdapterSettings, TrainingStage
from posttrain.config.new_tokens import new_tokens
from posttrain.config.notify import Notify, notifications
from posttrain.config.suites import SuiteSettings
from posttrain.models.folders import loading
from posttrain.models.folders.loading import LoadedModel
from posttrain.models.folders.own_code import ModelCode, folder_code
from posttrain.models.folders.source import require_name
from posttrain.parallel.calls import driven
from posttrain.report import write_report
from posttrain.runs.folder import RunFolder, remove_results
from posttrain.runs.showing import Shown, showing
from posttrain.training.earlier import inputs_of, make_room, require_inputs_elsewhere
from posttrain.training.evaluation import RunSuites
from posttrain.training.identity import identity_of_call
from posttrain.training.interrupts import ending_signals
from posttrain.training.on_step import OnStep, require_callable
from posttrain.training.order import stream_seed
from posttrain.training.provenance import now
from posttrain.training.run_record import Timed, begin_run, how_it_ended, of_main
from posttrain.training.run_result import Run
from posttrain.training.session_inputs import examples_of, held_out_of, require_model, rewards_of, stage_of, with_data
from posttrain.training.session_suites import ask_start, suites_of, write_tables
from posttrain.training.stages.kind import RewardSpec, StageContext
from posttrain.training.stages.run import run_stage
from posttrain.training.stages.speech import answer_settings
from posttrain.training.tracking.notify import notifying, require_notify
from posttrain.training.tracking.trackers.table import require_trackers


def load(
    name_or_path: str | Path,
    *,
    adapter: AdapterSettings | None = None,
    tokens: Sequence[Any] = (),
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    model_code: ModelCode = "refuse",
    progress: Shown = None,
) -> LoadedModel:
    """A model by catalogue name, folder or hub id, with a fresh adapter if one is given; see `models.loading.load`.

    Args:
        tokens: texts that become a token each, unless they are one; as `tokens` of a stage:
            ["<tool>", {"text": "<|call|>", "special": True}].
        dtype: of the weights: torch's, or its name ("bf16").
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for what there is.
        seed: of the fresh adapter.
        model_code: "run" runs the Python files that the folder brings (`auto_map`) with your rights; "refuse" names
            them in an error.
        progress: of downloads and conversions; None shows it in a terminal or notebook, False never.

    Raises:
        ConfigError, ModelError, MissingExtraError: as `models.loading.load`.
    """
    require_name(name_or_path)
    checked_seed(seed)
    loading_phase = f"loading {name_or_path}"
    with showing(progress) as shown, shown.phase(loading_phase, unit="files"), folder_code(model_code):
        return loading.load(
            name_or_path,
            adapter=adapter,
            tokens=new_tokens(tokens),
            dtype=dtype,
            device=device,
            seed=stream_seed(seed, "adapter"),
            say=shown.say,
        )


def train(
    stage: TrainingStage | str | Mapping[str, Any],
    model: LoadedModel | str | Path,
    data: Any,
    *,
    out: str | Path,
    held_out: Any = None,
    rewards: Sequence[RewardSpec] | RewardSpec = (),
    seed: int = 0,
    split_seed: int = 0,
    evaluate: Sequence[SuiteSettings | Mapping[str, Any]] | SuiteSettings | Mapping[str, Any] = (),
    on_step: OnStep | None = None,
    notify: Any = (),
    fresh: bool = False,
    progress: Shown = None,
) -> Run:
    """Train one stage into the run folder `out`; it holds what a recipe's run folder holds, the report included.

    Called again after an interruption, with the same arguments and a model that is loaded anew, it goes on from the
    last checkpoint. A loaded model is trained in place. Several stages may share a folder, each under its own name:
    they stand in one run.json and one report, in the order in which they were first trained. A finished stage of the
    same name, but of other settings, data or start, is kept as `<stage>.1` and so on. SIGTERM and SIGHUP end the run as
    Ctrl-C does: after the step under way, with a checkpoint (in the main thread, which alone hears of signals).

    Under torch.distributed every rank calls this with the same arguments: rank 0 keeps the folder, all of them train,
    and a loaded model is trained on each.

    Args:
        stage: SFT(...), DPO(...), Preference("simpo", ...); or what a recipe writes: "dpo", {"method": "dpo", ...}.
        model: what `load` gave, or a name that it takes.
        data: what `read` returned, or whatever `read` takes: a path, a list of dicts, a DataFrame, a
            `datasets.Dataset`; for a stage that samples, a list of `Task` too. Or `pt.Data(...)`, as in a recipe:
            several sources with shares and turns (docs/mixing.md).
        held_out: rows to measure on, in the forms of `data`; None: as the stage says.
        rewards: for a stage that samples, beside those that it names: functions
            `(prompt, completion, task) -> float | None`, names of kinds ("math"), or entries ({"kind": "math"}).
        seed: where all random streams start.
        split_seed: what a held-out share is drawn from, so that several seeds are measured on the same rows.
        evaluate: suites, as a recipe has them ({"name": "tone", "kind": "match", ...}) or as records, asked of the
            start before the stage trains and of its model after; files are relative to where the program runs.
        on_step: called with a `StepReport` after every step; gives None, or "stop" to end the stage there, with its
            model exported. It changes no number. An error in it ends the run, with a checkpoint.
        notify: who is told when the run ends, fails, or an alarm rings, as in a recipe: "$SLACK_URL", or
            [{"url": "$SLACK_URL", "format": "slack", "on": ["failure"]}].
        fresh: forget what the folder holds of this stage, and begin it anew. Other stages stay, and so do earlier
            results.
        progress: None shows it in a terminal, a notebook and, seldom, a log; False is silent.

    Raises:
        ConfigError: an argument is none of these; an adapter is asked for in the stage and the model is loaded already;
            rewards are given to a stage that asks none; a suite that the run's start was not asked; what `fresh` is to
            forget cannot be removed, or the stage begins from it.
        TrainingError: `on_step` raised, or gave something else.
        ResumeError: the stage was interrupted, and its settings, data or start have changed since.
        PosttrainError: whatever the stage refuses; the report is written all the same and shows how far it came.
    """
    stage = stage_of(stage)
    require_model(model, stage)
    stage, data, held_out = with_data(stage, data, held_out)
    passed = rewards_of(rewards, stage)
    require_callable(on_step)
    require_trackers(stage.log.trackers)
    told = notifications(notify)
    require_notify(told)
    suites = suites_of(evaluate, stage)
    run = RunFolder(checked_path("out", out, "runs/mine"))
    checked_seed(seed)
    checked_seed(split_seed)
    checked_flag("fresh", fresh)
    with showing(of_main(progress), in_logs=True) as shown, ending_signals():
        ctx = StageContext(
            stage,
            model,
            run.stage(stage.name),
            seed,
            shown,
            # None is refused by its name, as anything else that is no data, unless the stage says which rows.
            examples=None if data is None and stage.data is not None else examples_of(data, stage),
            held_out=None if held_out is None else held_out_of(held_out, stage),
            rewards=passed,
            split_seed=split_seed,
            on_step=on_step,
        )
        asked = RunSuites(run, suites, seed)
        return driven(lambda: _train(ctx, asked, fresh, told), own=_own(ctx, suites))


def _own(ctx: StageContext[TrainingStage], suites: Sequence[SuiteSettings]) -> tuple[Any, ...]:
    """What every rank of a job was given itself, and what rank 0 therefore need not send: it may not be able to."""
    start = (ctx.start, ctx.start.model, ctx.start.tokenizer) if isinstance(ctx.start, LoadedModel) else ()
    return (ctx.progress, ctx.stage, *start, ctx.examples, ctx.held_out, *ctx.rewards, *suites)


def _train(ctx: StageContext[TrainingStage], asked: RunSuites, fresh: bool, told: Sequence[Notify]) -> Run:
    """The stage with the records of its run folder, from the first to the report."""
    run = asked.run
    stage, folder = ctx.stage, ctx.folder
    with run.locked(ctx.progress.say):
        if run.exists:
            run.require_known(run.run())  # before anything is cleared
        if fresh and folder.exists:
            require_inputs_elsewhere([folder.path], inputs_of(ctx.start, [stage], (ctx.examples, ctx.held_out)))
            remove_results([folder.path])
        begin_run(run, run.path.name, [stage], keep_others=True)
        with notifying(told, run, say=ctx.progress.say):
            steps = _train_to_report(ctx, asked)
    return Run(run.path, stage.name, steps)


def _train_to_report(ctx: StageContext[TrainingStage], asked: RunSuites) -> int:
    """The steps taken."""
    run, stage, folder = asked.run, ctx.stage, ctx.folder
    try:
        with Timed(run, folder, stage) as timed:
            ctx = replace(ctx, identity=identity_of_call(ctx))
            make_room(ctx, run, timed, resumes_by_content=False)
            outcome = run_stage(ctx, evaluate=_asking(ctx, asked) if asked.suites else None)
            assert outcome is not None  # it trains
            if asked.suites:
                write_tables(asked)
    except BaseException as error:
        run.write_run(status=how_it_ended(error), ended=now())
        # The report of a failed run is worth having; that it fails too must not hide why.
        with suppress(Exception):
            write_report(run.path)
        raise
    run.write_run(status="done", ended=now())
    write_report(run.path)
    return outcome.steps


def _asking(ctx: StageContext[TrainingStage], asked: RunSuites) -> Callable[[Any, Any], None]:
    """Asks the start now; gives what asks the trained model."""
    answers = answer_settings(ctx.stage, ctx.start, str(asked.run.run().date))
    ask_start(asked, ctx, answers)

    def ask(model: Any, tokenizer: Any) -> None:
        asked.ask(ctx.folder, model, answers, ctx.progress, tokenizer=tokenizer)

    return ask
