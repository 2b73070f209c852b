"""A stage's folder as ranks other than 0 have it: one process writes a run folder, and all others only compute.

    folder = QuietFolder(path)      # where a StageFolder is wanted: append, write, forget do nothing

What it holds is read as by anybody. Rank 0 may be writing at that moment, so that whatever decides something is read by
rank 0 for all (`world().agreed`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from posttrain.runs.folder import StageFolder
from posttrain.runs.records.base import LogLine, WholeFile
from posttrain.runs.records.stage import StageRecord


class QuietFolder(StageFolder):
    """See the module's docstring."""

    def write_stage(self, **changes: Any) -> StageRecord:
        """The record of the changes alone; nothing is written."""
        return replace(StageRecord(), **changes)

    def write_config(self, text: str) -> None:
        return None

    def write(self, document: WholeFile) -> None:
        return None

    def append(self, line: LogLine) -> None:
        return None

    def truncate_after(self, step: int, *, measured: bool = True) -> None:
        return None

    def forget_logs(self) -> None:
        return None
