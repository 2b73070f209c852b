"""Several vLLM servers as one engine: each request goes to the server that has the fewest in flight.

    pool = ServerPool([ServedEngine(url, patience=2.0) for url in urls])
    pool.update_weights(model, version=7, in_flight="keep")   # written once, read by all
    completion = await pool.generate_one(Request(prompt, sampling))

What a server had that is lost (it died, went away, or was restarted) is asked of the others; `vllm_members` brings it
back with the pool's current weights.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from posttrain.errors import EngineError
from posttrain.rollout.engine import Completion, FinishReason, OnFinish, Request, Versions
from posttrain.rollout.vllm_batch import batch
from posttrain.rollout.vllm_members import Member, Members, Revival
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.rollout.vllm_weights import InFlight
from posttrain.rollout.weight_folder import WeightFolder
from posttrain.sampling import SamplingDistribution

MOMENT = 0.05
"""Seconds after which a request looks again for a server, where all are lost."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Asked:
    """A request that is in flight, and where."""

    member: Member | None = None
    aborted: bool = False


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """What was lost and mended: PoolCounts(servers=2, ready=1, restarts=1, asked_again=12)."""

    servers: int
    ready: int
    restarts: int
    """Times that a server was lost and came back."""
    asked_again: int
    """Prompts that a lost server had, and another one was asked."""


