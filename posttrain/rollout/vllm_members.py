"""The servers of a pool: who is asked next, who is lost, and how a lost one comes back.

    with members.least_loaded() as member:        # None where all are lost
        answer = member.engine.group(...)
    members.is_lost(member, number, error)        # the server's end, or the request's own error

A server that is lost gets no more requests. A thread of its own brings it back: it is started again, or waited for
where somebody else runs it; then it is given the current weights, and proven to have them, before it is asked again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from posttrain.errors import EngineError, PosttrainError, ServerLostError
from posttrain.rollout.vllm_served import ServedEngine

HEALTH_SECONDS = 5.0
"""For an answer of /health, asked when a request failed: whether the server failed, or the request."""
WAIT_SECONDS = 0.5
ATTEMPTS = 5
"""Times that a server may be lost again while it is brought back."""


class Revival(Protocol):
    """How a lost server comes back."""

    def __call__(self, index: int, why: str) -> str:
        """Return when server number `index` answers again; its URL, which may be another one.

        Raises:
            EngineError: it does not come back, and neither does the pool.
        """
        ...


@dataclass(slots=True, eq=False)
class Member:
    """One server."""

    index: int
    engine: ServedEngine
    load: int = 0
    """Prompts that it has been asked and has not answered."""
    ready: bool = True
    number: int = 0
    """How many servers this one has been: what is asked of an earlier one says nothing of the present."""

    @property
    def name(self) -> str:
        return f"server {self.index}"


class Members:
    """See the module.

    Args:
        revive: brings a lost server back; None: its URL is tried for `patience` seconds.
        say: told when a server is lost and when it is back.
    """

    def __init__(
        self,
        engines: Sequence[ServedEngine],
        *,
        revive: Revival | None = None,
        patience: float = 60.0,
        say: Callable[[str], None] | None = None,
    ):
        self.all = [Member(index, engine) for index, engine in enumerate(engines)]
        self.weights = threading.RLock()
        """Held while weights are written and read: a server that comes back must not read a folder that is going."""
        self.current: tuple[Path, int] | None = None
        """Folder and version of the weights that all hold or are about to."""
        self.prove: Callable[[str, ServedEngine], None] | None = None
        """See `ServerPool.prove`."""
        self.restarts = 0
        self.asked_again = 0
        self._revive = revive or self._wait_for
        self._patience = patience
        self._say = say or (lambda line: None)
        self._failed: EngineError | None = None
        self._closed = False
        self._changed = threading.Condition()
        """Guards the members and the counts; notified when a server is ready or all have failed."""

    # ------------------------------------------------------------ who is asked

    def ready(self) -> list[Member]:
        with self._changed:
            return [member for member in self.all if member.ready]

    @contextmanager
    def least_loaded(self) -> Iterator[Member | None]:
        """The server with the fewest prompts in flight, of equal ones the first; None where all are lost.

        Raises:
            EngineError: one does not come back.
        """
        with self._changed:
            self._require_hope()
            member = min((one for one in self.all if one.ready), key=lambda one: one.load, default=None)
            if member is not None:
                member.load += 1
        try:
            yield member
        finally:
            if member is not None:
                with self._changed:
                    member.load -= 1

    def wait_until_ready(self) -> None:
        """Raises:
        EngineError: a server does not come back.
        """
        with self._changed:
            self._require_hope()
            while not any(member.ready for member in self.all):
                self._changed.wait(WAIT_SECONDS)
                self._require_hope()

    def each(self, act: Callable[[Member], None], members: Sequence[Member] | None = None) -> None:
        """Of some servers, or of all that are there, at the same time; one that is lost meanwhile is no error."""

        def one(member: Member) -> None:
            number = member.number
            try:
                act(member)
            except EngineError as error:
                if not self.is_lost(member, number, error):
                    raise

        with ThreadPoolExecutor(len(self.all), thread_name_prefix="posttrain-servers") as pool:
            for future in [pool.submit(one, member) for member in (self.ready() if members is None else members)]:
                future.result()

    def close(self) -> None:
        """Bring no server back any more; whoever waits for one is told."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _require_hope(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._closed:
            raise EngineError("the engine is closed", remedy="make another one")

    # ------------------------------------------------------------ losing and reviving

    def is_lost(self, member: Member, number: int, error: EngineError) -> bool:
        """Whether an error is the server's end and not the request's own; a lost server begins to be brought back.

        Args:
            number: the member's, when it was asked.
        """
        with self._changed:
            # Another of its requests was first to say so, or it is back already.
            if not member.ready or member.number != number:
                return True
        # vLLM answers 500 where its engine died behind it, and /health knows.
        if not isinstance(error, ServerLostError) and member.engine.server.is_healthy(HEALTH_SECONDS):
            return False
        self.lose(member, f"{error.problem}: {error.found}", number)
        return True

    def count_again(self) -> None:
        """A lost server's request is asked of another."""
        with self._changed:
            self.asked_again += 1

    def lose(self, member: Member, why: str, number: int | None = None) -> None:
        """It is gone: no more requests for it; bring it back in a thread of its own.

        Args:
            number: which of the servers at that place is meant; None: the present one.
        """
        with self._changed:
            if not member.ready or self._closed or number not in (None, member.number):
                return
            member.ready = False
        self._say(f"{member.name} ({member.engine.server.url}) is lost: {why}")
        threading.Thread(
            target=self._bring_back, args=(member, why), name=f"posttrain-revive-{member.index}", daemon=True
        ).start()

    def _bring_back(self, member: Member, why: str) -> None:
        began = time.monotonic()
        try:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    version = self._revived(member, why)
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

    def _revived(self, member: Member, why: str) -> int:
        """The version that the server has when it is asked again."""
        url = self._revive(member.index, why)
        with self.weights:
            # Where nothing was pushed yet, the weights that it was started with are the right ones.
            member.engine.restarted(url, needs_weights=self.current is not None)
            if self.current is not None:
                member.engine.load_weights(*self.current)
            if self.prove is not None:
                self.prove(member.name, member.engine)
            with self._changed:
                member.ready = True
                member.number += 1
                self.restarts += 1
                self._changed.notify_all()
            return member.engine.policy_version

    def _fail(self, member: Member, error: Exception) -> None:
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
            if not self._closed:
                self._failed = failed
            self._changed.notify_all()

    def _wait_for(self, index: int, why: str) -> str:
        """Until a server that somebody else runs answers again."""
        server, deadline = self.all[index].engine.server, time.monotonic() + self._patience
        while not server.is_healthy(HEALTH_SECONDS):
            if time.monotonic() > deadline or self._closed:
                raise EngineError(
                    f"it did not answer for {self._patience:.0f} s",
                    where=server.url,
                    found=why,
                    remedy="start it again and resume the run; `engine.patience` says how long a run waits",
                )
            time.sleep(WAIT_SECONDS)
        return server.url
