"""The processes of a job ("ranks"), which run the same program in lockstep and share its computing.

    here = world()                               # World(rank=2, size=4) under torch.distributed, World(0, 1) alone
    found = here.spread(score, answers)          # each rank scores its share; everybody has all scores, in order
    state = here.agreed(read_state)              # what one rank read, on all of them
    with here.together("rewards"):               # an error in one rank's part is raised by all

What a step is, every rank knows: its rows are a function of the seed and the step, or were gathered. So only the
computing is shared, every decision is made alike on all ranks, and what one of them alone could see (a clock, a file
that another writes, a probe of speed) is `agreed`: ranks that decide differently would wait for each other for ever.

There is no state here but where the caller stands: torch.distributed knows whether there is a job. Alone, every
operation is the identity, and a rank is alone in whatever it does by itself: in what it makes for the others
(`agreed`), in its part of a list (`spread`), and while it drives (`posttrain.parallel.calls`).
"""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

from posttrain.errors import PosttrainError, RankError
from posttrain.parallel.shares import shares

ENDLESS = timedelta(days=7)
"""For a rank that waits while another works; the watch of a job ends one that is stuck."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class World:
    """Who this process is: World(rank=2, size=4). Every method is collective: all ranks call it, in the same order."""

    rank: int
    """From 0."""
    size: int

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks, decides and writes the run folder."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order. It travels pickled, so it should hold no tensor of a GPU."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agreed(self, make: Callable[[], T]) -> T:
        """What rank 0 makes of it, on every rank; `make` is called there alone.

        Raises:
            Whatever `make` raises, on every rank.
        """
        if self.is_alone:
            return make()
        made: T | None = None
        error: Exception | None = None
        sent = b""
        if self.is_main:
            try:
                with apart():
                    made = make()
                # Here, so that what cannot travel is an error of all and not one of rank 0 alone.
                sent = pickle.dumps((made, None))
            except Exception as failure:  # the boundary: the other ranks wait for an answer, and get this one
                error = failure
                sent = pickle.dumps((None, portable(failure, 0)))
        value, raised = pickle.loads(sent_by_main(sent, self))
        if raised is not None:
            raised.ranks = (0,)
            raise raised from error
        return cast(T, made if self.is_main else value)

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Run the body, which holds nothing collective, and end it alike on all ranks.

        Args:
            what: the ranks are doing, for the error of one that fails in a way that nobody foresaw.

        Raises:
            The error of the lowest rank that failed, on every rank, with `ranks` saying which failed. One that is not
            posttrain's own arrives on the others as a RankError with its text and stack.
        """
        if self.is_alone:
            yield
            return
        own: PosttrainError | None = None
        try:
            yield
        except Exception as failure:  # the boundary: a rank that left here would leave the others waiting
            if is_everywhere(failure):
                raise
            own = portable(failure, self.rank, what)
        failures = self.gather(own)
        ranks = tuple(rank for rank, failure in enumerate(failures) if failure is not None)
        if not ranks:
            return
        raised = own if self.rank == ranks[0] else failures[ranks[0]]
        assert raised is not None
        raised.ranks = ranks
        raise raised

    def spread(
        self, function: Callable[[T], R], items: Sequence[T], cost: Callable[[T], float] | None = None
    ) -> list[R]:
        """[function(item) for item in items], each rank doing its share; the results of all, in order, on every rank.

        Args:
            cost: how much an item takes, to balance the shares by; None: all the same.

        Raises:
            What `function` raises, on every rank; see `together`.
        """
        if self.is_alone:
            return [function(item) for item in items]
        mine = shares([1.0 if cost is None else cost(item) for item in items], self.size)[self.rank]
        own: dict[int, R] = {}
        with self.together(f"its share of {len(items):,} items"), apart():
            for index in mine:
                own[index] = function(items[index])
        found: dict[int, R] = {}
        for part in self.gather(own):
            found |= part
        return [found[index] for index in range(len(items))]

    def largest(self, number: int) -> int:
        """Of all ranks: whether any of them was asked to stop, say."""
        return max(self.gather(number))

    def barrier(self) -> None:
        """Wait until every rank is here: a file that one of them writes is whole afterwards."""
        if not self.is_alone:
            self.gather(None)  # over the same group as everything else, so that it needs no device


ALONE = World(0, 1)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands: in lockstep with all others, or by itself."""

    is_alone: bool = False
    driver: Any = None
    """Of a rank that drives: see `posttrain.parallel.calls`."""
    own: tuple[Any, ...] = ()
    """What every rank of the job has made itself, in the same order; it is sent by its place."""


_PLACE: ContextVar[tuple[int, Place] | None] = ContextVar("posttrain_place", default=None)
"""With the thread that stands there."""


def standing() -> Place:
    """Where this thread stands. A thread that was started to help (a pool that asks judges, a queue that samples beside
    training) does what no thread of another rank does at that moment, so that it is alone."""
    thread = threading.get_ident()
    set_by, place = _PLACE.get() or (threading.main_thread().ident, Place())
    return place if set_by == thread else replace(place, is_alone=True, driver=None)


@contextmanager
def placed(place: Place) -> Iterator[None]:
    before = _PLACE.set((threading.get_ident(), place))
    try:
        yield
    finally:
        _PLACE.reset(before)


@contextmanager
def apart() -> Iterator[None]:
    """In here this rank does what the others do not: it is alone, and nothing may wait for them."""
    with placed(replace(standing(), is_alone=True, driver=None)):
        yield


def world() -> World:
    """The processes that do what this one does now; alone where it does something by itself."""
    return ALONE if standing().is_alone else job()


def job() -> World:
    """The job that this process belongs to, whatever it does now: for what is said of it, not for collectives."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return World(dist.get_rank(), dist.get_world_size())


def sent_by_main(message: bytes, here: World) -> bytes:
    """Rank 0's message on every rank, however long they wait for it.

    First through the store, where a wait has no end, and only then by a collective, which has half an hour: rank 0 may
    be encoding, or running a stage by itself.
    """
    store, group = dist.distributed_c10d._get_default_store(), cast(Any, dist.group.WORLD)
    # All ranks have begun as many operations, so that the number names this one without anybody counting.
    key = f"posttrain/sent/{group._get_sequence_number_for_group()}"
    if here.is_main:
        store.set(key, "1")
    else:
        store.wait([key], ENDLESS)
    sent: list[Any] = [message]
    dist.broadcast_object_list(sent, src=0)
    return cast(bytes, sent[0])


def is_everywhere(error: BaseException) -> bool:
    """Whether every rank raises this error at the same place, so that they can still do something together: save."""
    return isinstance(error, PosttrainError) and bool(error.ranks)


def portable(error: Exception, rank: int, what: str = "") -> PosttrainError:
    """posttrain's own errors travel whole; of another's, its text and its stack do."""
    if isinstance(error, PosttrainError):
        return error
    return RankError(
        f"rank {rank} failed{f' in {what}' if what else ''}: {type(error).__name__}: {error}",
        found="".join(traceback.format_exception(error)).strip(),
        remedy="the stack names the place; a rank's whole log is in logs/ of the run folder",
    )