class ServerPool:
    """See `posttrain.rollout.engine.Engine` and `posttrain.rollout.weight_sync.SyncedEngine`.

    Args:
        engines: the servers. Give them little patience: while one is waited for, another could answer.
        folder: where weights are written for all of them to read; by default in memory (/dev/shm).
        untied: see `weight_folder.write_whole`.
        requests: prompts of a batch in flight at a time, over all servers.
        revive, patience, say: see `Members`.
    """

    context_tokens: int | None = None
    """See `Engine.context_tokens`: vLLM has its own limit, which is not asked for."""

    def __init__(
        self,
        engines: Sequence[ServedEngine],
        *,
        folder: Path | None = None,
        untied: bool = False,
        requests: int = 256,
        revive: Revival | None = None,
        patience: float = 60.0,
        say: Callable[[str], None] | None = None,
    ):
        if not engines:
            raise ValueError("a pool needs at least one server")
        self.policy_version = engines[0].policy_version
        self._members = Members(engines, revive=revive, patience=patience, say=say)
        self._folder = WeightFolder(folder, untied=untied)
        self._requests = requests
        self._asked: dict[Request, _Asked] = {}
        self._aborted = threading.Event()

    def prove_with(self, prove: Callable[[str, ServedEngine], None]) -> None:
        """Have `prove(name, server)` called with a server that came back and was given its weights, before it is asked.
        What it raises ends the pool. `WeightSync.prove` compares its scores with the trainer's."""
        self._members.prove = prove

    @property
    def counts(self) -> PoolCounts:
        members = self._members
        return PoolCounts(len(members.all), len(members.ready()), members.restarts, members.asked_again)

    def is_ready(self, index: int) -> bool:
        """Whether a server is being asked; a lost one is not until it is back."""
        return self._members.all[index].ready

    def lose(self, index: int, why: str) -> None:
        """Whoever watches the servers says that one is gone."""
        self._members.lose(self._members.all[index], why)

    # ------------------------------------------------------------ sampling

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingDistribution,
        *,
        completions_per_prompt: int = 1,
        on_finish: OnFinish | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`. `on_finish` is called when a prompt's completions are all there.

        Raises:
            ConfigError: a prompt or a distribution that the servers cannot serve.
            EngineError: a server answers nonsense, or lost ones do not come back.
        """
        self._aborted.clear()

        def group(index: int, seed: int) -> list[Completion]:
            def ask(engine: ServedEngine) -> list[Completion]:
                if self._aborted.is_set():
                    return engine.aborted(completions_per_prompt)
                where = f"{engine.server.url}, prompt {index}"
                return engine.group(prompts[index], sampling, completions_per_prompt, seed, where)

            return self._ask(ask)

        return batch(group, prompts, sampling, completions_per_prompt, threads=self._requests, on_finish=on_finish)

    async def generate_one(self, request: Request) -> Completion:
        """See `Engine.generate_one` and `ServedEngine.generate_one`.

        Raises:
            ConfigError, EngineError: as `generate`; the request has an `on_token`, or alternatives that are not raw.
        """
        if request in self._asked:
            raise ValueError("this request is in flight already: make another one for another completion")
        asked = self._asked[request] = _Asked()
        try:
            while not asked.aborted:
                if (answer := await self._once(request, asked)) is not None:
                    return answer
                await asyncio.sleep(MOMENT)
            return Completion((), (), FinishReason.ABORTED, Versions(self.policy_version, self.policy_version))
        finally:
            del self._asked[request]

    async def _once(self, request: Request, asked: _Asked) -> Completion | None:
        """None where no server is there, or the one that was asked is lost."""
        with self._members.least_loaded() as member:
            if member is None:
                return None
            asked.member, number = member, member.number
            try:
                return await member.engine.generate_one(request)
            except EngineError as error:
                # In a thread: it asks the server how it is.
                if not await asyncio.to_thread(self._members.is_lost, member, number, error):
                    raise
                self._members.count_again()
                return None
            finally:
                asked.member = None

    @property
    def in_flight(self) -> int:
        """See `Engine.in_flight`."""
        return len(self._asked)

    def abort(self, request: Request | None = None) -> None:
        """End a request, or without one the running `generate` and all requests. From any thread."""
        if request is not None:
            if (asked := self._asked.get(request)) is not None:
                asked.aborted = True
                if (member := asked.member) is not None:
                    member.engine.abort(request)
            return
        self._aborted.set()
        for asked in list(self._asked.values()):
            asked.aborted = True
        self._members.each(lambda member: member.engine.abort())

    def score(self, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
        """See `SyncedEngine.score`; by one of the servers; `score_each` compares them."""
        return self._ask(lambda engine: engine.score(prompt, ids))

    def score_each(self, prompt: Sequence[int], ids: Sequence[int]) -> dict[str, list[float]]:
        """`score` of every server that is there, by name.

        Raises:
            EngineError: as `generate`.
        """
        scores: dict[str, list[float]] = {}

        def score(member: Member) -> None:
            scores[member.name] = member.engine.score(prompt, ids)

        while not scores:
            self._members.wait_until_ready()
            # Under the lock: one that is being given its weights is either among these or is proven later than this.
            with self._members.weights:
                ready = self._members.ready()
            self._members.each(score, ready)
        return {member.name: scores[member.name] for member in ready if member.name in scores}

    def _ask(self, ask: Callable[[ServedEngine], T]) -> T:
        """From one server; from another one where the first is lost."""
        while True:
            with self._members.least_loaded() as member:
                if member is not None:
                    number = member.number
                    try:
                        return ask(member.engine)
                    except EngineError as error:
                        if not self._members.is_lost(member, number, error):
                            raise
                        self._members.count_again()
            self._members.wait_until_ready()

    # ------------------------------------------------------------ weights

    def update_weights(self, model: nn.Module, version: int, in_flight: InFlight = "wait") -> None:
        """See `ServedEngine.update_weights`: written once, read by every server. A lost one reads them when it is back.

        Raises:
            EngineError: a server did not take them, or lost ones do not come back.
        """
        with self._members.weights:
            self._load(self._folder.write(model, version), version, in_flight)
        self._members.wait_until_ready()

    def load_weights(self, folder: Path, version: int, in_flight: InFlight = "wait") -> None:
        """`update_weights` of weights that are written already. The folder has to stay until the next call."""
        with self._members.weights:
            self._load(folder, version, in_flight)
        self._members.wait_until_ready()  # without the lock, which a server needs to come back

    def _load(self, folder: Path, version: int, in_flight: InFlight) -> None:
        self._members.current = folder, version
        self._members.each(lambda member: member.engine.load_weights(folder, version, in_flight))
        self.policy_version = version

    def pause(self) -> None:
        """See `ServedEngine.pause`."""
        self._members.each(lambda member: member.engine.pause())

    def resume(self) -> None:
        """See `ServedEngine.resume`."""
        self._members.each(lambda member: member.engine.resume())

    def close(self) -> None:
        """Remove the weights that were written for the servers, and bring no server back any more."""
        self._members.close()
        for member in self._members.all:
            member.engine.close()
        self._folder.clear()
