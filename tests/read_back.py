"""Reading a save back without the seconds that a fresh interpreter takes to import torch and transformers.

The suite reads back in processes that are forked from a server which has imported them (`tests/forked.py`); a test that
plants faults reads within its own process. `tests/unit/models/folders/test_export.py`, the contract on merging and
whatever calls the command line in a process of its own read back as users do.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers.utils import logging

from posttrain.models.folders import export, readback
from tests.forked import Forked

OWN_INTERPRETER = export._start
"""How users' saves are read back."""


def forked(scratch: Path) -> Forked:
    """The same by a process that is forked, for `export._start`."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return Forked(Path(readback.__file__), scratch / "request.json", scratch / "errors.txt", variables)


@contextmanager
def in_own_interpreter() -> Iterator[None]:
    """Saves that begin inside are read back as users' are."""
    before, export._start = export._start, OWN_INTERPRETER
    try:
        yield
    finally:
        export._start = before


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
