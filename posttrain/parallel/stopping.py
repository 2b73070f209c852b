"""The error by which a signal ends a program, and its exit code; `training.interrupts` has the handlers."""

from __future__ import annotations

import signal


class Stopped(KeyboardInterrupt):
    """A signal asked for the end; like Ctrl-C it passes every `except Exception`.

    Stopped(15, "stopped after step 3 of 8, with a checkpoint").code == 143
    """

    def __init__(self, number: int, words: str = ""):
        self.number = number
        super().__init__(words or f"stopped by {signal.Signals(number).name}")

    @property
    def code(self) -> int:
        """The exit code that shells give to a process that a signal ended."""
        return exit_code(self.number)


def exit_code(number: int) -> int:
    """exit_code(signal.SIGTERM) -> 143"""
    return 128 + number


def signal_of(code: int) -> int | None:
    """The signal that an orderly end with this exit code was for: signal_of(143) -> 15; None of other codes."""
    number = code - 128
    return number if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) else None


def number_of(stop: KeyboardInterrupt) -> int:
    """The signal behind it; Ctrl-C raises the bare class."""
    return stop.number if isinstance(stop, Stopped) else int(signal.SIGINT)
