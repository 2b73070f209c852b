"""Several vLLM servers as one engine: each request goes to the server that has the fewest in flight.

    pool = ServerPool([ServedEngine(url, patience=2.0) for url in urls])
    pool.update_weights(model, version=7, in_flight="keep")   # written once, read by all
    completion = await pool.generate_one(Request(prompt, sampling))

A server that is lost (it died, went away, or was restarted) gets no more requests, and those that it had are asked of
the others. Meanwhile a thread of its own brings it back: it is started again, or waited for where somebody else runs
it; then it is given the pool's current weights, and proven to have them, before it is asked again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn

from posttrain.errors import EngineError, PosttrainError, ServerLostError
from posttrain.rollout.engine import Completion, FinishReason, OnFinish, Request, Versions
from posttrain.rollout.vllm_batch import batch
from posttrain.rollout.vllm_served import ServedEngine
from posttrain.rollout.vllm_weights import InFlight
from posttrain.rollout.weight_folder import WeightFolder
from posttrain.sampling import SamplingDistribution

HEALTH_SECONDS = 5.0
"""For an answer of /health, asked when a request failed: whether the server failed, or the request."""
MOMENT = 0.05
ATTEMPTS = 5
"""Times that a server may be lost again while it is brought back."""

T = TypeVar("T")


class Revival(Protocol):
    """How a lost server comes back."""

    def __call__(self, index: int, why: str) -> str:
        """Return when server number `index` answers again; its URL, which may be another one.

        Raises:
            EngineError: it does not come back. The pool has failed.
        """
        ...


@dataclass(slots=True, eq=False)
class _Member:
    name: str
    engine: ServedEngine
    load: int = 0
    """Prompts that it has been asked and has not answered."""
    ready: bool = True
    number: int = 0
    """How many servers this one has been: what is asked of an earlier one says nothing of the present."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A request that is in flight, and where."""

    member: _Member | None = None
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


@dataclass(slots=True)
class _State:
    """What threads share, under the pool's condition."""

    failed: EngineError | None = None
    closed: bool = False
    restarts: int = 0
    asked_again: int = 0
    current: tuple[Path, int] | None = None
    """Folder and version of the weights that all members hold or are about to."""
    asked: dict[Request, _Asked] = field(default_factory=dict)


