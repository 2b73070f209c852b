"""The processes of one machine, under torch's elastic agent in this process: `posttrain run RECIPE --processes 4`.

    code = launch(worker_command(...), Launch(processes=4, restarts=3, logs=folder / "logs"), say=print)

What torch's agent alone does not do: it tells the ranks that one of them died before it ends them, passes signals on
and waits for their checkpoint, never starts again what was refused or stopped on purpose, and ends what a rank has left
behind. Two torch names that are not public are used, `_monitor_workers`, which torch documents for agents of one's own,
and `_remaining_restarts`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from posttrain.launching.outcome import FAILED_SECONDS, STOP_SECONDS, is_own, outcome
from posttrain.parallel.failure import Failure
from posttrain.parallel.job import OWN_LAUNCHER
from posttrain.parallel.start import keys_of, threads_of
from posttrain.parallel.stopping import exit_code, signal_of
from posttrain.parallel.watch import FAILURE, LEAVING_SECONDS, SAID, failure_of, last_beat
from posttrain.runs.disk import writing
from posttrain.runs.owner import scratch

LOOK_SECONDS = 0.1
LAST_SECONDS = 3.0
PASSED_ON = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


@dataclass(frozen=True, slots=True)
class Launch:
    """What is started: Launch(processes=4, restarts=3, logs=Path("runs/mine/logs"))."""

    processes: int
    restarts: int = 0
    logs: Path | None = None
    """Where launcher.log goes: what torch's agent says."""
    environment: Mapping[str, str] = field(default_factory=dict)


def worker_command(arguments: Sequence[str]) -> list[str]:
    """The command of one rank: this Python's posttrain."""
    return [sys.executable, "-m", "posttrain", *arguments]


def launch(command: Sequence[str], launch: Launch, say: Callable[[str], None]) -> int:
    """Start the processes, wait for them, and give the exit code of the whole.

    0 where all ended well; that of the rank that failed; 128 + N after signal N. No process of the job is left. The
    ranks themselves say what went wrong; only where none of them could, `say` is told.
    """
    with (
        _quiet_agent(launch.logs),
        _environment(launch),
        scratch("launch") as outputs,
    ):
        parameters = RendezvousParameters(
            backend="c10d",
            endpoint="localhost:0",
            run_id=uuid.uuid4().hex[:12],
            min_nodes=1,
            max_nodes=1,
            # A machine's own name may lead to an address that nothing listens on.
            local_addr="localhost",
        )
        spec = WorkerSpec(
            role="rank",
            local_world_size=launch.processes,
            entrypoint=command[0],
            args=tuple(command[1:]),
            rdzv_handler=get_rendezvous_handler(parameters),
            max_restarts=launch.restarts,
            monitor_interval=LOOK_SECONDS,
            local_addr="localhost",
        )
        agent = Agent(spec, DefaultLogsSpecs(log_dir=str(outputs)), launch.logs, say)
        with agent.passing_signals_on():
            try:
                agent.run()
            finally:
                agent.end_all()
                spec.rdzv_handler.shutdown()
        return agent.code


