"""A run's pulse, for those who look at its folder: heartbeat.json says what is under way, stalls.txt where it hangs.

    with Heartbeat(folder.path, progress, stall_after=300):
        ...        # training; a thread writes the two files

heartbeat.json is written every few seconds, and once at the end:

    {"schema": 1, "status": "running", "time": "2026-03-01T12:00:05+00:00", "pid": 4711, "phase": "grpo: training",
     "activity": "score", "activity_seconds": 12.1, "silent_seconds": 12.1, "done": 3, "total": 30, "unit": "steps"}

A time that is older than a minute means that the process is gone, or that nothing in it can run. After `stall_after`
seconds without progress the status is "stalled", the user is told which part of the step it is, and the stack of
every thread goes to stalls.txt; again each time the silence has doubled. Nothing is ever ended by it: a slow judge may
be slow for good reasons. The thread draws no random number and touches no tensor. Standard library only.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from posttrain.runs.progress import Progress, Standing, clock
from posttrain.runs.records.preflight import HeartbeatRecord

SCHEMA = 1
BEAT_SECONDS = 5.0

PulseStatus = Literal["running", "stalled", "ended", "failed"]


class Heartbeat:
    """
    Args:
        folder: of the stage.
        stall_after: seconds without progress that are a stall; None: none is.
        every: seconds between two beats; a stall is seen within that time.
    """

    def __init__(
        self, folder: Path, progress: Progress, *, stall_after: float | None = 300.0, every: float = BEAT_SECONDS
    ):
        self.folder, self.progress, self.stall_after = Path(folder), progress, stall_after
        # A stall is seen only at a beat: with beats further apart than the limit it would be reported much too late.
        self.every = every if stall_after is None else min(every, stall_after / 4)
        self._said: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched: int | None = None

    @property
    def path(self) -> Path:
        return self.folder / HeartbeatRecord.FILE

    @property
    def stalls(self) -> Path:
        return self.folder / "stalls.txt"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Whoever enters is the one that trains; its stack comes first in stalls.txt.
        self._watched = threading.get_ident()
        self._write("running", self.progress.standing())
        # A daemon: a thread that only watches must not keep a process alive whose training has died.
        self._thread = threading.Thread(target=self._run, name="posttrain-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            # First the thread, then the last beat: the other way round a late "running" could replace "ended".
            self._thread.join()
        self._write("ended" if kind is None else "failed", self.progress.standing())

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            self.beat()

    def beat(self) -> None:
        """Look once: write the pulse, and say a stall if there is one."""
        standing = self.progress.standing()
        stalled = self.stall_after is not None and standing.silence >= self.stall_after
        self._write("stalled" if stalled else "running", standing)
        if not stalled:
            if self._said is not None:
                self.progress.say(f"{self.folder.name}: goes on ({standing.words})")
            self._said = None
        # At each doubling: a night's silence is a handful of messages, not one for every beat.
        elif self._said is None or standing.silence >= 2 * self._said:
            self._said = standing.silence
            self._report(standing)

    def _report(self, standing: Standing) -> None:
        with self.stalls.open("a", encoding="utf-8") as file:
            file.write(f"==== {_now()}  no progress for {clock(standing.silence)}: {standing.words}\n\n")
            file.write("\n".join(_stacks(self._watched)) + "\n\n")
        self.progress.say(
            f"{self.folder.name}: stalled: no progress for {clock(standing.silence)} in {standing.words}. The line it "
            f"stands at is in {self.stalls}; nothing was stopped (log.stall_after)"
        )

    def _write(self, status: PulseStatus, standing: Standing) -> None:
        """Whole or not at all, and without waiting for the disk: a pulse that is lost in a power cut tells the same."""
        record = HeartbeatRecord(
            schema=SCHEMA,
            status=status,
            time=_now(),
            pid=os.getpid(),
            phase=standing.phase,
            activity=standing.activity,
            activity_seconds=round(standing.seconds, 3),
            silent_seconds=round(standing.silence, 3),
            done=standing.done,
            total=standing.total,
            unit=standing.unit,
        )
        # A fixed name is enough: the thread starts after the first beat and is joined before the last.
        writing = self.path.with_suffix(".writing")
        # On a full disk too the run ends by what it could not write, and not by its pulse.
        with suppress(OSError):
            writing.write_text(json.dumps(record.to_json()) + "\n", encoding="utf-8")
            os.replace(writing, self.path)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _stacks(watched: int | None) -> list[str]:
    """Where every thread stands, the one that trains first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    # The heartbeat's own stack is always this line, and says nothing of the hang.
    own = threading.get_ident()
    order = sorted((ident for ident in frames if ident != own), key=lambda ident: ident != watched)
    return [
        f"-- thread {names.get(ident, ident)}{' (the one that trains)' if ident == watched else ''}\n"
        + "".join(traceback.format_stack(frames[ident]))
        for ident in order
    ]
