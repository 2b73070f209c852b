"""TensorBoard: event files in `tracking/tensorboard/<stage>`; titles, units and meanings stand beside the curves.

tensorboard --logdir runs/mine/tracking/tensorboard
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from posttrain.training.tracking.trackers.tracker import TrackedStage, Tracker, described


class TensorBoardTracker:
    """Writes events itself: torch's writer knows no titles and no meanings."""

    def __init__(self, stage: TrackedStage):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        # A resumed stage writes a further file into the same folder, which readers put together.
        self._writer = EventFileWriter(str(stage.folder / stage.id))
        if not stage.resumed:
            self.text(0, "config", "\n".join(f"    {key}: {value}" for key, value in stage.config.items()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.scalar import metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        shown = []
        for name, value in values.items():
            title, meaning = described(name)
            about = metadata.create_summary_metadata(display_name=title, description=meaning)
            shown.append(Summary.Value(tag=name, tensor=make_tensor_proto(np.float32(value)), metadata=about))
        self._add(step, Summary(value=shown))

    def text(self, step: int, name: str, text: str) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text import metadata
        from tensorboard.util.tensor_util import make_tensor_proto

        about = metadata.create_summary_metadata(display_name=name, description="")
        content = make_tensor_proto(np.array(text.encode("utf-8", errors="replace"), dtype=object))
        self._add(step, Summary(value=[Summary.Value(tag=f"{name}/text", tensor=content, metadata=about)]))

    def _add(self, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=summary))

    def flush(self) -> None:
        self._writer.flush()

    def close(self, status: str) -> None:
        self._writer.close()


def open_tensorboard(stage: TrackedStage, settings: Mapping[str, Any]) -> Tracker:
    return TensorBoardTracker(stage)
