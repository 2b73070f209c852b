"""Which progress a program sees that asked for none in particular: a bar, a notebook's line, lines of a log, nothing.

    with showing(None) as progress:        # as the surroundings have it
    with showing(False) as progress:       # nothing
    with showing(PlainProgress(log)) as progress:   # the caller's own, which stays open

The functions of the Python API take `progress` in these three forms. Only `runs.terminal` needs rich, only a notebook
IPython, and both are imported where they are shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from posttrain.arguments import wrong_argument
from posttrain.runs.escapes import escaping, printable
from posttrain.runs.progress import Phase, PlainProgress, Progress

Shown = Progress | bool | None
"""What the argument `progress` may be."""
LOG_SECONDS = 60.0
"""Between two lines of a log that nobody asked for."""
NOTEBOOK_SECONDS = 0.5
"""Between two changes of a notebook's line: each is a message to the browser, and is stored while the cell runs."""


@contextmanager
def showing(progress: Any, *, in_logs: bool = False) -> Iterator[Progress]:
    """The progress that the argument stands for; what was made here is closed at the end, what was passed is not.

    Args:
        progress: a Progress is used as it is; None shows it where a person looks, True everywhere, False nowhere.
        in_logs: with None, also write seldom lines where stderr is a file or a pipe: for work of hours, whose log must
            not look dead. Short work is silent there.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(progress, Progress):
        yield progress
        return
    if progress is not None and not isinstance(progress, bool):
        raise wrong_argument(
            "progress",
            progress,
            expected="None (shown where a person looks), False (silent), True, or a Progress",
            remedy="write `progress=False` to silence it, or leave `progress` out",
        )
    shown = Progress() if progress is False else _surroundings(always=progress is True or in_logs)
    with shown:
        yield shown


def _surroundings(*, always: bool) -> Progress:
    if in_notebook():
        return NotebookProgress()
    stream = sys.stderr
    # stderr, so that what a program prints can be piped on; None under pythonw, and closed in some services.
    if stream is None or stream.closed:
        return Progress()
    if stream.isatty():
        from posttrain.runs.terminal import TerminalProgress, terminal_console

        return TerminalProgress(terminal_console(file=stream))
    return PlainProgress(escaping(stream), every=LOG_SECONDS) if always else Progress()


def in_notebook() -> bool:
    """Whether this runs in a kernel whose output is a page: Jupyter, VS Code, Colab."""
    # Asked of what is loaded already: in a notebook IPython is, and importing it elsewhere would take a second.
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)


class NotebookProgress(Progress):
    """One line of the cell's output for each phase under way, rewritten in place; it goes when the phase ends.

    A display that is updated, and no carriage returns or cursor codes: those a saved notebook shows as garbage.
    """

    def __init__(self, *, stall_after: float | None = 30.0, now: Callable[[], float] = time.monotonic):
        super().__init__(stall_after=stall_after, now=now)
        self._lines: dict[Phase, Any] = {}
        self._last = 0.0

    def say(self, text: str) -> None:
        print(printable(text), flush=True)

    def show_begin(self, phase: Phase) -> None:
        display = import_module("IPython.display").display  # a notebook has it
        self._lines[phase] = display(_Line(f"{phase.title} ..."), display_id=True)

    def show_update(self, phase: Phase) -> None:
        if self.now() - self._last >= NOTEBOOK_SECONDS:
            self._last = self.now()
            self._write(phase, phase.line())

    def show_end(self, phase: Phase) -> None:
        self._write(phase, phase.line() if phase.is_worth_a_line else "")
        self._lines.pop(phase, None)

    def _write(self, phase: Phase, text: str) -> None:
        if (line := self._lines.get(phase)) is not None:  # None outside of a cell
            line.update(_Line(text))


class _Line:
    """Text that a notebook shows as it is, without the quotes of a str."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text
