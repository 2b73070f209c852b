"""What a user sees while something long runs: the phase, how far it is, tokens/s, the time left, and stalls.

    with PlainProgress(sys.stderr) as progress:
        with progress.phase("dpo: training", total=75, unit="steps") as phase:
            for batch in batches:
                phase.advance(1, tokens=5_123, note="loss 0.61")

`Progress` itself is silent; `PlainProgress` writes a line now and then, for logs and pipes; the bar for terminals is in
`runs.terminal`, the line of a notebook and the choice between them in `runs.showing`. A watcher thread says when a
phase has not moved for a while, and in a log what is under way before ten seconds are over without a line: a reward of
30 seconds, a model that is loaded, a judge that thinks. It reads two numbers and writes text: it draws no random number
and touches no tensor, so training is bit for bit the same with it and without it. Standard library only.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Self, TypeVar

AnyItem = TypeVar("AnyItem")

QUICK_SECONDS = 2.0
"""A phase that was done this fast leaves no line at its end: it would only hide those that matter."""
WINDOW_SECONDS = 30.0
"""Rates are over this much of the recent past: long enough to be steady, short enough to follow a change."""


class Phase:
    """One stretch of work, as a context manager: phase.advance() after each unit of it.

    `total` is None where the end is not known; `done` starts above 0 when a run resumes.
    """

    def __init__(self, owner: Progress, title: str, total: float | None, unit: str, done: float):
        self.title = title
        self.total = total
        self.unit = unit
        self.done = done
        self.tokens = 0
        self.note = ""
        self._owner = owner
        self.started = self.updated = owner.now()
        self._marks: deque[tuple[float, float, int]] = deque([(self.started, done, 0)])

    def advance(self, amount: float = 1, *, tokens: int = 0, note: str | None = None) -> None:
        """`amount` more units are done, `tokens` more were processed; `note` replaces the text at the line's end."""
        self.done += amount
        self.tokens += tokens
        if note is not None:
            self.note = note
        self.updated = self._owner.now()
        self._marks.append((self.updated, self.done, self.tokens))
        # Two marks stay however old they are: slower than one unit in WINDOW_SECONDS there would be no rate at all.
        while len(self._marks) > 2 and self._marks[0][0] < self.updated - WINDOW_SECONDS:
            self._marks.popleft()
        self._owner.update(self)

    def track(self, items: Iterable[AnyItem]) -> Iterator[AnyItem]:
        """The same items, each counted when it is done with."""
        for item in items:
            # Counted when the caller asks for the next one: until then the item is still being worked on.
            yield item
            self.advance()

    @property
    def elapsed(self) -> float:
        return self.updated - self.started

    @property
    def tokens_per_second(self) -> float | None:
        return self._rate(2) if self.tokens else None

    @property
    def seconds_left(self) -> float | None:
        """None while it cannot be known: nothing done yet, or no end known."""
        rate = self._rate(1)
        return None if self.total is None or not rate else max(self.total - self.done, 0) / rate

    def _rate(self, column: int) -> float | None:
        first, last = self._marks[0], self._marks[-1]
        seconds = last[0] - first[0]
        return (last[column] - first[column]) / seconds if seconds > 0 else None

    @property
    def is_worth_a_line(self) -> bool:
        """At its end: it did something, and took a while or was cut short."""
        cut_short = self.total is not None and self.done < self.total
        return self.done > 0 and (cut_short or self._owner.now() - self.started >= QUICK_SECONDS)

    def line(self) -> str:
        """dpo: training  30/75 steps  40%  5,120 tokens/s  0:45 left  loss 0.61"""
        parts = [self.title]
        if self.total is None:
            parts.append(f"{self.done:,.0f} {self.unit}")
        else:
            parts.append(f"{self.done:,.0f}/{self.total:,.0f} {self.unit}")
            parts.append(f"{self.done / self.total:.0%}" if self.total else "100%")
        if (rate := self.tokens_per_second) is not None:
            parts.append(f"{rate:,.0f} tokens/s")
        if (left := self.seconds_left) is not None:
            parts.append(f"{clock(left)} left" if left else f"in {clock(self.elapsed)}")
        return "  ".join([*parts, self.note] if self.note else parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._owner.note_leaving(error)
        self._owner.end(self)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands: Standing("grpo: training", "score", 12.0, 30.0, "steps", seconds=4.1, silence=4.1)."""

    phase: str | None
    """Title of the innermost phase; None between phases."""
    activity: str | None
    """The part of the phase that is under way: generate, score, update, ..."""
    done: float
    total: float | None
    unit: str
    seconds: float
    """Since the activity began, or the phase where there is none."""
    silence: float
    """Seconds since anything moved."""

    def line(self) -> str:
        """grpo: training  12/30 steps  `score` for 0:04"""
        if self.phase is None:
            return f"{self.activity or 'still working, between two phases'}: {clock(self.seconds)}"
        of = "" if self.total is None else f"/{self.total:,.0f}"
        doing = f"`{self.activity}`" if self.activity else "under way"
        return f"{self.phase}  {self.done:,.0f}{of} {self.unit}  {doing} for {clock(self.seconds)}"

    @property
    def words(self) -> str:
        """`score`, at 12 of 30 steps of grpo: training"""
        if self.phase is None:
            return "between two phases" if self.activity is None else f"`{self.activity}`"
        of = "" if self.total is None else f" of {self.total:,.0f}"
        at = f"at {self.done:,.0f}{of} {self.unit} of {self.phase}"
        return at if self.activity is None else f"`{self.activity}`, {at}"


class Progress:
    """Shows nothing; the base of those that show something. Phases may nest; the innermost is shown and watched."""

    def __init__(self, *, stall_after: float | None = None, now: Callable[[], float] = time.monotonic):
        """`stall_after`: seconds without an update after which the phase is said to stall; None: never."""
        self.now = now
        self.stall_after = stall_after
        self._phases: list[Phase] = []
        self._activities: list[tuple[str, float, int]] = []
        """Name, beginning, and how many phases it is within: of an activity around a phase, the phase is told."""
        self._moved = now()
        self._said_stalled: float | None = None
        # By its number: an error keeps the frames that it came through, and all tensors in them.
        self._leaving: tuple[int, str] | None = None
        # Reentrant: what shows something calls `say`, which takes the lock again.
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # To another process, which has a terminal of its own or none: it shows nothing there.
        return Progress, ()

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""

    def phase(self, title: str, total: float | None = None, unit: str = "rows", done: float = 0) -> Phase:
        phase = Phase(self, title, total, unit, done)
        with self._lock:
            # A new phase has a silence of its own; the stall of the one around it is over, since something moves.
            self._phases.append(phase)
            self._said_stalled = self._leaving = None
            self._watch()
            self.show_begin(phase)
        return phase

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Name the part of a phase that is under way, so that a stall can be told by its name."""
        self._enter(activity)
        try:
            yield
        except BaseException as error:
            self.note_leaving(error)
            raise
        finally:
            with self._lock:
                self._activities.pop()
                self._move()

    def _enter(self, activity: str) -> None:
        with self._lock:
            self._move()
            self._activities.append((activity, self._moved, len(self._phases)))

    def _move(self) -> None:
        """Something went on; say so if it had been said to stand still."""
        self._moved = self.now()
        if self._said_stalled is not None and self._phases:
            self.say(f"{self._phases[-1].title}: goes on")
        self._said_stalled = None

    def standing(self) -> Standing:
        """What is under way, and since when; for a watcher in another thread."""
        with self._lock:
            now = self.now()
            phase = self._phases[-1] if self._phases else None
            activity = self._activity()
            moved = max(self._moved, phase.updated) if phase is not None else self._moved
            began = activity[1] if activity is not None else phase.started if phase is not None else moved
            return Standing(
                None if phase is None else phase.title,
                None if activity is None else activity[0],
                0 if phase is None else phase.done,
                None if phase is None else phase.total,
                "" if phase is None else phase.unit,
                now - began,
                now - moved,
            )

    def note_leaving(self, error: BaseException | None) -> None:
        """An error leaves a phase or an activity: the innermost that it leaves is where it arose."""
        if error is not None and (self._leaving is None or self._leaving[0] != id(error)):
            self._leaving = (id(error), self.standing().words)

    def left_at(self, error: BaseException) -> str | None:
        """What was under way when the error arose; None of one that has left nothing."""
        return self._leaving[1] if self._leaving is not None and self._leaving[0] == id(error) else None

    def _activity(self) -> tuple[str, float, int] | None:
        """What is under way within the innermost phase, or outside of all."""
        last = self._activities[-1] if self._activities else None
        # An activity that was begun around the innermost phase is no part of it: a stall there is the phase's own.
        return last if last is not None and last[2] == len(self._phases) else None

    def update(self, phase: Phase) -> None:
        with self._lock:
            self._move()
            self.show_update(phase)

    def end(self, phase: Phase) -> None:
        with self._lock:
            # By membership, not from the end: an error may leave an outer phase before the inner one.
            if phase in self._phases:
                self._phases.remove(phase)
                self.show_end(phase)
            self._said_stalled = None
            self._moved = self.now()
            if self._phases:  # the outer phase did not stand still: its inner one worked
                self._phases[-1].updated = self.now()

    def check_stall(self) -> None:
        """Say that the innermost phase stalls if it does; again each time the silence has doubled."""
        with self._lock:
            if not self._phases or self.stall_after is None:
                return
            phase = self._phases[-1]
            # Progress inside of a step (tokens, a change of activity) counts too: a step of minutes is no stall.
            silence = self.now() - max(phase.updated, self._moved)
            limit = self.stall_after if self._said_stalled is None else 2 * self._said_stalled
            if silence >= limit:
                self._said_stalled = silence
                self.show_stall(phase, silence)

    # -- what a kind of progress shows

    def show_begin(self, phase: Phase) -> None:
        """A phase began."""

    def show_update(self, phase: Phase) -> None:
        """A phase moved."""

    def show_end(self, phase: Phase) -> None:
        """A phase ended, by its end or by an error."""

    def show_stall(self, phase: Phase, silence: float) -> None:
        activity = self._activity()
        doing = f"`{activity[0]}`, " if activity else ""
        at = f"{doing}at {phase.done:,.0f} {phase.unit}"
        self.say(f"{phase.title}: no progress for {clock(silence)} ({at}); still waiting")

    # -- the watcher

    def _watch(self) -> None:
        if self._watcher is None and self.stall_after is not None:
            self._stop.clear()
            self._watcher = threading.Thread(target=self._look, name="posttrain-stall-watcher", daemon=True)
            self._watcher.start()

    def _look(self) -> None:
        interval = self._interval()
        while not self._stop.wait(interval):
            self.check_stall()

    def _interval(self) -> float:
        """Seconds between two looks."""
        # Four looks within the limit, so that a stall is said at most a quarter too late.
        return min(1.0, (self.stall_after or 1.0) / 4)

    def close(self) -> None:
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class PlainProgress(Progress):
    """Lines for a log or a pipe: at a phase's begin and end, and at most one every `every` seconds between."""

    def __init__(
        self,
        stream: IO[str],
        *,
        every: float = 10.0,
        stall_after: float | None = 60.0,
        now: Callable[[], float] = time.monotonic,
    ):
        super().__init__(stall_after=stall_after, now=now)
        self.stream = stream
        self.every = every
        self._last_line = float("-inf")
        self._quiet = 0
        """Lines in a row that said only that something is still under way."""

    def __enter__(self) -> Self:
        """From here on no more than `every` seconds pass without a line, phase or not."""
        self._last_line = self.now()
        # Also without `stall_after`, where no phase starts it: the lines of `check_quiet` come from the same thread.
        if self._watcher is None:
            self._stop.clear()
            self._watcher = threading.Thread(target=self._look, name="posttrain-stall-watcher", daemon=True)
            self._watcher.start()
        return self

    def say(self, text: str) -> None:
        with self._lock:
            print(text, file=self.stream, flush=True)

    def check_stall(self) -> None:
        super().check_stall()
        self.check_quiet()

    def check_quiet(self) -> None:
        """Say what is under way if nothing was said for `every` seconds; while it is the same, at twice that, and so
        on: the log of a night must not have a line for every ten seconds of it. A stall that was said stands for it."""
        with self._lock:
            if self._said_stalled is not None or self.now() - self._last_line < self.every * 2**self._quiet:
                return
            self.say(self.standing().line())
            self._last_line = self.now()
            self._quiet += 1

    def _move(self) -> None:
        super()._move()
        self._quiet = 0

    def _interval(self) -> float:
        return min(super()._interval(), self.every / 4)

    def show_begin(self, phase: Phase) -> None:
        total = "" if phase.total is None else f", {phase.total:,.0f} {phase.unit}"
        self.say(f"{phase.title}{total}")
        self._last_line = self.now()
        self._quiet = 0

    def show_update(self, phase: Phase) -> None:
        if self.now() - self._last_line >= self.every:
            self.say(phase.line())
            self._last_line = self.now()

    def show_end(self, phase: Phase) -> None:
        if phase.is_worth_a_line:
            self.say(phase.line())
        self._last_line = self.now()
        self._quiet = 0


def clock(seconds: float) -> str:
    """45 -> "0:45", 3725 -> "1:02:05"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
