"""The engines in a thread of their own, and the queue before them.

    async with thread.submit([Row(engine, prompt, sampling, completion=k) for k in range(n)]) as job:
        async for events in job: ...        # [Event(row=0, token=SampledToken(...)), ...] as they are sampled

A step of the model takes milliseconds in which its loop does nothing else; the server's own loop goes on meanwhile,
reads requests, and writes to its clients. All requests share the steps of their engine's batch. What leaves an
`async with` early, since its client is gone, leaves the batch before the next step.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from posttrain.rollout.engine import Completion, Engine, Request, SampledToken
from posttrain.sampling import SamplingDistribution
from posttrain.serve.metrics import Meter
from posttrain.serve.refusals import RequestRefused

Result = TypeVar("Result")

LONGEST_WAIT = 60
"""Seconds of the largest Retry-After; OpenAI's client does not retry at all where it is above 120."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One completion that a client asks for: Row(engine, (1, 70, 71), sampling, completion=0)."""

    engine: Engine
    prompt: Sequence[int]
    sampling: SamplingDistribution
    completion: int = 0
    alternatives: int | None = None


class Event(NamedTuple):
    """What happened to a row: a token, or its end. Event(row=0, token=SampledToken(52, -0.1, None))."""

    row: int
    token: SampledToken | None = None
    ended: Completion | Exception | None = None


@dataclass(eq=False)
class Job:
    """The rows of one client's request, from the server's loop; see the module."""

    rows: Sequence[Row]
    _thread: EngineThread
    _events: list[Event] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _open: set[int] = field(default_factory=set)
    """Rows that have not ended."""
    _started: set[int] = field(default_factory=set)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    """Of the engine's loop, which alone touches them."""
    left: int = 0
    """Most tokens that its open rows may still have."""

    async def __aenter__(self) -> Job:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._thread.leave(self)

    async def __aiter__(self) -> AsyncIterator[list[Event]]:
        """Events in the order in which they happened, all since the last look at once; ends with the last row."""
        while self._open or self._events:
            await self._arrived.wait()
            self._arrived.clear()
            events, self._events = self._events, []
            if events:
                yield events

    def take(self, event: Event) -> None:
        """Called on the server's loop."""
        self._events.append(event)
        self._arrived.set()


