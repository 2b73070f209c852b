"""sweep.json: what a sweep was asked to do, and how each of its runs ended.

It is written before the first run and after every one, so that the same command goes on from it. The figures themselves
stand in the run folders, and are read there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import SourceError
from posttrain.runs.files import read_json, write_json
from posttrain.runs.records.base import Record, WholeFile, optional_key

SCHEMA = 1
PENDING, RUNNING, DONE, FAILED, INTERRUPTED, PAUSED = "pending", "running", "done", "failed", "interrupted", "paused"
"""How a run stands. Paused: at a rung, from which it may be gone on with."""


@dataclass(frozen=True, slots=True)
class SweepRun(Record):
    """One run: SweepRun("dpo.beta-0.05_seed-0", 0, {"dpo.beta": 0.05}, 0, "done", 61.2)."""

    folder: str
    """Its name inside the sweep's folder."""
    setting: int | None
    """Runs of one setting differ in their seed."""
    settings: Mapping[str, Any]
    """What is varied, without the seed."""
    seed: int | None
    status: str
    """pending, running, done, failed, interrupted or paused."""
    seconds: float | None = optional_key()
    """Of work, over all attempts; of stages that were shared, none."""
    error: str | None = optional_key()
    rungs: tuple[float | None, ...] | None = optional_key()
    """What the suite said at each rung that was reached."""


@dataclass(frozen=True, slots=True)
class SweepRecord(WholeFile):
    """sweep.json.

    SweepRecord(schema=1, name="mine-sweep", design="grid", axes=("dpo.beta=[0.05, 0.1]",), by="sums.accuracy", ...)
    """

    FILE = "sweep.json"

    schema: int | None
    name: str
    design: str
    """grid, random or optuna."""
    axes: tuple[str, ...]
    """What is varied, as it was typed."""
    date: str | None
    """The day that all runs take for today's, so that a stage is the same on the day after."""
    inputs: Mapping[str, str]
    """Hashes of the files that the runs read, by name."""
    runs: tuple[SweepRun, ...]
    by: str | None = optional_key()
    """The figure that chooses: suite.metric."""
    better: str | None = optional_key()
    """higher or lower, once it is known."""
    halving: tuple[int, ...] | None = optional_key()
    """(rungs, keep) of a sweep that stops early."""
    trials: int | None = optional_key()
    design_seed: int | None = optional_key()

    @classmethod
    def read(cls, folder: Path) -> SweepRecord | None:
        """None where no sweep has begun.

        Raises:
            SourceError: a newer version wrote it, or it is no record.
        """
        path = folder / cls.FILE
        if not path.exists():
            return None
        found = cls.from_json(read_json(path))
        if found.schema is None or found.schema > SCHEMA:
            raise SourceError(
                "this is no record of a sweep that this version can go on with",
                where=path,
                found=f"schema: {found.schema}",
                expected=f"schema: {SCHEMA}",
                remedy="go on with the version that wrote it, or give the sweep another `--name`",
            )
        return found

    def write(self, folder: Path) -> None:
        write_json(folder / self.FILE, self.to_json())
