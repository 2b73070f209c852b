"""Where a rank writes what it would say on a terminal: rank 0 speaks, the others have logs/rank-N.log.

The two streams are replaced below Python, so that what a library in C writes and the stacks of a crash (`faulthandler`)
are there too. What is written before the run folder is known waits in a temporary file.
"""

from __future__ import annotations

import datetime
import faulthandler
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from posttrain.runs.disk import writing
from posttrain.runs.escapes import printable

FOLDER = "logs"
STACKS = getattr(signal, "SIGUSR2", None)
"""A process writes where it stands into its log on this signal, also while native code has Python's lock."""


def log_of(folder: Path, rank: int) -> Path:
    return folder / FOLDER / f"rank-{rank}.log"


class RankLog:
    """The streams of one rank, from `open` to `close`."""

    def __init__(self, rank: int, attempt: int):
        self.rank, self.attempt = rank, attempt
        self.path: Path | None = None
        self._file: IO[bytes] | None = None
        self._before: dict[int, int] = {}
        self._was_enabled = False

    def open(self) -> None:
        """From here on a rank other than 0 writes into a file."""
        self._was_enabled = faulthandler.is_enabled()
        # The terminal stays reachable: where rank 0 is the one that died, another has to say so.
        self._before = {number: os.dup(number) for number in (1, 2)}
        if self.rank:
            self._replace(tempfile.TemporaryFile(prefix=f"posttrain-rank-{self.rank}-"))  # noqa: SIM115, closed by `close`
        # By number: under a test runner or in a notebook `sys.stderr` is no file of the system.
        faulthandler.enable(file=2, all_threads=True)

    def move_to(self, folder: Path) -> None:
        """The run folder is known: its log, and what was written until now.

        Raises:
            SourceError: the log cannot be written.
        """
        path = log_of(folder, self.rank)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b", buffering=0)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            again = f", start {self.attempt + 1}" if self.attempt else ""
            file.write(f"==== rank {self.rank}, {now}, process {os.getpid()}{again}\n".encode())
        self.path = path
        early, self._file = self._file, file
        if self.rank:
            sys.stdout.flush()
            sys.stderr.flush()
            if early is not None:
                early.seek(0)
                file.write(early.read())
                early.close()
            self._replace(file)
        if STACKS is not None:
            faulthandler.register(STACKS, file=file, all_threads=True, chain=False)

    def _replace(self, file: IO[bytes]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number in self._before:
            os.dup2(file.fileno(), number)
        self._file = file
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError):  # a notebook's or a test's own stream
                stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def dump_stacks(self, title: str) -> None:
        """Where every thread of this process stands, into its log; of rank 0 only once there is one."""
        if self._file is None:
            return
        with suppress(OSError):  # a full disk must not keep the process from ending
            self._file.write(f"\n==== {title}\n".encode())
            faulthandler.dump_traceback(file=self._file.fileno(), all_threads=True)

    def say(self, text: str) -> None:
        """A word to the terminal, from whichever rank."""
        terminal = self._before.get(2, 2)
        # A bar that was shown has hidden the cursor, and its process is about to end without showing it again.
        show_cursor = "\r\x1b[K\x1b[?25h" if os.isatty(terminal) else ""
        with suppress(OSError):
            os.write(terminal, f"{show_cursor}{printable(text)}\n".encode(errors="backslashreplace"))

    def close(self, *, restore: bool = True) -> None:
        """The end of the job for this process.

        Args:
            restore: give the streams back; not where an error is about to end a process that must not speak.
        """
        if STACKS is not None and self.path is not None:
            faulthandler.unregister(STACKS)
        sys.stdout.flush()
        sys.stderr.flush()
        if not self._was_enabled:
            faulthandler.disable()
        for number, before in self._before.items():
            if self.rank and restore:
                os.dup2(before, number)
            os.close(before)
        self._before = {}
        if self._file is not None:
            self._file.close()
            self._file = None
