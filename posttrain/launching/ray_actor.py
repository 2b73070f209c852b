"""What runs on a machine of a Ray cluster: an actor, and the process of one rank that it starts."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from posttrain.parallel.failure import FAULT, Failure
from posttrain.parallel.stopping import exit_code


@dataclass(frozen=True, slots=True)
class Place:
    """Place("10.0.0.7", ("0",)): an actor's machine, and the cards that Ray gave it."""

    address: str
    cards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RankState:
    """RankState(None, "dpo: training\\n"): the exit code, None while it runs, and what it wrote."""

    code: int | None = None
    text: str = ""


class RankActor:
    """Starts one rank. Its methods answer at once, so that several may be asked while the process runs."""

    def __init__(self, rank: int, module: str):
        self.rank, self.module = rank, module
        self._process: subprocess.Popen[bytes] | None = None
        self._written: list[str] = []
        self._reader: threading.Thread | None = None

    def place(self) -> Place:
        import ray

        cards = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
        return Place(ray.util.get_node_ip_address(), tuple(map(str, cards)))

    def keep_store(self, attempt: int, before: str | None) -> tuple[str, int]:
        """Keep the job's store, as torch's elastic agent does: it is there when all ranks are gone.

        Args:
            before: what ended the attempt before this one, as the agent's store would still know.
        """
        import torch.distributed as dist

        from posttrain.parallel.start import keys_of
        from posttrain.parallel.watch import FAILURE

        address = self.place().address
        self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)
        if before is not None:
            keys_of(self._store, attempt - 1).set(FAILURE, before)
        return address, self._store.port

    def start(self, arguments: list[str], variables: dict[str, str], folder: str) -> None:
        # Of this Python, not of the driver's: the machine of the driver may have its own.
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, *arguments],
            env={**os.environ, **variables},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            self._written.append(line.decode(errors="replace"))

    def news(self) -> tuple[int | None, str]:
        """(exit code, what was written since the last time)"""
        assert self._process is not None and self._reader is not None
        code = self._process.poll()
        if code is not None:
            # The last lines may still be on their way; a child that it left behind must not keep us here.
            self._reader.join(timeout=1.0)
        lines, self._written = self._written, []
        return code, "".join(lines)

    def send(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def failure(self, attempt: int) -> str | None:
        """What the ranks say of the end of this attempt."""
        from posttrain.parallel.start import keys_of
        from posttrain.parallel.watch import failure_of

        found = failure_of(keys_of(self._store, attempt))
        return None if found is None else found.to_json()

    def end(self) -> None:
        """The process, and what it started."""
        self.send(signal.SIGKILL)


def failure_text(rank: int, size: int, state: RankState) -> Failure:
    """Of a process that ended without a word of its own."""
    assert state.code is not None
    killed = state.code < 0
    how = f"was killed by {signal.Signals(-state.code).name}" if killed else f"ended with exit code {state.code}"
    return Failure(
        rank=rank,
        size=size,
        host=platform.node(),
        phase="starting",
        problem=f"the process {how}",
        stack=state.text[-4000:],
        code=exit_code(-state.code) if killed else state.code or FAULT,
    )
