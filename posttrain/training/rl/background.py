"""Sampling and scoring beside the training: one task for each prompt that was asked, on an event loop of its own.

    background = Background(engine, finish, loop=ThreadLoop(), in_flight=24, scored_at_once=1)
    background.start(asked, requests)
    groups = background.wait(lambda: queue.ready(step, 8))       # the trainer's thread stands still here, and only here
    background.close()

An engine in another process samples while the trainer computes: its loop runs in a thread (`ThreadLoop`). An engine on
the trainer's own weights must not, since they move in the middle of a forward pass: its loop runs in the trainer's
thread, while that waits (`TurnLoop`). What is being sampled then stands still during an update and goes on afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from posttrain.rollout.engine import Completion, Engine, Request
from posttrain.training.rl.group_queue import LiveGroup
from posttrain.training.rl.rollouts import Group

T = TypeVar("T")
SCORING_SECONDS = 5.0
"""For which a group that is being scored holds up the end of a run."""
Finish = Callable[[LiveGroup, Sequence[Completion]], Group]
"""From completions to a scored group; called in a thread of its own."""


class EngineLoop(Protocol):
    """Where the requests live."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it on the loop and wait for it, beside all that is under way there."""
        ...

    def close(self) -> None: ...


class ThreadLoop:
    """A loop in a thread of its own, which goes on while nobody waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon: whatever ends the trainer must not wait for a server's answer.
        self._thread = threading.Thread(target=self._loop.run_forever, name="posttrain-rollout", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C comes here, while the work goes on there
            future.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class TurnLoop:
    """A loop that runs in the caller's thread, while it waits, and stands still otherwise."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._turn(work)
        # In a notebook this thread has a loop already, in which no other can run; it waits here all the same.
        with ThreadPoolExecutor(1) as apart:
            return apart.submit(self._turn, work).result()

    def _turn(self, work: Coroutine[Any, Any, T]) -> T:
        task = self._loop.create_task(work)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            task.cancel()
            raise

    def close(self) -> None:
        self._loop.close()


@dataclass(frozen=True, slots=True)
class Load:
    """What the engine did since it was last asked: Load(seconds=2.0, busy=1.5, in_flight=12.3)."""

    seconds: float
    busy: float
    """Seconds in which it had a request."""
    in_flight: float
    """Requests, a mean over the time."""


class LoadMeter:
    """Requests in flight over time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._count, self._standing = 0, False
        self._began = self._last = clock()
        self._busy = self._area = 0.0

    def add(self, requests: int) -> None:
        self._advance()
        self._count += requests

    def stand_still(self, standing: bool) -> None:
        """Whether the engine makes no progress, whatever it was asked."""
        self._advance()
        self._standing = standing

    def take(self) -> Load:
        self._advance()
        seconds = self._last - self._began
        load = Load(seconds, self._busy, self._area / seconds if seconds else 0.0)
        self._began, self._busy, self._area = self._last, 0.0, 0.0
        return load

    def _advance(self) -> None:
        now = self._clock()
        if self._count and not self._standing:
            self._busy += now - self._last
            self._area += (now - self._last) * self._count
        self._last = now


class Background:
    """See the module's docstring.

    Args:
        finish: makes the group of its completions, once all are there.
        in_flight: prompts that are sampled at a time; the others wait for their turn in the order of their asking.
        scored_at_once: prompts whose completions are scored at a time.
    """

    def __init__(self, engine: Engine, finish: Finish, *, loop: EngineLoop, in_flight: int, scored_at_once: int):
        self._engine, self._finish, self._loop = engine, finish, loop
        self._in_turns = isinstance(loop, TurnLoop)
        self._slots = asyncio.Semaphore(in_flight)
        self._changed = asyncio.Event()
        self._scorers = ThreadPoolExecutor(scored_at_once, thread_name_prefix="posttrain-score")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._scoring: set[Future[Group]] = set()
        self._error: BaseException | None = None
        self._closed = False
        self.meter = LoadMeter()
        self.meter.stand_still(self._in_turns)

    def start(self, asked: Sequence[tuple[LiveGroup, Sequence[Request]]]) -> None:
        """Begin to sample; each is whole when its `group` is there."""
        self._loop.run(self._start(asked))

    def drop(self, groups: Sequence[LiveGroup]) -> None:
        """End what is sampled or scored for them."""
        self._loop.run(self._cancel([one.task for one in groups if one.task is not None]))

    def wait(self, found: Callable[[], T | None]) -> T:
        """What `found` gives, as soon as it is not None; asked again whenever a group has become whole.

        Raises:
            Exception: sampling or scoring failed; as it was raised there, and at every call from then on.
        """
        if not self._in_turns:
            return self._loop.run(self._until(found))
        self.meter.stand_still(False)
        try:
            return self._loop.run(self._until(found))
        finally:
            self.meter.stand_still(True)

    def close(self) -> None:
        """End everything; what has been sampled is lost with it, what has been scored is on disk. A group that is being
        scored is waited for, if it does not take long: a reward may never return."""
        if self._closed:
            return
        self._closed = True
        self._loop.run(self._cancel(list(self._tasks)))
        self._scorers.shutdown(wait=False, cancel_futures=True)
        wait(list(self._scoring), timeout=SCORING_SECONDS)
        self._loop.close()

    # ------------------------------------------------------------ on the loop

    async def _start(self, asked: Sequence[tuple[LiveGroup, Sequence[Request]]]) -> None:
        for one, requests in asked:
            one.task = asyncio.get_running_loop().create_task(self._sample(one, requests))
            self._tasks.add(one.task)
            one.task.add_done_callback(self._ended)

    async def _sample(self, one: LiveGroup, requests: Sequence[Request]) -> None:
        async with self._slots:
            one.started = self._engine.policy_version
            asked = [asyncio.ensure_future(self._complete(request)) for request in requests]
            try:
                completions = await asyncio.gather(*asked)
            except BaseException:
                # The others of its group would be sampled for nobody.
                await self._cancel(asked)
                raise
        scoring = self._scorers.submit(self._finish, one, completions)
        self._scoring.add(scoring)
        scoring.add_done_callback(self._scoring.discard)
        one.group = await asyncio.wrap_future(scoring)
        self._changed.set()

    async def _complete(self, request: Request) -> Completion:
        self.meter.add(1)
        try:
            return await self._engine.generate_one(request)
        finally:
            self.meter.add(-1)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The first is the cause; a server that is gone fails every request that it had.
            self._error = self._error or error
            self._changed.set()

    async def _until(self, found: Callable[[], T | None]) -> T:
        while True:
            if self._error is not None:
                raise self._error
            if (value := found()) is not None:
                return value
            self._changed.clear()
            await self._changed.wait()

    async def _cancel(self, tasks: Sequence[asyncio.Future[Any]]) -> None:
        for task in tasks:
            task.cancel()
        for task in tasks:
            # What it raised is known: a prompt's own task has noted it, and of a group's requests the first is raised.
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
