"""The same as a recipe's stage, from Python.

policy = load("smollm2-135m-instruct", adapter=LoRA(rank=16))
run = train(DPO(beta=0.1, learning_rate=2e-4), policy, read("pairs.jsonl"), out="runs/mine")
run.report, run.model, run.metrics()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from posttrain.config import AdapterSettings, Continue, TrainingStage
from posttrain.data.read import Examples
from posttrain.data.recast import read_as
from posttrain.errors import ConfigError
from posttrain.models.folders import loading
from posttrain.models.folders.loading import LoadedModel
from posttrain.report import write_report
from posttrain.rewards.scorer import RewardFunction
from posttrain.runs.folder import RunFolder, remove_results
from posttrain.runs.progress import Progress
from posttrain.training.earlier import make_room
from posttrain.training.identity import identity_of_call
from posttrain.training.interrupts import ending_signals
from posttrain.training.objectives import kind_of
from posttrain.training.order import stream_seed
from posttrain.training.provenance import now
from posttrain.training.run_record import Timed, begin_run, how_it_ended
from posttrain.training.stages.kind import StageContext
from posttrain.training.stages.run import run_stage
from posttrain.types import Task


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: Run(Path("runs/mine"), stage="dpo", steps=75)."""

    folder: Path
    stage: str
    steps: int

    @property
    def model(self) -> Path:
        """The folder that transformers, peft and vLLM load."""
        return self.folder / self.stage / "model"

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def metrics(self, split: str | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: {"step", "epoch", "seconds", "split", "values", "counts"}."""
        return [line.to_json() for line in RunFolder(self.folder).stage(self.stage).metrics(split)]

    def alarms(self) -> list[dict[str, Any]]:
        return [alarm.to_json() for alarm in RunFolder(self.folder).stage(self.stage).alarms()]


def load(
    name_or_path: str | Path,
    *,
    adapter: AdapterSettings | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """A model by catalogue name, folder or hub id, with a fresh adapter if one is given; see `models.loading.load`."""
    return loading.load(name_or_path, adapter=adapter, dtype=dtype, device=device, seed=stream_seed(seed, "adapter"))


def train(
    stage: TrainingStage,
    model: LoadedModel | str | Path,
    data: Any,
    *,
    out: str | Path,
    rewards: Sequence[RewardFunction] = (),
    seed: int = 0,
    split_seed: int = 0,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Train one stage into the run folder `out`; it holds what a recipe's run folder holds, the report included.

    Called again after an interruption, with the same arguments and a model that is loaded anew, it goes on from the
    last checkpoint. A loaded model is trained in place. Several stages may share a folder, each under its own name:
    they stand in one run.json and one report, in the order in which they were first trained. A finished stage of the
    same name, but of other settings, data or start, is kept as `<stage>.1` and so on. SIGTERM and SIGHUP end the run as
    Ctrl-C does: after the step under way, with a checkpoint (in the main thread, which alone hears of signals).

    Args:
        stage: SFT(...), DPO(...), Preference("simpo", ...).
        data: what `read` returned, or whatever `read` takes: a path, a list of dicts, a DataFrame, a
            `datasets.Dataset`; for a stage that samples, a list of `Task` too.
        rewards: for a stage that samples: functions `(prompt, completion, task) -> float | None`, beside those that the
            stage names.
        seed: where all random streams start.
        split_seed: what a held-out share is drawn from, so that several seeds are measured on the same rows.
        fresh: forget what the folder holds of this stage, and begin it anew. Other stages stay, and so do earlier
            results.

    Raises:
        ConfigError: an adapter is asked for in the stage and the model is loaded already; rewards are given to a stage
            that asks none; what `fresh` is to forget cannot be removed.
        ResumeError: the stage was interrupted, and its settings, data or start have changed since.
        PosttrainError: whatever the stage refuses; the report is written all the same and shows how far it came.
    """
    _require_stage(stage, rewards)
    taken = isinstance(model, LoadedModel) and stage.OUTPUTS == "policy"  # a reward model is made of a copy
    if taken and stage.adapter is not None and not isinstance(stage.adapter, Continue):
        raise ConfigError(
            "the model is loaded already, so the stage cannot put an adapter on it",
            found=f"adapter: {stage.adapter.kind} in the stage",
            remedy="give the adapter to load(name, adapter=LoRA(...)), or give train() the model's name",
        )
    examples = _examples(data, stage)
    run = RunFolder(Path(out))
    folder = run.stage(stage.name)
    ctx = StageContext(
        stage,
        model,
        folder,
        seed,
        progress or Progress(),
        examples=examples,
        rewards=rewards,
        split_seed=split_seed,
    )
    with ending_signals(), run.locked(ctx.progress.say):
        if run.exists:
            run.require_known(run.run())  # before anything is cleared
        if fresh and folder.exists:
            remove_results([folder.path])
        begin_run(run, run.path.name, [stage], keep_others=True)
        try:
            with Timed(run, folder, stage) as timed:
                ctx = replace(ctx, identity=identity_of_call(ctx))
                make_room(ctx, run, timed, resumes_by_content=False)
                outcome = run_stage(ctx)
                assert outcome is not None  # it trains
        except BaseException as error:
            run.write_run(status=how_it_ended(error), ended=now())
            # The report of a failed run is worth having; that it fails too must not hide why.
            with suppress(Exception):
                write_report(run.path)
            raise
        run.write_run(status="done", ended=now())
        write_report(run.path)
    return Run(run.path, stage.name, outcome.steps)


def _require_stage(stage: Any, rewards: Sequence[RewardFunction]) -> None:
    """What a recipe's reader would have found, before a model is loaded: a stage, and rewards that it reads."""
    if not isinstance(stage, TrainingStage):
        raise ConfigError(
            "the first argument of train() is no stage",
            found=f"{'the class' if isinstance(stage, type) else type(stage).__name__} {stage!r}"[:80],
            expected="train(stage, model, data, out=FOLDER)",
            example='pt.train(pt.SFT(steps=100), "embedded", "chats.jsonl", out="runs/mine")',
            remedy=f"write `pt.{stage.__name__}(...)`, with brackets"
            if isinstance(stage, type)
            else "give the stage first, then the model and the data",
        )
    if rewards and kind_of(stage.method) is not Task:
        raise ConfigError(
            f"rewards are given, and {stage.method} asks none",
            found=f"{len(rewards)} reward{'s' if len(rewards) != 1 else ''}",
            expected="a stage that samples, such as pt.GRPO(...)",
            remedy="leave `rewards` out, or choose a method that learns from them (docs/rl.md)",
        )


def _examples(data: Any, stage: TrainingStage) -> Examples | Sequence[Task]:
    """What `train` was given, as examples; tasks that a program has made stay what they are."""
    if isinstance(data, Examples):
        return data
    if isinstance(data, Iterator):
        data = list(data)
    kind = kind_of(stage.method)
    if kind is Task and isinstance(data, Sequence) and data and isinstance(data[0], Task):
        return data
    return read_as(data, kind)
