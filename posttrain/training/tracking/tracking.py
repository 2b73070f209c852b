"""The trackers of one stage: opened before step 1, told while it trains, closed when it ends.

    with Tracking(stage.log.to, run.path, folder, config, say=progress.say):
        ...        # training; a thread for each tracker, and one that watches them

A stage that is resumed goes on in the same run of each tracker, and tells no step twice: tracking.json says how far
each was told. The thread draws no random number and touches no tensor, so that a run with trackers is bit for bit the
run without.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from posttrain.runs.folder import StageFolder
from posttrain.runs.layout import TRACKING
from posttrain.runs.records.tracking import StageTracking
from posttrain.training.tracking import feed as feeds
from posttrain.training.tracking.feed import Feed, Told
from posttrain.training.tracking.trackers.table import TRACKERS
from posttrain.training.tracking.trackers.tracker import TrackedStage

WATCH_SECONDS = 1.0


class Tracking:
    """
    Args:
        trackers: the settings of each, with its `kind`.
        run: the run's folder.
        config: the stage's settings, as nested as they are.
        status: what the stage has come to, of the error that ends it or of None.
    """

    def __init__(
        self,
        trackers: Sequence[Mapping[str, Any]],
        run: Path,
        folder: StageFolder,
        config: Mapping[str, Any],
        *,
        say: Callable[[str], None],
        status: Callable[[BaseException | None], str],
        every: float = feeds.EVERY,
    ):
        self.run, self.folder, self.say, self.status = Path(run), folder, say, status
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._told: dict[str, Told] = {}
        self.feeds = [self._feed(settings, flat(config), every) for settings in trackers]

    def _feed(self, settings: Mapping[str, Any], config: Mapping[str, str], every: float) -> Feed:
        name = str(settings["kind"])
        kind = TRACKERS[name]
        place = self.run / TRACKING / name
        known = self._known().get(name)
        told = known or Told(name, self._free_name(place) if kind.is_folder else secrets.token_hex(4))
        self._told[name] = told
        run = self.run.resolve().name
        stage = TrackedStage(run, self.folder.name, told.id, place, config, resumed=known is not None)
        return Feed(
            self.folder, stage, partial(_opened, kind.open, settings), told, note=self.note, say=self.say, every=every
        )

    def _known(self) -> Mapping[str, Told]:
        """How far each tracker was told of this attempt; a stage that begins anew is another run in each."""
        record = self.folder.document(StageTracking)
        if record is None or record.started != self.folder.stage().started:
            return {}
        return feeds.remembered(record.trackers)

    def _free_name(self, place: Path) -> str:
        """dpo, or dpo-2 where an earlier result of the stage was told under that name."""
        name, number = self.folder.name, 1
        while (place / name).exists():
            number += 1
            name = f"{self.folder.name}-{number}"
        return name

    def note(self) -> None:
        """Store how far each was told; of several threads one at a time."""
        with self._lock:
            states = tuple(told.state() for told in self._told.values())
            self.folder.write(StageTracking(self.folder.stage().started, states))

    # ------------------------------------------------------------ while the stage runs

    def __enter__(self) -> Self:
        if self.feeds:
            self.note()  # the ids, before anybody is told of them
        for feed in self.feeds:
            feed.start()
        if self.feeds:
            threading.Thread(target=self._watch, name="posttrain-tracking", daemon=True).start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(WATCH_SECONDS):
            for feed in self.feeds:
                feed.look(time.monotonic())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for feed in self.feeds:
            feed.end(self.status(error))
        # Together, not one after the other: the run is over, and its user waits.
        deadline = time.monotonic() + feeds.PATIENCE
        for feed in self.feeds:
            feed.join(deadline - time.monotonic())
        self._over.set()


def _opened(opener: Callable[..., Any], settings: Mapping[str, Any], stage: TrackedStage) -> Any:
    return opener(stage, settings)


def flat(config: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Settings with the keys of an override: flat({"optimizer": {"clip_norm": 1.0}}) -> {"optimizer.clip_norm": "1.0"}.

    A list is one value.
    """
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = "null" if value is None else str(value)
    return found
