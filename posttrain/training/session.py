"""The same as a recipe's stage, from Python.

policy = load("smollm2-135m-instruct", adapter=LoRA(rank=16))
run = train(DPO(beta=0.1, learning_rate=2e-4), policy, read("pairs.jsonl"), out="runs/mine")
run.report, run.model, run.metrics()
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from posttrain.config import LoRA, TrainingStage
from posttrain.data.read import Examples
from posttrain.data.read import read as read_rows
from posttrain.diagnostics.progress import Progress
from posttrain.diagnostics.run_store import RunFolder
from posttrain.errors import ConfigError
from posttrain.models import loading
from posttrain.models.loading import LoadedModel
from posttrain.report import write_report
from posttrain.training.algorithms import algorithm
from posttrain.training.order import stream_seed
from posttrain.training.records import now
from posttrain.training.stage import adapter_of, run_stage


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
        return RunFolder(self.folder).stage(self.stage).metrics(split)

    def alarms(self) -> list[dict[str, Any]]:
        return RunFolder(self.folder).stage(self.stage).alarms()


def load(
    name_or_path: str | Path,
    *,
    adapter: LoRA | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """A model by catalogue name, folder or hub id, with a fresh adapter if one is given; see `models.loading.load`."""
    given = None if adapter is None else adapter_of(adapter)
    return loading.load(name_or_path, adapter=given, dtype=dtype, device=device, seed=stream_seed(seed, "adapter"))


def train(
    stage: TrainingStage,
    model: LoadedModel | str | Path,
    data: Examples | str | Path,
    *,
    out: str | Path,
    seed: int = 0,
    progress: Progress | None = None,
) -> Run:
    """Train one stage into the run folder `out`; it holds what a recipe's run folder holds, the report included.

    Called again after an interruption, with the same arguments and a model that is loaded anew, it goes on from the
    last checkpoint. A loaded model is trained in place.

    Args:
        stage: SFT(...), DPO(...), Preference("simpo", ...).
        data: what `read` returned, or a path.

    Raises:
        ConfigError: an adapter is asked for in the stage and the model is loaded already.
        PosttrainError: whatever the stage refuses.
    """
    if isinstance(model, LoadedModel) and stage.adapter is not None:
        raise ConfigError(
            "the model is loaded already, so the stage cannot put an adapter on it",
            found=f"adapter: {stage.adapter.kind} in the stage",
            remedy="give the adapter to load(name, adapter=LoRA(...)), or give train() the model's name",
        )
    examples = data if isinstance(data, Examples) else read_rows(data, kind=algorithm(stage.method).kind)
    run = RunFolder(Path(out))
    folder = run.stage(stage.name)
    entry = {"name": stage.name, "method": stage.method, "status": "running", "seconds": 0.0}
    with run.locked():
        run.write_run(
            name=run.path.name,
            posttrain_version=metadata.version("posttrain"),
            created=now(),
            status="running",
            stages=[entry],
        )
        status, error_text, seconds = "failed", None, 0.0
        try:
            outcome = run_stage(stage, model, folder, seed=seed, progress=progress or Progress(), examples=examples)
            status, seconds = "done", outcome.seconds
        except BaseException as error:
            error_text = str(error) or type(error).__name__
            raise
        finally:
            folder.write_stage(status=status, seconds=seconds, ended=now(), error=error_text)
            folder.close()
            run.write_run(status=status, stages=[{**entry, "status": status, "seconds": seconds}], ended=now())
        write_report(run.path)
    return Run(run.path, stage.name, outcome.steps)
