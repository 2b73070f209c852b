"""Which stages a run has, how each ended and how long it took; the same for a recipe and for Python."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any, Self

from posttrain.config import StageSettings
from posttrain.data.templates.clock import today
from posttrain.parallel.world import job, world
from posttrain.runs.folder import RunFolder, StageFolder
from posttrain.runs.progress import Progress
from posttrain.runs.records.run import RunRecord, StageEntry
from posttrain.runs.records.stage import StageRecord
from posttrain.runs.showing import Shown
from posttrain.training.loop import how_it_ended
from posttrain.training.provenance import now


def begin_run(run: RunFolder, name: str, stages: Sequence[StageSettings], *, keep_others: bool = False) -> None:
    """Write run.json: the run is running, and these are its stages, each with what is known of it from before.

    Args:
        keep_others: stages that are known from before and not named now stay, ahead of these.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    known = run.run() if run.exists else RunRecord.from_json({})
    before = {entry.name: entry for entry in known.stages}
    named = {stage.name for stage in stages}
    entries = [entry for name, entry in before.items() if keep_others and name not in named]
    for stage in stages:
        entry = before.get(stage.name) or StageEntry(stage.name, stage.method, "pending", 0.0)
        entries.append(replace(entry, method=stage.method))
    run.write_run(
        name=name,
        posttrain_version=metadata.version("posttrain"),
        created=known.created or now(),
        date=known.date or today(),
        status="running",
        stages=tuple(entries),
        processes=None if (here := job()).is_alone else here.size,  # rank 0 is alone while it drives
    )


def left_over(run: RunFolder, stages: Sequence[StageSettings]) -> list[str]:
    """Stages that ran into this folder under another recipe and are none of this one's: `begin_run` unlists them."""
    before = [entry.name for entry in run.run().stages] if run.exists else []
    named = {stage.name for stage in stages}
    return [name for name in before if name not in named and run.stage(name).exists]


class Timed:
    """Writes a stage's status and time, whatever happens in it."""

    def __init__(self, run: RunFolder, folder: StageFolder, stage: StageSettings):
        self.run, self.folder, self.stage = run, folder, stage

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        self.before = self.folder.stage() if self.folder.exists else StageRecord()
        self._entry("running")
        return self

    def anew(self) -> None:
        """The result that was there before is another stage's by now; its time is none of this one's."""
        self.before = StageRecord()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        spent = time.monotonic() - self.started
        again = self.before.status == "done" and error is None
        before = self.before.seconds
        seconds = (spent if before is None else before) if again else (before or 0.0) + spent
        status = how_it_ended(error)
        warnings = self.folder.stage().warnings if self.folder.exists else ()
        # Where whoever reads run.json alone sees what the stage says is wrong with itself as a whole.
        self._entry(status, seconds=seconds, warnings=warnings or None)
        # What stopped before the stage wrote anything (a file that is not there for a moment, Ctrl-C) is no word on the
        # result that lies in its folder: marked as failed, it would be trained again.
        if error is not None and self.folder.exists and self.folder.stage().status == "done":
            self.folder.close()
            return
        self.folder.write_stage(
            status=status,
            seconds=seconds,
            ended=now(),
            error=None if error is None else str(error) or type(error).__name__,
        )
        self.folder.close()

    def _entry(self, status: str, **more: Any) -> None:
        entries = [
            replace(entry, status=status, **more) if entry.name == self.stage.name else entry
            for entry in self.run.run().stages
        ]
        self.run.write_run(stages=tuple(entries))


def of_main(progress: Shown) -> Shown:
    """What is shown on this rank: of several processes one speaks. A Progress that was passed is used by any of them,
    and may write to a log of its own."""
    return progress if isinstance(progress, Progress) or world().is_main else False
