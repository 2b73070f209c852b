"""Requests of one prompt: sent, counted, and ended by what the prompt may cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from posttrain.config.strategies.base import Spending
from posttrain.inference.solution import Node, Spent, Stopped
from posttrain.rollout.engine import Completion, Engine, FinishReason, Request, SampledToken

Watch = Callable[[SampledToken], bool]
"""Looks at a draw's tokens as they are sampled; True ends the draw after this token, which is kept and counted."""
ENDED_EARLY = "ended early"
"""The note of a draw that its watch has ended."""
Keep = Callable[[Completion, Request], None]
"""Makes a node of a completion."""


class SpendingEnded(Exception):
    """Nothing may be spent any more; `Solving` turns it into a solution of what there is."""

    def __init__(self, reason: Stopped):
        super().__init__(reason)
        self.reason = reason


class Drawing:
    """The nodes of one prompt, in the order in which they were asked for, and what they cost."""

    def __init__(self, spend: Spending):
        self.spend = spend
        self.nodes: list[Node] = []
        self._spent = Spent()
        self._calls = 0
        self._asked_as: dict[int, tuple[int, int]] = {}
        """Of each node by its identity: which call it came of, and which draw of it."""
        self._enough: set[Request] = set()
        """Requests that their watch has ended: no sign of the time's end."""
        self._paying = asyncio.Lock()
        self._began: float | None = None

    @property
    def spent(self) -> Spent:
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        return replace(self._spent, seconds=seconds)

    @property
    def tokens_left(self) -> int | None:
        """Tokens that may still be sampled; None: no limit."""
        return None if self.spend.tokens is None else self.spend.tokens - self._spent.sampled

    def count_scored(self, tokens: int) -> None:
        self._spent = self._spent + Spent(scored=tokens)

    def _call(self) -> int:
        """The number of a call, taken before anything is awaited."""
        call, self._calls = self._calls, self._calls + 1
        return call

    def _keep(self, node: Node, asked_as: tuple[int, int]) -> None:
        self._asked_as[id(node)] = asked_as
        self.nodes.append(node)

    def _renumber(self) -> None:
        """Nodes in the order in which they were asked for. Calls that ran side by side ended in an order that depends
        on what else the engine did, and the same seed is to give the same tree."""
        ordered = sorted(self.nodes, key=lambda node: self._asked_as[id(node)])
        numbers = {node.number: number for number, node in enumerate(ordered)}
        for node in ordered:
            node.number, node.parents = numbers[node.number], tuple(numbers[parent] for parent in node.parents)
        self.nodes = ordered

    async def _complete(
        self,
        requests: Sequence[Request],
        keep: Keep,
        engine: Engine,
        watch: Callable[[], Watch] | None = None,
    ) -> None:
        """Every completion goes to `keep`, in the order of the requests.

        Raises:
            SpendingEnded: before or after the last; what was drawn until then was kept.
        """
        self._began = time.monotonic() if self._began is None else self._began
        if self.spend.tokens is None:
            await self._wave(requests, keep, engine, watch)
            return
        # One call after the other, and of a call as many draws at once as could all be paid: which draw gets the last
        # tokens must not depend on what else the engine does.
        async with self._paying:
            waiting = list(requests)
            while waiting:
                left = self.spend.tokens - self._spent.sampled
                if left < 1:
                    raise SpendingEnded(Stopped.TOKENS)
                limits = [request.sampling.max_new_tokens for request in waiting]
                # Draws after different nodes have different limits.
                paid = max(1, sum(total <= left for total in accumulate(limits)))
                longest = limits[0]
                wave, waiting = waiting[:paid], waiting[paid:]
                if longest > left:
                    shorter = replace(wave[0].sampling, max_new_tokens=left)
                    wave = [replace(wave[0], sampling=shorter)]
                await self._wave(wave, keep, engine, watch)
                if longest > left and not self.nodes[-1].ended and len(self.nodes[-1].ids) == left:
                    self.nodes[-1].note = "the spending ended here"
                    raise SpendingEnded(Stopped.TOKENS)

    async def _wave(
        self,
        requests: Sequence[Request],
        keep: Keep,
        engine: Engine,
        watch: Callable[[], Watch] | None,
    ) -> None:
        """Requests side by side; at the end of time they come back as they are, so that their tokens are counted."""
        timer = None
        if watch is not None:
            requests = [self._watched(request, watch(), engine) for request in requests]
        if self.spend.seconds is not None:
            assert self._began is not None
            left = self._began + self.spend.seconds - time.monotonic()
            if left <= 0:
                raise SpendingEnded(Stopped.SECONDS)

            def end() -> None:
                for request in requests:
                    engine.abort(request)

            timer = asyncio.get_running_loop().call_later(left, end)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(engine.generate_one(request)) for request in requests]
        except* Exception as errors:
            raise errors.exceptions[0] from None
        finally:
            if timer is not None:
                timer.cancel()
        out_of_time = False
        for request, task in zip(requests, tasks, strict=True):
            completion = task.result()
            self._spent = self._spent + Spent(sampled=len(completion.ids), requests=1)
            keep(completion, request)
            if completion.finish is FinishReason.ABORTED and request in self._enough:
                self.nodes[-1].note = ENDED_EARLY
            out_of_time |= completion.finish is FinishReason.ABORTED and request not in self._enough
        if out_of_time:
            raise SpendingEnded(Stopped.SECONDS)

    def _watched(self, request: Request, enough: Watch, engine: Engine) -> Request:
        """The request with a watch that ends it."""

        def look(token: SampledToken) -> None:
            if enough(token):
                self._enough.add(watched)
                engine.abort(watched)

        watched = replace(request, on_token=look)
        return watched
