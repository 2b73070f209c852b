"""One tracker's thread: it opens the tracker, tells it what is new in the stage's files, and closes it.

Nothing that the tracker does reaches the run: an error drops it with one line, and so does a call that takes longer
than `PATIENCE`. The run folder holds every number either way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.runs.folder import StageFolder
from posttrain.runs.records.evaluation import SuiteScores
from posttrain.runs.records.logs import Alarm, MetricsLine
from posttrain.runs.records.tracking import TrackerState
from posttrain.training.tracking.follow import Follower
from posttrain.training.tracking.trackers.tracker import TrackedStage, Tracker

PATIENCE = 60.0
"""Seconds that one call may take; a server that is slower is worth less than knowing that it is."""
EVERY = 1.0
"""Seconds between two looks at the files."""


@dataclass(slots=True)
class Told:
    """How far a tracker has been told; becomes `TrackerState`."""

    kind: str
    id: str
    steps: dict[str, int] = field(default_factory=dict)
    alarms: int = 0
    suites: bool = False

    @classmethod
    def of(cls, state: TrackerState) -> Told:
        return cls(state.kind, state.id, dict(state.steps), state.alarms or 0, bool(state.suites))

    def state(self) -> TrackerState:
        return TrackerState(self.kind, self.id, dict(self.steps), self.alarms, self.suites)


class Feed:
    """
    Args:
        open_tracker: runs in the thread, since it may ask a server.
        told: is written to as the tracker is told; `note` stores it, before the tracker hears of it.
        say: receives the one line of a tracker that is dropped.
    """

    def __init__(
        self,
        folder: StageFolder,
        stage: TrackedStage,
        open_tracker: Callable[[TrackedStage], Tracker],
        told: Told,
        *,
        note: Callable[[], None],
        say: Callable[[str], None],
        every: float = EVERY,
    ):
        self.folder, self.stage, self.told = folder, stage, told
        self._open, self._note, self._say, self._every = open_tracker, note, say, every
        self._metrics, self._alarms = Follower(folder.path, MetricsLine), Follower(folder.path, Alarm)
        self._stop, self._status = threading.Event(), "done"
        self._busy_since: float | None = None
        self._dropping = threading.Lock()
        self.dropped = False
        # A daemon: a tracker that hangs must not keep a process alive whose run is over.
        self._thread = threading.Thread(target=self._run, name=f"posttrain-{told.kind}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self, status: str) -> None:
        """Tell what is left, then close the tracker; `join` waits for it."""
        self._status = status
        self._stop.set()

    def join(self, seconds: float) -> None:
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self.drop(f"it did not end within {PATIENCE:.0f} s")

    def look(self, now: float) -> None:
        """Drop the tracker where one call takes too long; the thread itself cannot say so."""
        since = self._busy_since
        if since is not None and now - since > PATIENCE:
            self.drop(f"it has not answered for {PATIENCE:.0f} s")

    def drop(self, why: str) -> None:
        with self._dropping:
            if self.dropped:
                return
            self.dropped = True
        self._stop.set()
        self._say(
            f"WARNING: {self.stage.stage}: the tracker {self.told.kind} is told no more: {why}. The run goes on; "
            "its folder holds every number"
        )

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            tracker = self._call(self._open, self.stage)
            while not self._stop.wait(self._every):
                self._tell(tracker)
            self._tell(tracker)
            if not self.dropped:
                self._tell_suites(tracker)
                self._call(tracker.close, self._status)
        # The boundary: other people's clients raise whatever they like, SystemExit included (wandb).
        except BaseException as error:
            self.drop(f"{type(error).__name__}: {_first_line(error)}")

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        self._busy_since = time.monotonic()
        try:
            return method(*arguments)
        finally:
            self._busy_since = None

    def _tell(self, tracker: Tracker) -> None:
        metrics = [line for line in self._metrics.new() if self._is_new(line)]
        alarms = self._new_alarms()
        if self.dropped or not (metrics or alarms):
            return
        for line in metrics:
            assert line.step is not None  # `_is_new`
            self.told.steps[line.split] = line.step
        # First the note: a point that is missing can be looked up, one that is there twice cannot be told apart.
        self._note()
        for line in metrics:
            self._call(tracker.scalars, line.step, named(line))
        for alarm in alarms:
            step = alarm.step or 0
            self._call(tracker.scalars, step, {f"alarm/{alarm.name}": 1.0})
            self._call(tracker.text, step, f"alarm/{alarm.name}", f"{alarm.severity}: {alarm.message}. {alarm.remedy}")
        self._call(tracker.flush)

    def _is_new(self, line: MetricsLine) -> bool:
        """A resumed stage takes steps again that the tracker knows."""
        return line.step is not None and line.step > self.told.steps.get(line.split, -1)

    def _new_alarms(self) -> list[Alarm]:
        """By their step: a resumed stage writes those of the steps that it takes again once more."""
        last = self.told.steps.get(ALARMS, -1)
        new = [alarm for alarm in self._alarms.new() if (alarm.step or 0) > last]
        if new:
            self.told.steps[ALARMS] = max(alarm.step or 0 for alarm in new)
            self.told.alarms += len(new)
        return new

    def _tell_suites(self, tracker: Tracker) -> None:
        scores = self.folder.document(SuiteScores)
        if scores is None or self.told.suites:
            return
        self.told.suites = True
        self._note()
        values = suite_values(scores)
        step = max((step for split, step in self.told.steps.items() if split != ALARMS), default=0)
        self._call(tracker.scalars, step, values)
        self._call(tracker.flush)


ALARMS = "alarms"
"""Key beside the splits under which the step of the last alarm is kept."""


def named(line: MetricsLine) -> dict[str, float]:
    """The values of a line by the names that trackers show; what was not finite is left out."""
    values = {f"{line.split}/{name}": value for name, value in line.values.items() if value is not None}
    if line.split == "train":
        times = {"progress/epoch": line.epoch, "progress/seconds": line.seconds}
        values |= {name: value for name, value in times.items() if value is not None}
    return values


def suite_values(scores: SuiteScores) -> dict[str, float]:
    """suite/identity.match and its interval, suite/identity.match/low and /high."""
    values: dict[str, float] = {}
    for suite, figures in scores.suites.items():
        for metric, figure in figures.items():
            parts = {"": figure.value, "/low": figure.low, "/high": figure.high}
            values |= {f"suite/{suite}.{metric}{part}": v for part, v in parts.items() if v is not None}
    return values


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"


def remembered(states: Iterable[TrackerState]) -> Mapping[str, Told]:
    return {state.kind: Told.of(replace(state)) for state in states}
