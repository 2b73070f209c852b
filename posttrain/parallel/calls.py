"""A driver and its workers: rank 0 runs a program, and the other ranks join it in the parts that all of them compute.

    result = driven(lambda: run(recipe), own=(progress,))     # on every rank; rank 0 runs it, all get what it returned
    ...
    everywhere(train_stage, ctx)                              # within `run`: every rank calls train_stage(ctx)

A recipe is mostly decisions (is a stage done? what does the folder hold?) which one process makes, and a few long
computations. So rank 0 alone reads and writes the run folder, as one process would, and what is worth sharing is a
function that it calls `everywhere`: the others get its name and its arguments, and are in lockstep until it returns.
Whatever nobody has taught to be shared runs on rank 0 alone, and is right.

What cannot travel, each rank has made itself before: `own` names it, and it is sent by its place (a loaded model, a
progress, a reward that is a lambda). A function that is in lockstep may be driven in its turn: a suite asks its
questions on rank 0, and its engine answers on all.
"""

from __future__ import annotations

import io
import pickle
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast

import torch.distributed as dist

from posttrain.errors import PosttrainError
from posttrain.parallel.world import Place, World, is_everywhere, job, placed, portable, sent_by_main, standing, world

T = TypeVar("T")

GRACE = 30.0
"""Seconds in which all ranks fail that fail alike: an error that each finds by itself, such as a recipe that does not
fit its model. A rank that fails alone leaves after it, and ends the job."""


@dataclass(frozen=True, slots=True)
class OfMain(Generic[T]):
    """What rank 0 alone has: OfMain(callback); on the other ranks, that it is not there."""

    value: T | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return OfMain, ()


class _Driver:
    """What rank 0 is to its workers."""

    def __init__(self, own: tuple[Any, ...], outer: _Driver | None):
        self.own = own
        self.is_broken = False
        """A call has failed here alone: the workers stand somewhere in it, and hear nothing of us any more."""
        self._outer = outer

    def give_up(self) -> None:
        driver: _Driver | None = self
        while driver is not None:
            driver.is_broken, driver = True, driver._outer


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    packed: bytes


@dataclass(frozen=True, slots=True)
class _End:
    value: Any = None
    error: PosttrainError | None = None
    interrupt: str | None = None


def driven(main: Callable[[], T], *, own: Sequence[Any] = ()) -> T:
    """Run a program on rank 0, with the other ranks at hand for what it calls `everywhere`; collective.

    Args:
        main: called on rank 0 alone.
        own: what each rank has made itself of the same, in the same order.

    Returns:
        What `main` returned, on every rank.

    Raises:
        What `main` raises, on every rank; one that is not posttrain's own arrives on the others as a RankError.
    """
    here, place = world(), standing()
    if here.is_alone:
        return main()
    inside = place.own + tuple(own)
    if not here.is_main:
        with placed(replace(place, own=inside)):
            return cast(T, _serve(here))
    driver = _Driver(inside, place.driver)
    try:
        with placed(Place(is_alone=True, driver=driver, own=inside)):
            value = main()
        end = pickle.dumps(_End(value))
    except BaseException as error:
        if not driver.is_broken:
            _send(pickle.dumps(_end_of(error)))
        raise
    _send(end)
    return value


def everywhere(function: Callable[..., T], *arguments: Any) -> T:
    """function(*arguments), on every rank in lockstep where rank 0 drives; else here, where all ranks are already, or
    none can be.

    Args:
        function: at module level, so that it can be named.
        arguments: what travels by pickle, or is of `own`.
    """
    place = standing()
    driver: _Driver | None = place.driver
    if driver is None or not place.is_alone:
        return function(*arguments)
    call = _Call(secrets.token_hex(8), _packed((function, arguments), driver.own))
    _send(pickle.dumps(call))
    with placed(Place(driver=driver, own=driver.own)):
        here = world()
        try:
            return function(*arguments)
        except BaseException as error:
            if not (driver.is_broken or _raised_by_all(error, call.name, here)):
                driver.give_up()
            raise


def _serve(here: World) -> Any:
    """A worker's part of `driven`."""
    while True:
        message = _receive()
        if isinstance(message, _End):
            if message.interrupt is not None:
                raise KeyboardInterrupt(message.interrupt)
            if message.error is not None:
                raise message.error
            return message.value
        function, arguments = _unpacked(message.packed, standing().own)
        try:
            function(*arguments)
        except BaseException as error:
            # Where all have left the call alike, rank 0 says what comes of it.
            if not _raised_by_all(error, message.name, here):
                raise


def _end_of(error: BaseException) -> _End:
    if not isinstance(error, Exception):
        return _End(interrupt=str(error) or type(error).__name__)
    sent = portable(error, 0)
    if sent is error:
        # Every rank raises it; of a foreign error each has another, and they are compared where they leave a call.
        sent.ranks = sent.ranks or (0,)
    return _End(error=sent)


def _raised_by_all(error: BaseException, call: str, here: World) -> bool:
    """Whether every rank has left the call by an error, so that all stand at its end again.

    Through the job's store and not by a collective: the others may wait in one that belongs to the call.
    """
    if is_everywhere(error):
        return True
    store = dist.distributed_c10d._get_default_store()
    keys = [f"posttrain/calls/{call}/{rank}" for rank in range(here.size)]
    store.set(keys[here.rank], type(error).__name__)
    try:
        store.wait(keys, timedelta(seconds=GRACE))
    except RuntimeError:  # torch's DistStoreError among them: somebody goes on, or is gone
        return False
    return True


# ---------------------------------------------------------------- messages


def _send(message: bytes) -> None:
    sent_by_main(message, job())


def _receive() -> _Call | _End:
    message: _Call | _End = pickle.loads(sent_by_main(b"", world()))  # from rank 0 of this job
    return message


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, own: tuple[Any, ...]):
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._places = {id(one): place for place, one in enumerate(own)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._places.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        # Settings are made from rows of tables when their module is imported: their modules do not have their names.
        if not isinstance(obj, type) or "." in obj.__qualname__:
            return NotImplemented
        if vars(sys.modules[obj.__module__]).get(obj.__name__) is obj:
            return NotImplemented
        return _generated, (obj.__bases__[0], obj.__module__, obj.__qualname__)


def _generated(base: type, module: str, name: str) -> type:
    """A class of this name under its base, which every rank has made alike."""
    subclasses: list[type] = base.__subclasses__()
    (found,) = [one for one in subclasses if (one.__module__, one.__qualname__) == (module, name)]
    return found


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, own: tuple[Any, ...]):
        super().__init__(file)
        self._own = own

    def persistent_load(self, pid: Any) -> Any:
        return self._own[pid]


def _packed(value: Any, own: tuple[Any, ...]) -> bytes:
    file = io.BytesIO()
    _Pickler(file, own).dump(value)
    return file.getvalue()


def _unpacked(packed: bytes, own: tuple[Any, ...]) -> Any:
    return _Unpickler(io.BytesIO(packed), own).load()