class EngineThread:
    """Args:
    max_rows: completions that are sampled at a time.
    max_waiting: completions that may wait beyond those; more are refused with 429.
    """

    def __init__(self, max_rows: int, max_waiting: int, meter: Meter | None = None):
        self.max_rows, self.max_waiting = max_rows, max_waiting
        self.meter = meter or Meter()
        self._jobs: set[Job] = set()
        self._rows = 0
        """Rows in flight, waiting ones among them, and calls."""
        self._server: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._outbox: list[tuple[Job, Event]] = []
        self._outbox_lock = threading.Lock()
        self._closing = False

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Begins the thread; called on the server's loop, where all events arrive."""
        self._server = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        # A daemon: a process that is told to end at once must not wait for a step.
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name="posttrain-engine", daemon=True)
        self._thread.start()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()

    async def close(self) -> None:
        """Ends every row and the thread."""
        self.refuse_new()
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop = None

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def refuse_new(self) -> None:
        """From now on nothing is taken: the server is ending."""
        self._closing = True

    def abort(self) -> None:
        """Ends every row with what it has; each comes back as ABORTED."""
        for engine in {row.engine for job in self._jobs for row in job.rows}:
            engine.abort()

    # ------------------------------------------------------------ the server's loop

    def submit(self, rows: Sequence[Row]) -> Job:
        """The rows join their engines' batches at the next step.

        Raises:
            RequestRefused: the queue is full (429), the rows would never fit it (400), or the server is ending (503).
        """
        self._admit(len(rows))
        job = Job(rows, self)
        job._open = set(range(len(rows)))
        job.left = sum(row.sampling.max_new_tokens for row in rows)
        self._jobs.add(job)
        self.meter.waiting += len(rows)
        self.meter.prompt_tokens += sum(len(row.prompt) for row in rows)
        self._to_engine(self._begin, job)
        return job

    async def call(self, function: Callable[[], Result]) -> Result:
        """The result of a function that computes with a model, between two steps of the engines.

        Raises what the function raises, and as `submit`.
        """
        self._admit(1)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def answer(result: Result | None, error: Exception | None) -> None:
            if future.done():  # its client is gone
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def compute() -> None:
            assert self._server is not None
            if future.cancelled():
                return
            try:
                result, failed = function(), None
            except Exception as error:  # the boundary: it is raised again where it was asked for
                result, failed = None, error
            self._server.call_soon_threadsafe(answer, result, failed)

        try:
            self._to_engine(compute)
            return await future
        finally:
            self._rows -= 1

    def leave(self, job: Job) -> None:
        """Frees what a job still has; of one that has ended, nothing."""
        self._jobs.discard(job)
        if not job._open:
            return
        self.meter.finishes["cancelled"] += len(job._open)
        self._forget_rows(job, set(job._open))
        self._to_engine(self._cancel, job)

    def _admit(self, count: int) -> None:
        if self._closing:
            raise RequestRefused(
                "the server is ending",
                status=503,
                code="server_ending",
                remedy="ask again when it is back",
                headers={"Retry-After": "5"},
            )
        room = self.max_rows + self.max_waiting
        if count > room:
            raise RequestRefused(
                "the request asks for more completions than the queue holds",
                code="too_many_completions",
                found=f"{count} completions (prompts times `n`)",
                expected=f"at most {room}",
                remedy="ask in several requests, or start the server with a larger `--max-waiting`",
            )
        if self._rows + count > room:
            wait = self._wait_for(self._rows + count - room)
            raise RequestRefused(
                "the queue is full",
                status=429,
                code="queue_full",
                found=f"{self._rows} completions asked for and not ended, and {count} more",
                expected=f"at most {self.max_rows} that are sampled and {self.max_waiting} that wait",
                remedy=f"ask again in about {wait} s",
                headers={"Retry-After": str(wait)},
            )
        if self._rows == 0:
            self.meter.busy_since = time.monotonic()
        self._rows += count

    def _wait_for(self, count: int) -> int:
        """Seconds until about `count` rows have ended: their share of the tokens to come, by tokens/s; 1 where nothing
        is known yet."""
        left, rate = sum(job.left for job in self._jobs), self.meter.busy_rate()
        if rate <= 0:
            return 1
        return max(1, min(LONGEST_WAIT, math.ceil(left * count / max(1, self._rows) / rate)))

    def _forget_rows(self, job: Job, rows: set[int]) -> None:
        for row in rows:
            job._open.discard(row)
            self._rows -= 1
            if row in job._started:
                self.meter.running -= 1
            else:
                self.meter.waiting -= 1

    def _flush(self) -> None:
        """Hands on what the engines have done since the last time."""
        with self._outbox_lock:
            outbox, self._outbox = self._outbox, []
        tokens = 0
        for job, event in outbox:
            if event.row not in job._open:  # its client is gone
                continue
            if event.token is not None:
                tokens += 1
                job.left -= 1
                if event.row not in job._started:
                    job._started.add(event.row)
                    self.meter.waiting -= 1
                    self.meter.running += 1
            if event.ended is not None:
                reason = str(event.ended.finish) if isinstance(event.ended, Completion) else "failed"
                self.meter.finishes[reason] += 1
                sampled = len(event.ended.ids) if isinstance(event.ended, Completion) else 0
                job.left -= max(0, job.rows[event.row].sampling.max_new_tokens - sampled)
                self._forget_rows(job, {event.row})
            job.take(event)
        if tokens:
            self.meter.count_tokens(tokens)

    def _to_engine(self, function: Callable[..., object], *arguments: object) -> None:
        if self._loop is None:
            raise RuntimeError("the engine's thread has not been started, or has ended")
        self._loop.call_soon_threadsafe(function, *arguments)

    # ------------------------------------------------------------ the engine's loop

    def _begin(self, job: Job) -> None:
        assert self._loop is not None
        job.tasks = [self._loop.create_task(self._sample(job, index)) for index in range(len(job.rows))]

    def _cancel(self, job: Job) -> None:
        for task in job.tasks:
            task.cancel()

    async def _sample(self, job: Job, index: int) -> None:
        row = job.rows[index]
        request = Request(
            row.prompt,
            row.sampling,
            completion=row.completion,
            alternatives=row.alternatives,
            on_token=lambda token: self._post(job, Event(index, token=token)),
        )
        try:
            ended: Completion | Exception = await row.engine.generate_one(request)
        except Exception as error:  # the boundary: this row's client is told, and nobody else
            ended = error
        self._post(job, Event(index, ended=ended))

    def _post(self, job: Job, event: Event) -> None:
        # One call into the other loop for all that a step has done: each of them wakes it.
        assert self._server is not None
        with self._outbox_lock:
            self._outbox.append((job, event))
            first = len(self._outbox) == 1
        if first:
            self._server.call_soon_threadsafe(self._flush)
