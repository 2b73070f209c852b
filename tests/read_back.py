"""Reading a save back within the test's own process: seconds faster than a fresh one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers.utils import logging

from posttrain.models.folders import export, readback


class Finished:
    """A process that has already ended."""

    def __init__(self, code: int):
        self.code = code

    def wait(self, timeout: float | None = None) -> int:
        return self.code

    def poll(self) -> int:
        return self.code


def read_in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[Path], None]]]:
    """For a fixture, by `yield from`; the list takes faults to plant in the folder before it is read."""
    faults: list[Callable[[Path], None]] = []

    def start(scratch: Path) -> Finished:
        folder = Path(json.loads((scratch / "request.json").read_text())["folder"])
        for fault in faults:
            fault(folder)
        try:
            with warnings.catch_warnings():
                readback.main(str(scratch / "request.json"))
        except Exception as error:
            (scratch / "errors.txt").write_text(f"Traceback\n  File, line\n{type(error).__name__}: {error}")
            return Finished(1)
        return Finished(0)

    verbosity = logging.get_verbosity()
    monkeypatch.setattr(export, "_start", start)
    yield faults
    logging.set_verbosity(verbosity)
