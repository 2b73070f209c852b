"""The progress bar of a terminal, and the choice between it and plain lines. With rich, so loaded when it is needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING

from posttrain.runs.escapes import escaping, printable
from posttrain.runs.progress import Phase, PlainProgress, Progress, clock

if TYPE_CHECKING:  # what reads and writes run folders needs the standard library only
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class TerminalProgress(Progress):
    """One bar per phase; a phase that took a while leaves one line behind."""

    def __init__(
        self, console: Console, *, stall_after: float | None = 30.0, now: Callable[[], float] = time.monotonic
    ):
        super().__init__(stall_after=stall_after, now=now)
        self.console = console
        self._tasks: dict[Phase, TaskID] = {}
        self._bars: RichProgress | None = None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show_begin(self, phase: Phase) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        if self._bars is None:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[state]}", markup=False, style="dim"),
            )
            # While a bar is shown, rich takes stdout too and prints its lines above the bar, on the console's stream:
            # the rows of `posttrain score ... > rewards.jsonl` would go to the terminal, and the file would be empty.
            above = sys.stdout is not None and sys.stdout.isatty()
            self._bars = RichProgress(
                *columns, console=self.console, transient=True, refresh_per_second=4, redirect_stdout=above
            )
            self._bars.start()
        self._tasks[phase] = self._bars.add_task(phase.title, total=phase.total, completed=int(phase.done), state="")

    def show_update(self, phase: Phase) -> None:
        if self._bars is not None:
            state = phase.line().removeprefix(phase.title).strip()
            self._bars.update(self._tasks[phase], completed=phase.done, state=state)

    def show_stall(self, phase: Phase, silence: float) -> None:
        if self._bars is not None:
            self._bars.update(self._tasks[phase], state=f"no progress for {clock(silence)}")
        super().show_stall(phase, silence)

    def show_end(self, phase: Phase) -> None:
        task = self._tasks.pop(phase)
        if self._bars is not None:
            self._bars.remove_task(task)
            if not self._tasks:  # give the terminal back: the next lines may be a table
                self._bars.stop()
                self._bars = None
        if phase.is_worth_a_line:
            self.say(phase.line())

    def close(self) -> None:
        super().close()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def progress_on(console: Console) -> Progress:
    """A bar where a person looks at a terminal, plain lines in a log or a pipe."""
    return TerminalProgress(console) if console.is_terminal else PlainProgress(escaping(console.file))


def terminal_console(*, stderr: bool = False, file: IO[str] | None = None) -> Console:
    """A console whose own styles and bars reach the terminal, and whose texts reach it escaped; no markup, emoji codes
    or links out of texts."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class TerminalConsole(Console):
        # Here, and not where its lines are written: there nobody can tell an ESC of a style from one of a row, and the
        # cells of a table have their widths.
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for text, style, control in super().render(renderable, options):
                yield Segment(text if control else printable(text), style, control)

    return TerminalConsole(stderr=stderr, file=file, markup=False, emoji=False)
