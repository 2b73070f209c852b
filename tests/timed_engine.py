"""An engine that takes as long as it is told, for tests and benchmarks of sampling beside training.

    engine = TimedEngine(vocabulary=64, seconds=lambda request: 0.2, slots=4)
    sampler = engine.sampler()          # as the trainer holds one whose weights are pushed

Ids are a function of the request's seed, prompt and number, so that a request that is asked again is answered the same;
what the weights are changes nothing but the versions that a completion says. `generate` takes the time of its slowest
slot, as a step in turns does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from posttrain.rollout.engine import Completion, FinishReason, OnFinish, Request, Versions
from posttrain.sampling import SamplingDistribution
from posttrain.training.loop import Loop
from posttrain.training.rl.engines import Sampler
from posttrain.training.rl.source import OnlineSource, sample


class TimedEngine:
    """See `posttrain.rollout.engine.Engine`.

    Args:
        vocabulary: ids are drawn from 0 to this; stop ids only end a completion.
        seconds: for which a request is under way, alone or beside others.
        slots: requests that are sampled at a time; the others wait.
    """

    context_tokens: int | None = None

    def __init__(self, vocabulary: int, seconds: Callable[[Request], float], *, slots: int = 10_000):
        self.policy_version = 0
        self.vocabulary, self.seconds, self.slots = vocabulary, seconds, slots
        self.asked: list[Request] = []
        self.held: Callable[[Request], bool] = lambda request: False
        """Whether a request does not end yet, whatever its time."""
        self.fails: Callable[[Request], Exception | None] = lambda request: None
        self._in_flight = 0
        self._free: asyncio.Semaphore | None = None

    @property
    def in_flight(self) -> int:
        return self._in_flight

    async def generate_one(self, request: Request) -> Completion:
        if self._free is None:
            self._free = asyncio.Semaphore(self.slots)
        self.asked.append(request)
        self._in_flight += 1
        try:
            async with self._free:
                oldest = self.policy_version
                await asyncio.sleep(self.seconds(request))
                while self.held(request):
                    await asyncio.sleep(0.005)
                if (error := self.fails(request)) is not None:
                    raise error
                return self._completion(request, oldest)
        finally:
            self._in_flight -= 1

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingDistribution,
        *,
        completions_per_prompt: int = 1,
        on_finish: OnFinish | None = None,
    ) -> list[list[Completion]]:
        seen: dict[tuple[int, ...], int] = {}
        groups = []
        for prompt in map(tuple, prompts):
            asked = [Request(prompt, sampling, k, seen.get(prompt, 0)) for k in range(completions_per_prompt)]
            groups.append(asked)
            seen[prompt] = seen.get(prompt, 0) + 1
        free = [0.0] * min(self.slots, sum(map(len, groups)))
        for request in (request for group in groups for request in group):
            earliest = min(range(len(free)), key=free.__getitem__)
            free[earliest] += self.seconds(request)
        time.sleep(max(free))
        return [[self._completion(request, self.policy_version) for request in group] for group in groups]

    def abort(self, request: Request | None = None) -> None:
        raise NotImplementedError("nothing here is aborted")

    def sampler(self, seconds: float = 0.0) -> Sampler:
        """With weights of its own; a push takes `seconds`."""
        return Sampler(self, TimedSync(self, seconds))  # type: ignore[arg-type]

    def _completion(self, request: Request, oldest: int) -> Completion:
        seed = [request.sampling.seed, *map(int, request.prompt), request.completion, request.occurrence]
        random = np.random.default_rng(seed)
        stops = request.sampling.stop_ids
        ids = [number for number in random.integers(0, self.vocabulary, 32).tolist() if number not in stops]
        ids = ids[: request.sampling.max_new_tokens]
        logprobs = (-float(np.log(self.vocabulary)),) * len(ids)
        return Completion(tuple(ids), logprobs, FinishReason.LENGTH, Versions(oldest, self.policy_version))


class TimedSync:
    """In the place of `WeightSync`: the weights arrive, and no probe is needed."""

    noise: float | None = None

    def __init__(self, engine: TimedEngine, seconds: float = 0.0):
        self.engine, self.seconds = engine, seconds

    def __call__(self, version: int) -> float:
        if self.seconds:
            time.sleep(self.seconds)
        self.engine.policy_version = version
        return 0.0


def with_engine(loop: Loop, engine: TimedEngine) -> Loop:
    """A loop of `tests.online.loop_of` that samples with another engine, and is examined by it."""
    source = loop.source
    assert isinstance(source, OnlineSource)
    source.setup = replace(source.setup, sampler=engine.sampler())
    source.setup.examiner._ask = partial(sample, engine, source.setup.encoder)
    loop.hooks = source.hooks
    return loop
