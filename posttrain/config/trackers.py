"""Trackers of experiments: `log: {to: [tensorboard, {kind: wandb, project: mine}]}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, field_validator

from posttrain.config.values import Settings, refuse, require_no_credential


class TrackerSettings(Settings):
    """What is told of every step while a stage trains; what fails there never ends the run."""

    kind: str


class TensorBoard(TrackerSettings):
    """Event files in the run folder: `tensorboard --logdir runs/mine/tracking/tensorboard`."""

    kind: Literal["tensorboard"] = "tensorboard"
    """The tracker."""


class Trackio(TrackerSettings):
    """A data base in the run folder: `TRACKIO_DIR=runs/mine/tracking/trackio trackio show`."""

    kind: Literal["trackio"] = "trackio"
    """The tracker."""
    project: str | None = None
    """Under which its runs stand; null: the run folder's name."""


class Wandb(TrackerSettings):
    """Weights & Biases. `online` needs WANDB_API_KEY in the environment, or a `wandb login` before."""

    kind: Literal["wandb"] = "wandb"
    """The tracker."""
    project: str | None = None
    """Under which its runs stand; null: posttrain."""
    entity: str | None = None
    """The team or user; null: the login's own."""
    mode: Literal["offline", "online"] = "offline"
    """`offline` writes into the run folder, from where `wandb sync` takes it."""


class Mlflow(TrackerSettings):
    """MLflow. Its own variables (MLFLOW_TRACKING_TOKEN and so on) say who asks a server."""

    kind: Literal["mlflow"] = "mlflow"
    """The tracker."""
    experiment: str | None = None
    """Under which its runs stand; null: the run folder's name."""
    uri: str | None = None
    """Of a server, http://localhost:5000; null: a data base in the run folder."""

    @field_validator("uri")
    @classmethod
    def _without_credential(cls, uri: str | None) -> str | None:
        remedy = "take it out, and export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or _TOKEN"
        checked: str | None = require_no_credential(uri, remedy)
        return checked


TRACKER_KINDS: Mapping[str, type[TrackerSettings]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
    "mlflow": Mlflow,
}
"""What `kind` says -> its record."""


def _short(value: Any) -> Any:
    """`to: [wandb]` is [{kind: wandb}]."""
    return {"kind": value} if isinstance(value, str) else value


if TYPE_CHECKING:  # the table is only known when it runs
    AnyTracker = TrackerSettings
else:
    AnyTracker = Annotated[
        Union[tuple(TRACKER_KINDS.values())],  # noqa: UP007
        Field(discriminator="kind"),
        BeforeValidator(_short),
    ]


def _listed(value: Any) -> Any:
    """`to: wandb` is [wandb]."""
    return [value] if isinstance(value, str | Mapping) else value


Trackers = Annotated[tuple[AnyTracker, ...], BeforeValidator(_listed)]


def require_distinct_kinds(trackers: tuple[TrackerSettings, ...]) -> tuple[TrackerSettings, ...]:
    """For validators: a tracker that stands there twice would be told everything twice."""
    kinds = [tracker.kind for tracker in trackers]
    for place, kind in enumerate(kinds):
        if kind in kinds[:place]:
            raise refuse(f"the tracker {kind} stands there twice", path=(place,), remedy="leave one of the two out")
    return trackers
