"""What the peer's two scripts share: the callback that times steps, and the options of TRL that must be equal."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from transformers import TrainerCallback

from benchmarks.record import Record, peak_rss
from benchmarks.settings import ADAM_BETAS, LEARNING_RATE, SEED


class StepTimer(TrainerCallback):
    """Seconds of each step, from the first forward to the end of the update, and the loss that was logged."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def options(batch: int, steps: int, max_length: int) -> dict[str, Any]:
    """Arguments for `DPOConfig` and `SFTConfig`: fp32 on the CPU, rows in the order of the file, no checkpoints."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "max_length": max_length,
        "learning_rate": LEARNING_RATE,
        "adam_beta1": ADAM_BETAS[0],
        "adam_beta2": ADAM_BETAS[1],
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": SEED,
    }


def train(who: str, trainer: Any, timer: StepTimer) -> None:
    """Run a trainer that is ready, and report."""
    loaded = peak_rss()
    trainer.train()
    Record(who, tuple(timer.seconds), tuple(timer.losses), loaded, peak_rss()).emit()
