"""What asks a run to end, and when it does: Ctrl-C, SIGTERM and SIGHUP, so that nothing that was computed is lost.

    with ending_signals():                       # around a command, or a training from Python
        ...                                      # outside of steps: Stopped, at once, as Ctrl-C would
        with deferred_interrupt() as interrupted:
            step()                               # within them: after the step under way
            if interrupted(): save()

SIGTERM is what a scheduler, a container and a spot machine send before they kill; SIGHUP comes when a terminal is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from posttrain.parallel.stopping import Stopped

__all__ = ["ENDING", "Stopped", "deferred_interrupt", "ending_signals", "heed"]

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Ending:
    """The handler of SIGTERM and SIGHUP: the first one raises or is noted, the others change nothing.

    A second Ctrl-C is a person who does not want to wait. A second SIGTERM is a scheduler that repeats itself
    (`timeout` always sends two), and must not tear the checkpoint that the first one asked for.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.is_deferred = False
        self._process = os.getpid()
        self._terminals = [stream.fileno() for stream in (sys.__stdout__, sys.__stderr__) if stream and _is_tty(stream)]

    def __call__(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            # A forked worker has inherited this handler, and its parent means it to end.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._leave_dead_terminals()
        if self.asked is not None:
            return
        self.asked = number
        if not self.is_deferred:
            raise Stopped(number)

    def _leave_dead_terminals(self) -> None:
        """A word to a terminal that is gone is an OSError, and would end the run before it has saved."""
        for terminal in self._terminals:
            if not os.isatty(terminal):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, terminal)
                os.close(nowhere)


def _is_tty(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except ValueError:  # closed
        return False


@contextmanager
def ending_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Stopped inside, or wait for the end of a step.

    What is ignored stays so (`nohup`). A program's own handler is called when all is saved, and is there again then.
    Signals reach the main thread only; elsewhere nothing is changed.
    """
    before = _handlers()
    if not before or any(isinstance(handler, _Ending) for handler in before.values()):
        yield
        return
    ending = _Ending()
    for number in before:
        signal.signal(number, ending)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        own = before.get(ending.asked) if ending.asked is not None else None
        if callable(own):
            own(ending.asked, None)


def _handlers() -> dict[int, Any]:
    """Of the signals that may be handled here. None as a handler is one of another language, which cannot be put
    back."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in ENDING}
    return {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], int | None]]:
    """Gives a function that says which signal asked for the end: Ctrl-C, or one of `ending_signals`; None if none has.
    A second Ctrl-C ends the run at once.

    Signals reach the main thread only; elsewhere an interrupt is what it always is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    ending = next((handler for handler in map(signal.getsignal, ENDING) if isinstance(handler, _Ending)), None)
    pressed = threading.Event()

    def press(number: int, frame: Any) -> None:
        # The step may be a long one, or hang.
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    def asked() -> int | None:
        return signal.SIGINT if pressed.is_set() else ending.asked if ending is not None else None

    before = signal.signal(signal.SIGINT, press)
    if ending is not None:
        ending.is_deferred = True
    try:
        yield asked
    # Whoever runs several stages, or a notebook, has a handler of its own.
    finally:
        if ending is not None:
            ending.is_deferred = False
        signal.signal(signal.SIGINT, before)
    # It came after the last look. The handler takes only the first signal, so this one would be lost for good.
    if (number := asked()) is not None:
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(number)


def heed(number: int) -> None:
    """Take a signal that another rank of the job was sent as one that came here: what the launcher forwards while this
    rank leaves, its checkpoint and its report half written, then changes nothing."""
    for handler in map(signal.getsignal, ENDING):
        if isinstance(handler, _Ending) and handler.asked is None:
            handler.asked = number
            return
