"""The trackers by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

from posttrain.errors import MissingExtraError, unknown
from posttrain.training.tracking.trackers.mlflow import open_mlflow
from posttrain.training.tracking.trackers.tensorboard import open_tensorboard
from posttrain.training.tracking.trackers.tracker import TrackerKind
from posttrain.training.tracking.trackers.trackio import open_trackio
from posttrain.training.tracking.trackers.wandb import open_wandb, require_login

TRACKERS: Mapping[str, TrackerKind] = {
    "tensorboard": TrackerKind("tensorboard", "tensorboard", open_tensorboard, is_folder=True),
    "trackio": TrackerKind("trackio", "trackio", open_trackio),
    "wandb": TrackerKind("wandb", "wandb", open_wandb),
    "mlflow": TrackerKind("mlflow", "mlflow", open_mlflow),
}


def require_trackers(trackers: Iterable[Mapping[str, Any]], where: str = "log.to") -> None:
    """Before anything is computed: every tracker that a stage names can be told.

    Args:
        trackers: the settings of each, with its `kind`.
        where: the key that holds them.

    Raises:
        UnknownKeyError: there is no such tracker.
        MissingExtraError: its package is not installed.
        ConfigError: it is to go online, and nobody is logged in.
    """
    for settings in trackers:
        name = str(settings["kind"])
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS, where=where)
        kind = TRACKERS[name]
        if importlib.util.find_spec(kind.package) is None:
            raise MissingExtraError(
                f"the tracker {name} needs the package {kind.package}, which is not installed",
                where=where,
                remedy=f"`pip install 'posttrain[{kind.extra}]'`, or take `{name}` out of `log.to`",
            )
        if name == "wandb":
            require_login(settings, where)
