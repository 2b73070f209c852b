"""Requests that come one by one, on an engine that samples in this process: they share its steps.

    queue = RequestQueue(sampler)
    await asyncio.gather(queue.complete(first), queue.complete(second))     # both advance with each `sampler.step()`

A step runs on the caller's event loop, between two of its turns: nothing else touches the model meanwhile, and whoever
trains on the same loop may change the weights between two steps. To train while a step runs takes an engine in another
process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from posttrain.errors import EngineError
from posttrain.rollout.engine import Completion, Request, SampledToken


class StepSampler(Protocol):
    """What gives every request that it has one token more at a time."""

    def add(self, request: Request) -> None:
        """Take a request from the next step on. Raises what `Engine.generate_one` does, and is then as it was."""
        ...

    def step(self) -> Iterable[tuple[Request, Completion | Exception]]:
        """One token for each; the requests that have ended, each with what became of it."""
        ...

    def remove(self, request: Request) -> Completion:
        """Free a request's slot; what it has come to, as ABORTED."""
        ...


def hand_over(request: Request, token: SampledToken) -> EngineError | None:
    """Give a request's `on_token` its token; the error that ends the request where that raises."""
    if request.on_token is None:
        return None
    try:
        request.on_token(token)
    except Exception as error:  # whoever waits for this token is not to end those of the others
        failed = EngineError(
            "the request's `on_token` raised",
            found=f"{type(error).__name__}: {error}",
            remedy="mend it, or let it pass tokens on to something that may fail by itself",
        )
        failed.__cause__ = error
        return failed
    return None


class RequestQueue:
    """Futures of the requests in flight, and the one task that steps them all."""

    def __init__(self, sampler: StepSampler):
        self._sampler = sampler
        self._futures: dict[Request, asyncio.Future[Completion]] = {}
        self._aborted: set[Request] = set()
        self._stepping: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        """Of the requests in flight."""

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._futures)

    async def complete(self, request: Request) -> Completion:
        """Its completion.

        Raises:
            EngineError: requests of another event loop are in flight.
            ValueError: this one is in flight already.
        """
        if request in self._futures:
            raise ValueError("this request is in flight already: make another one for another completion")
        loop = asyncio.get_running_loop()
        if self._futures and self._loop is not loop:
            raise EngineError(
                "the engine is answering requests of another event loop",
                remedy="ask from one event loop, or wait until the other's requests have ended",
            )
        self._sampler.add(request)
        self._loop = loop
        future = self._futures[request] = loop.create_future()
        if self._stepping is None or self._stepping.done():
            self._stepping = loop.create_task(self._step_until_empty())
            self._stepping.add_done_callback(_note_interrupt)
        try:
            return await future
        finally:
            if self._futures.pop(request, None) is not None:  # its task was cancelled: nobody waits for it any more
                self._sampler.remove(request)

    def abort(self, request: Request | None = None) -> None:
        # Only noted here: it may be called from a signal handler or another thread, in the middle of a step.
        self._aborted.update(set(self._futures) if request is None else {request} & self._futures.keys())

    async def _step_until_empty(self) -> None:
        try:
            while self._futures:
                marked = self._aborted.copy()
                for request in marked & self._futures.keys():
                    self._end(request, self._sampler.remove(request))
                # These alone, in one call: a mark that another thread has made since would be lost by clearing all.
                self._aborted.difference_update(marked)
                for request, ended in self._sampler.step() if self._futures else ():
                    self._end(request, ended)
                await asyncio.sleep(0)  # the turn of whoever has waited: a request that comes now is in the next step
        except Exception as error:  # of the step itself, such as memory that ran out: it was everybody's step
            self._end_all(error)
        finally:
            self._end_all(asyncio.CancelledError())  # the event loop is closing

    def _end(self, request: Request, ended: Completion | BaseException) -> None:
        # A mark that came while it took its last step is of no further use, and would end it if it is asked for again.
        self._aborted.discard(request)
        future = self._futures.pop(request)
        if future.done():  # cancelled, and its task has not had its turn yet
            return
        if isinstance(ended, asyncio.CancelledError):
            future.cancel()
        elif isinstance(ended, BaseException):
            future.set_exception(ended)
        else:
            future.set_result(ended)

    def _end_all(self, error: BaseException) -> None:
        for request in list(self._futures):
            self._sampler.remove(request)
            self._end(request, error)


def _note_interrupt(stepping: asyncio.Task[None]) -> None:
    """Ctrl-C or SIGTERM in a step ends the loop by itself; asyncio would print the task's traceback beside that."""
    if not stepping.cancelled():
        stepping.exception()