class ServerPool:
    """See `posttrain.rollout.engine.Engine` and `posttrain.rollout.weight_sync.SyncedEngine`.

    Args:
        engines: the servers. Give them little patience: while one is waited for, another could answer.
        folder: where weights are written for all of them to read; by default in memory (/dev/shm).
        requests: prompts of a batch in flight at a time, over all servers.
        revive: brings a lost server back; None: its URL is tried for `patience` seconds.
        patience: seconds.
        say: told when a server is lost and when it is back.
    """

    context_tokens: int | None = None
    """See `Engine.context_tokens`: vLLM has its own limit, which is not asked for."""

    def __init__(
        self,
        engines: Sequence[ServedEngine],
        *,
        folder: Path | None = None,
        requests: int = 256,
        revive: Revival | None = None,
        patience: float = 60.0,
        say: Callable[[str], None] | None = None,
    ):
        if not engines:
            raise ValueError("a pool needs at least one server")
        self.policy_version = engines[0].policy_version
        self.prove: Callable[[str, ServedEngine], None] | None = None
        """Called with a server that came back and was given its weights, before it is asked; what it raises ends the
        pool. `WeightSync` compares its scores with the trainer's."""
        self._members = [_Member(f"server {index}", engine) for index, engine in enumerate(engines)]
        self._folder = WeightFolder(folder)
        self._requests = requests
        self._revive = revive or self._wait_for
        self._patience = patience
        self._say = say or (lambda line: None)
        self._state = _State()
        self._changed = threading.Condition()
        """Guards the state and the members; notified when a server is ready or the pool has failed."""
        self._weights = threading.RLock()
        """Held while weights are written and read: a server that comes back must not read a folder that is going."""
        self._aborted = threading.Event()

    @property
    def members(self) -> Mapping[str, ServedEngine]:
        """The servers that hold the pool's weights, by name; waits until there is one.

        Raises:
            EngineError: none comes back.
        """
        self._wait_until_ready()
        # Under the lock: one that is being given its weights is either among them or is proven later than this.
        with self._weights:
            return {member.name: member.engine for member in self._ready()}

    @property
    def counts(self) -> PoolCounts:
        with self._changed:
            ready = sum(member.ready for member in self._members)
            return PoolCounts(len(self._members), ready, self._state.restarts, self._state.asked_again)

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
        if request in self._state.asked:
            raise ValueError("this request is in flight already: make another one for another completion")
        asked = self._state.asked[request] = _Asked()
        try:
            while not asked.aborted:
                with self._least_loaded() as member:
                    asked.member = member
                    if member is not None:
                        number = member.number
                        try:
                            return await member.engine.generate_one(request)
                        except EngineError as error:
                            if not await asyncio.to_thread(self._is_lost, member, number, error):
                                raise
                            self._count_again()
                        finally:
                            asked.member = None
                await asyncio.sleep(MOMENT)
            return Completion((), (), FinishReason.ABORTED, Versions(self.policy_version, self.policy_version))
        finally:
            del self._state.asked[request]

    @property
    def in_flight(self) -> int:
        """See `Engine.in_flight`."""
        return len(self._state.asked)

    def abort(self, request: Request | None = None) -> None:
        """End a request, or without one the running `generate` and all requests. From any thread."""
        if request is not None:
            if (asked := self._state.asked.get(request)) is not None:
                asked.aborted = True
                if (member := asked.member) is not None:
                    member.engine.abort(request)
            return
        self._aborted.set()
        for asked in list(self._state.asked.values()):
            asked.aborted = True
        for member in self._ready():
            with self._losing(member):
                member.engine.abort()

    def score(self, prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
        """See `SyncedEngine.score`; by one of the servers. `members` are scored one by one to compare them."""
        return self._ask(lambda engine: engine.score(prompt, ids))

    # ------------------------------------------------------------ weights

    def update_weights(self, model: nn.Module, version: int, in_flight: InFlight = "wait") -> None:
        """See `ServedEngine.update_weights`: written once, read by every server. A lost one reads them when it is back.

        Raises:
            EngineError: a server did not take them, or lost ones do not come back.
        """
        with self._weights:
            self._load(self._folder.write(model, version), version, in_flight)
        self._wait_until_ready()

    def load_weights(self, folder: Path, version: int, in_flight: InFlight = "wait") -> None:
        """`update_weights` of weights that are written already. The folder has to stay until the next call."""
        with self._weights:
            self._load(folder, version, in_flight)
        self._wait_until_ready()  # without the lock, which a server needs to come back

    def _load(self, folder: Path, version: int, in_flight: InFlight) -> None:
        self._state.current = folder, version
        self._each(lambda engine: engine.load_weights(folder, version, in_flight))
        self.policy_version = version

    def pause(self) -> None:
        """See `ServedEngine.pause`."""
        self._each(lambda engine: engine.pause())

    def resume(self) -> None:
        """See `ServedEngine.resume`."""
        self._each(lambda engine: engine.resume())

    def close(self) -> None:
        """Remove the weights that were written for the servers, and bring no server back any more."""
        with self._changed:
            self._state.closed = True
            self._changed.notify_all()
        for member in self._members:
            member.engine.close()
        self._folder.clear()

    # ------------------------------------------------------------ who is asked

    def _ask(self, ask: Callable[[ServedEngine], T]) -> T:
        """From one server; from another one where the first is lost."""
        while True:
            with self._least_loaded() as member:
                if member is not None:
                    number = member.number
                    try:
                        return ask(member.engine)
                    except EngineError as error:
                        if not self._is_lost(member, number, error):
                            raise
                        self._count_again()
            self._wait_until_ready()

    def _each(self, act: Callable[[ServedEngine], None]) -> None:
        """Of all servers that are there, at the same time; one that is lost meanwhile is no error."""

        def one(member: _Member) -> None:
            with self._losing(member):
                act(member.engine)

        with ThreadPoolExecutor(len(self._members), thread_name_prefix="posttrain-servers") as pool:
            for future in [pool.submit(one, member) for member in self._ready()]:
                future.result()

    def _ready(self) -> list[_Member]:
        with self._changed:
            return [member for member in self._members if member.ready]

    @contextmanager
    def _least_loaded(self) -> Iterator[_Member | None]:
        """The server with the fewest prompts in flight, of equal ones the first; None where all are lost.

        Raises:
            EngineError: the pool has failed.
        """
        with self._changed:
            self._require_hope()
            ready = [member for member in self._members if member.ready]
            member = min(ready, key=lambda one: one.load) if ready else None
            if member is not None:
                member.load += 1
        try:
            yield member
        finally:
            if member is not None:
                with self._changed:
                    member.load -= 1

    def _wait_until_ready(self) -> None:
        """Raises:
        EngineError: the pool has failed.
        """
        with self._changed:
            while not any(member.ready for member in self._members):
                self._require_hope()
                self._changed.wait(1.0)
            self._require_hope()

    def _require_hope(self) -> None:
        if self._state.failed is not None:
            raise self._state.failed
        if self._state.closed:
            raise EngineError("the engine is closed", remedy="make another one")

    def _count_again(self) -> None:
        with self._changed:
            self._state.asked_again += 1

    # ------------------------------------------------------------ losing and reviving

    @contextmanager
    def _losing(self, member: _Member) -> Iterator[None]:
        number = member.number
        try:
            yield
        except EngineError as error:
            if not self._is_lost(member, number, error):
                raise

    def _is_lost(self, member: _Member, number: int, error: EngineError) -> bool:
        """Whether an error is the server's end and not the request's own; a lost server begins to be brought back."""
        with self._changed:
            # Another of its requests was first to say so, or it is back already.
            if not member.ready or member.number != number:
                return True
        # vLLM answers 500 where its engine died behind it, and /health knows.
        if not isinstance(error, ServerLostError) and member.engine.server.is_healthy(HEALTH_SECONDS):
            return False
        self.lose(self._members.index(member), f"{error.problem}: {error.found}", number)
        return True

    def lose(self, index: int, why: str, number: int | None = None) -> None:
        """Server `index` is gone: no more requests for it; bring it back in a thread of its own.

        Args:
            number: which of the servers at that place is meant; None: the present one.
        """
        member = self._members[index]
        with self._changed:
            if not member.ready or self._state.closed or number not in (None, member.number):
                return
            member.ready = False
        self._say(f"{member.name} ({member.engine.server.url}) is lost: {why}")
        threading.Thread(
            target=self._bring_back, args=(index, why), name=f"posttrain-revive-{index}", daemon=True
        ).start()

    def _bring_back(self, index: int, why: str) -> None:
        member, began = self._members[index], time.monotonic()
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    version = self._revived(index, why)
                    break
                except ServerLostError as error:
                    why = f"{error.problem}: {error.found}"
                    if attempt == ATTEMPTS:
                        raise
        # A thread's boundary: what is not caught here would leave every request waiting for ever.
        except Exception as error:
            self._fail(member, error)
        else:
            self._say(f"{member.name} is back after {time.monotonic() - began:.0f} s, with policy version {version}")

    def _revived(self, index: int, why: str) -> int:
        """The version that the server has when it is asked again."""
        member = self._members[index]
        member.engine.restarted(self._revive(index, why))
        with self._weights:
            if self._state.current is not None:
                member.engine.load_weights(*self._state.current)
            if self.prove is not None:
                self.prove(member.name, member.engine)
            with self._changed:
                member.ready = True
                member.number += 1
                self._state.restarts += 1
                self._changed.notify_all()
            return member.engine.policy_version

    def _fail(self, member: _Member, error: Exception) -> None:
        known = error if isinstance(error, PosttrainError) else None
        failed = EngineError(
            f"{member.name} was lost and does not come back: {known.problem if known else repr(error)}",
            where=known.where if known else member.engine.server.url,
            found=known and known.found,
            expected=known and known.expected,
            remedy=known.remedy if known else "see the server's log, and resume the run",
        )
        failed.__cause__ = error
        with self._changed:
            if not self._state.closed:
                self._state.failed = failed
            self._changed.notify_all()

    def _wait_for(self, index: int, why: str) -> str:
        """Until a server that somebody else runs answers again."""
        server, deadline = self._members[index].engine.server, time.monotonic() + self._patience
        while not server.is_healthy(HEALTH_SECONDS):
            if time.monotonic() > deadline or self._state.closed:
                raise EngineError(
                    f"it did not answer for {self._patience:.0f} s",
                    where=server.url,
                    found=why,
                    remedy="start it again and resume the run; `engine.patience` says how long a run waits",
                )
            time.sleep(10 * MOMENT)
        return server.url