class Agent(LocalElasticAgent):
    """torch's agent, with an eye on how the first rank ended."""

    def __init__(self, spec: WorkerSpec, outputs: DefaultLogsSpecs, logs: Path | None, say: Callable[[str], None]):
        super().__init__(spec, outputs)
        self.say = say
        self.logs = logs
        self.code = 0
        self._asked: int | None = None
        """The first signal that was passed on."""
        self._times_asked = 0
        self._processes: dict[int, int] = {}
        """{local rank: process} of this attempt."""
        self._attempt = 0

    # ------------------------------------------------------------ signals

    @contextmanager
    def passing_signals_on(self) -> Iterator[None]:
        """The ranks have sessions of their own: what a terminal or a scheduler sends reaches this process alone."""
        before = {number: signal.getsignal(number) for number in PASSED_ON}
        # `nohup` keeps SIGHUP away from the launcher, and so from the ranks.
        for number in [number for number in PASSED_ON if before[number] is not signal.SIG_IGN]:
            signal.signal(number, self._pass_on)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: Any) -> None:
        self._times_asked += 1
        self._asked = self._asked or number
        # A third Ctrl-C: the ranks have not come to an end, and somebody does not want to wait any longer.
        self._signal_all(signal.SIGKILL if number == signal.SIGINT and self._times_asked > 2 else number)

    def _signal_all(self, number: int) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process, number)

    def end_all(self) -> None:
        """What the ranks started (sandboxes, servers) is in their groups, and may outlive them."""
        self._signal_all(signal.SIGKILL)

    # ------------------------------------------------------------ torch's own steps

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.end_all()
        self._attempt = worker_group.spec.max_restarts - self._remaining_restarts
        self._processes = super()._start_workers(worker_group)
        if self._asked is not None:  # it came while there was nobody to pass it on to
            self._signal_all(self._asked)
        return self._processes

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if ended := {rank: code for rank, code in self._ended().items() if code != 0}:
            self._conclude(worker_group, ended)
        return super()._monitor_workers(worker_group)

    def _ended(self) -> dict[int, int]:
        """{local rank: exit code}, negative for a signal, of those that have ended; torch's own look at them comes
        later, so they are not reaped."""
        found = {}
        for rank, process in self._processes.items():
            with suppress(ChildProcessError):
                state = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if state is not None:
                    found[rank] = state.si_status if state.si_code == os.CLD_EXITED else -state.si_status
        return found

    def _conclude(self, worker_group: WorkerGroup, ended: Mapping[int, int]) -> None:
        """A rank has ended and not well: let the others end, find the cause, and decide whether to start again."""
        store = self._store_of_attempt(worker_group)
        silent = {rank: code for rank, code in ended.items() if code < 0 or not is_own(code)}
        if silent and self._asked is None:
            # Before torch sends the others the signal that means "save and go".
            store.compare_set(FAILURE, "", self._of_silent(worker_group, *min(silent.items())).to_json())
        failed = store.check([FAILURE])
        stop = self._asked or next((number for code in ended.values() if (number := signal_of(code))), None)
        seconds = FAILED_SECONDS if failed else LEAVING_SECONDS if stop is None else STOP_SECONDS
        if stop is not None and not failed and self._asked is None:
            # One rank alone was signalled; where they do not stop in lockstep, the others have to be told.
            self._wait(FAILED_SECONDS, store)
            self._signal_all(stop)
        ended = {**ended, **self._wait(seconds, store)}
        self.end_all()
        self._decide(store, worker_group, ended, stop)

    def _wait(self, seconds: float, store: dist.Store) -> dict[int, int]:
        """Until all have ended, or that long; less for the one that failed, which may be one that cannot end."""
        deadline = time.monotonic() + seconds
        is_last = False
        while (left := self._processes.keys() - (found := self._ended())) and time.monotonic() < deadline:
            if not is_last and store.check([SAID]) and left == {self._failed_here(store)}:
                is_last = True
                # Its own last words, into its log.
                deadline = min(deadline, time.monotonic() + LAST_SECONDS)
            time.sleep(LOOK_SECONDS / 2)
        return found

    def _failed_here(self, store: dist.Store) -> int | None:
        """The local rank of the failure."""
        failure = failure_of(store)
        workers = self._worker_group.workers
        return next((worker.local_rank for worker in workers if failure and worker.global_rank == failure.rank), None)

    def _decide(self, store: dist.Store, worker_group: WorkerGroup, ended: Mapping[int, int], stop: int | None) -> None:
        failure = failure_of(store)
        found = outcome([ended[rank] for rank in sorted(ended)], failure, self._asked)
        self.code = found.code
        if failure is not None and stop is None and int(store.add(SAID, 0)) == 0:
            self.say(failure.shown())
        if not found.may_restart:
            self._remaining_restarts = 0
        elif self._remaining_restarts > 0:
            most = worker_group.spec.max_restarts
            self.say(f"starting all {len(self._processes)} processes again ({self._attempt + 1} of {most} restarts)")
            self.code = 0

    def _store_of_attempt(self, worker_group: WorkerGroup) -> dist.Store:
        address, port = worker_group.master_addr, worker_group.master_port
        assert address is not None and port is not None
        return keys_of(dist.TCPStore(address, port, is_master=False), self._attempt)

    def _of_silent(self, worker_group: WorkerGroup, local_rank: int, code: int) -> Failure:
        """A rank that could not say itself why it ended."""
        worker = worker_group.workers[local_rank]
        beat = last_beat(self._store_of_attempt(worker_group), worker.global_rank)
        problem, remedy = f"the process ended with exit code {code}, without a word", "see the end of its log"
        if code < 0:
            problem = f"the process was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            remedy = "a process that the system killed had most likely no memory left: `dmesg` says so"
        return Failure(
            rank=worker.global_rank,
            size=worker.world_size,
            host=os.uname().nodename,
            phase="starting" if beat is None else beat.phase,
            problem=problem,
            stack="" if beat is None else beat.stack,
            log=str(self.logs / f"rank-{worker.global_rank}.log") if self.logs else "",
            code=exit_code(-code) if code < 0 else code,
            remedy=remedy,
        )


# ---------------------------------------------------------------- around it


@contextmanager
def _quiet_agent(logs: Path | None) -> Iterator[None]:
    """What torch's agent says of an end goes to launcher.log: the user is to see one error, and that is the rank's."""
    logger = logging.getLogger("torch.distributed.elastic")
    before = logger.propagate, list(logger.handlers)
    handler: logging.Handler = logging.NullHandler()
    if logs is not None:
        with writing(logs):
            logs.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(logs / "launcher.log", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        handler.close()
        logger.propagate, logger.handlers = before


@contextmanager
def _environment(launch: Launch) -> Iterator[None]:
    """torch's agent hands its own environment on to the ranks."""
    added = {
        # Before a library is loaded, for some read it then and never again.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_of(launch.processes))),
        # Signals are this module's: torch's own handler would leave the agent's loop in the middle of a step.
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT",
        OWN_LAUNCHER: "posttrain",
        **launch.environment,
    }
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
