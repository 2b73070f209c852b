"""Small parts of the loop: several updates as one step, many rows a slice at a time, Ctrl-C after the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from posttrain.diagnostics import metrics as metric_tools
from posttrain.outputs import Mean, Metric, Total
from posttrain.runs.progress import Phase
from posttrain.training.optimizer import Update
from posttrain.training.step import Measured
from posttrain.types import TokenTree


def together(parts: Sequence[Measured]) -> Measured:
    """The updates of one step as one."""
    if len(parts) == 1:
        return parts[0]
    return Measured(metric_tools.merge([one.metrics for one in parts]), tokens=sum(one.tokens for one in parts))


def of_updates(updates: Sequence[Update], tokens_per_second: float) -> dict[str, float]:
    """What is written of a step's updates; nothing where none was made."""
    if not updates:
        return {}
    norm = Mean(sum(update.grad_norm for update in updates), len(updates)).value
    rate = updates[-1].learning_rate
    return {"grad_norm": norm, "learning_rate": rate, "tokens_per_second": tokens_per_second}


def in_slices(
    trees: Sequence[TokenTree],
    bounds: Sequence[tuple[int, int]],
    call: Callable[[Sequence[TokenTree], int], Measured],
    phase: Phase,
) -> Measured:
    """Measure a long sequence a slice at a time, so that the trees of a memory-mapped data set pass through."""
    parts: list[dict[str, Metric]] = []
    per_tree: dict[str, list[float]] = {}
    rows: list[Any] = []
    for start, end in bounds:
        taken = [trees[i] for i in range(start, end)]
        measured = call(taken, start)
        parts.append({k: m for k, m in measured.metrics.items() if not isinstance(m, Total)})
        for name, column in measured.per_tree.items():
            per_tree.setdefault(name, []).extend(column)
        rows.extend(measured.rows)
        phase.advance(len(taken), tokens=measured.tokens)
    return Measured(metric_tools.merge(parts), per_tree, tuple(rows))


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends the run after the step under way; a second one ends it at once.

    Signals reach the main thread only; elsewhere an interrupt is what it always is.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
