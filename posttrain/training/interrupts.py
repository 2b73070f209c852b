"""Ctrl-C ends a run after the step under way, so that what it has computed is not lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed; a second one ends the run at once.

    Signals reach the main thread only; elsewhere an interrupt is what it always is.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: Any) -> None:
        # The step may be a long one, or hang.
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    # Whoever runs several stages, or a notebook, has a handler of its own.
    finally:
        signal.signal(signal.SIGINT, before)
