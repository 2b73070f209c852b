"""Trackio: a data base in `tracking/trackio`, shown by `trackio show`.

TRACKIO_DIR=runs/mine/tracking/trackio trackio show --project mine
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from posttrain.training.tracking.trackers.tracker import TrackedStage, Tracker


class TrackioTracker:
    def __init__(self, stage: TrackedStage, settings: Mapping[str, Any]):
        # Read by trackio when it is imported, so that the runs of one process share a folder: that of the first, or
        # one of the user's own choice.
        os.environ.setdefault("TRACKIO_DIR", str(stage.folder.resolve()))
        import trackio

        self._run = trackio.init(
            project=settings["project"] or stage.run,
            name=f"{stage.stage}-{stage.id}",
            group=stage.run,
            config=dict(stage.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, name: str, text: str) -> None:
        self._run.log({name: text}, step=step)

    def flush(self) -> None:
        """It writes as it is told."""

    def close(self, status: str) -> None:
        self._run.finish()


def open_trackio(stage: TrackedStage, settings: Mapping[str, Any]) -> Tracker:
    return TrackioTracker(stage, settings)
