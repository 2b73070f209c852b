"""What a tracker is told, and what it has to be able to do. Names and units are ours in each of them.

train/loss, held_out/loss        every value of metrics.jsonl, by split; what was not finite is left out
progress/epoch, progress/seconds  of each step that trained
suite/identity.match             what the suites measured of the stage's model, at its last step
alarm/gradient_spike             1 at the step where it rang, with its message as text
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from posttrain.diagnostics.metrics import METRICS


@dataclass(frozen=True, slots=True)
class TrackedStage:
    """The stage as a tracker shows it.

    TrackedStage(run="mine", stage="dpo", id="9f2c41aa", folder=Path("runs/mine/tracking/wandb"),
                 config={"method": "dpo", "beta": "0.1", "optimizer.clip_norm": "1.0"}, resumed=False)
    """

    run: str
    stage: str
    id: str
    """Its own in this tracker; for one whose runs are folders, the folder's name."""
    folder: Path
    """Where a tracker that needs no server keeps its files: inside the run folder."""
    config: Mapping[str, str]
    """The stage's config.yaml, with the keys as an override has them."""
    resumed: bool
    """Whether the tracker was told of it before."""

    @property
    def name(self) -> str:
        return f"{self.run}/{self.stage}"


class Tracker(Protocol):
    """One stage in one tracker. Any method may raise or hang: `feed` sees to that."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Values by their names, at a step; steps of different names may come in any order."""

    def text(self, step: int, name: str, text: str) -> None:
        """Words at a step."""

    def flush(self) -> None:
        """What was told so far is to survive the end of the process."""

    def close(self, status: str) -> None:
        """The stage is done, interrupted or failed."""


Opener = Callable[[TrackedStage, Mapping[str, Any]], Tracker]
"""(stage, the settings of the tracker) -> the tracker, ready to be told."""


@dataclass(frozen=True, slots=True)
class TrackerKind:
    """TrackerKind(package="wandb", extra="wandb", open=open_wandb, is_folder=False)"""

    package: str
    """What is imported."""
    extra: str
    open: Opener
    is_folder: bool = False
    """Whether its runs are told apart by the name of a folder, which a reader should know at sight."""


def described(name: str) -> tuple[str, str]:
    """Title with unit, and meaning: described("train/loss") -> ("Loss (nats)", "What training minimises: ...")."""
    known = METRICS.get(name.partition("/")[2])
    if known is None:
        return name, ""
    return f"{known.title} ({known.unit})" if known.unit else known.title, known.description


def unit_of(name: str) -> str:
    """unit_of("train/loss") -> "nats"; "" where it is a plain number or not known."""
    known = METRICS.get(name.partition("/")[2])
    return "" if known is None else known.unit
