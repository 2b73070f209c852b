"""Weights & Biases: offline by default, in `tracking/wandb`, from where `wandb sync` takes it to a server.

wandb sync runs/mine/tracking/wandb/wandb/offline-run-*
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from posttrain.errors import ConfigError
from posttrain.training.tracking.trackers.tracker import TrackedStage, Tracker, described


class WandbTracker:
    def __init__(self, stage: TrackedStage, settings: Mapping[str, Any]):
        import wandb

        stage.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=settings["project"] or "posttrain",
            entity=settings["entity"],
            id=stage.id,
            name=stage.name,
            group=stage.run,
            job_type=stage.config.get("method"),
            config=dict(stage.config),
            dir=str(stage.folder),
            mode=settings["mode"],
            resume="allow",
            # Its console, git and machine watchers would read what a run folder says already, and slow a step.
            settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True),
        )
        # Our steps, not its own, which may only rise: an alarm is told after the metrics of later steps.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._described: set[str] = set()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        new = values.keys() - self._described
        if new:
            self._described |= new
            self._run.config.update(
                {f"metrics/{name}": described(name)[0] for name in sorted(new)}, allow_val_change=True
            )
        self._run.log({"step": step, **values})

    def text(self, step: int, name: str, text: str) -> None:
        self._run.summary[name] = f"step {step}: {text}"

    def flush(self) -> None:
        """Its own process writes what it was told."""

    def close(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "done" else 1)


def require_login(settings: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        ConfigError: it is to go online, and nothing says as whom: its client would ask at the terminal, or never begin.
    """
    if settings["mode"] != "online" or os.environ.get("WANDB_API_KEY") or _is_logged_in():
        return
    raise ConfigError(
        "wandb is to go online, and there is no login",
        where=where,
        found="no WANDB_API_KEY in the environment, and none of `wandb login`",
        remedy="export WANDB_API_KEY, or leave `mode: online` out and take the run there later with `wandb sync`",
    )


def _is_logged_in() -> bool:
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):  # none there, or none that can be read: then nobody is logged in
        return False


def open_wandb(stage: TrackedStage, settings: Mapping[str, Any]) -> Tracker:
    return WandbTracker(stage, settings)
