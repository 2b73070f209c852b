"""Encoding on several cores: the same blocks in the same order as on one. `store.encode` starts a pool for many rows.

Workers are plain `python -m posttrain.data.workers` processes that read pickled chunks and write pickled blocks. A
fork would copy the threads' locks of a process that already computes, and a spawned pool would run the user's script
again; this does neither. A worker costs a second or two to start, so that it pays for many rows only.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

from posttrain.data.blocks import Block, encode_block
from posttrain.data.encode import Encoder
from posttrain.data.refusals import BadRows
from posttrain.errors import EncodingError, PosttrainError
from posttrain.types import Example

_LENGTH = struct.Struct("<Q")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerStartError(Exception):
    """A worker cannot be given the encoder; the rows are then encoded on one core, with the same result."""


class WorkerPool:
    """Worker processes for one encoder.

    with WorkerPool(encoder, 4, "stop") as pool:
        for block in pool.encode(chunks): ...

    Raises:
        WorkerStartError: the tokenizer cannot be sent to another process.
        EncodingError: a row is refused, exactly as on one core, or a worker ended.
    """

    def __init__(self, encoder: Encoder, count: int, bad_rows: BadRows):
        try:
            parcel = pickle.dumps((encoder, bad_rows))
        except (pickle.PicklingError, TypeError, AttributeError) as error:  # what pickle raises for a foreign object
            raise WorkerStartError(str(error)) from error

        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TOKENIZERS_PARALLELISM": "false",  # the processes are the parallelism
            "OMP_NUM_THREADS": "1",
        }
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "posttrain.data.workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            for _ in range(count)
        ]

        try:
            for process in self._processes:
                _write_parcel(_pipe(process.stdin), parcel)
            for process in self._processes:
                self._await_start(process)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # idle by now, or not wanted any more; nothing of theirs is kept
            process.wait()
            _pipe(process.stdout).close()
            with contextlib.suppress(BrokenPipeError):
                _pipe(process.stdin).close()

    def encode(self, chunks: Iterable[Sequence[Example]]) -> Iterator[Block]:
        """Blocks in the order of the chunks. A worker has one chunk at a time, so that no pipe can fill both ways."""
        busy: deque[subprocess.Popen[bytes]] = deque()
        idle = deque(self._processes)
        for chunk in chunks:
            if not idle:
                process = busy.popleft()
                block = self._receive(process)
                idle.append(process)
                self._give(idle.popleft(), chunk, busy)
                yield block
            else:
                self._give(idle.popleft(), chunk, busy)
        while busy:
            yield self._receive(busy.popleft())

    def _await_start(self, process: subprocess.Popen[bytes]) -> None:
        answer = _read_parcel(_pipe(process.stdout))
        outcome, value = pickle.loads(answer) if answer is not None else ("error", f"exit code {process.wait()}")
        if outcome != "ready":
            raise WorkerStartError(value)

    def _give(self, process: subprocess.Popen[bytes], chunk: Sequence[Example], busy: deque[Any]) -> None:
        try:
            _write_parcel(_pipe(process.stdin), pickle.dumps(list(chunk)))
        except BrokenPipeError as error:
            raise _ended(process) from error
        busy.append(process)

    def _receive(self, process: subprocess.Popen[bytes]) -> Block:
        answer = _read_parcel(_pipe(process.stdout))
        if answer is None:
            raise _ended(process)
        outcome, value = pickle.loads(answer)
        if outcome == "block":
            return value
        kind, message, state = value
        refused = kind.__new__(kind, message)  # without __init__, whose keywords a pickle does not carry
        refused.args = (message,)
        refused.__dict__.update(state)
        raise refused


def _ended(process: subprocess.Popen[bytes]) -> EncodingError:
    return EncodingError(
        "a worker process of the encoder ended before its work was done",
        found=f"exit code {process.wait()}",
        expected="a block of encoded rows",
        remedy="see the lines above for its reason; with `workers=1` the encoder needs no other process",
    )


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _write_parcel(pipe: IO[bytes], parcel: bytes) -> None:
    pipe.write(_LENGTH.pack(len(parcel)))
    pipe.write(parcel)
    pipe.flush()


def _read_parcel(pipe: IO[bytes]) -> bytes | None:
    header = pipe.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(header)
    parcel = pipe.read(length)
    return parcel if len(parcel) == length else None


def main() -> None:
    """A worker: an encoder first, then chunks, until the pipe closes."""
    # Ctrl-C and a closed terminal are the parent's to handle; the closed pipe ends this one.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the blocks
    chunks = sys.stdin.buffer
    parcel = _read_parcel(chunks)
    if parcel is None:
        return
    try:
        encoder, bad_rows = pickle.loads(parcel)
    except Exception as error:  # whatever a foreign tokenizer's code does here, the parent has another way
        _write_parcel(answers, pickle.dumps(("error", repr(error))))
        return
    _write_parcel(answers, pickle.dumps(("ready", None)))
    while (parcel := _read_parcel(chunks)) is not None:
        try:
            answer: Any = ("block", encode_block(encoder, pickle.loads(parcel), bad_rows))
        except PosttrainError as error:
            answer = ("error", (type(error), error.problem, error.__dict__))
        try:
            _write_parcel(answers, pickle.dumps(answer))
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
