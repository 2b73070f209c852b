"""A job on a Ray cluster: one actor a process, which starts it, passes signals on and says how it ended.

    code = launch_on_ray(["run", "mine.yaml"], RayLaunch(nodes=2, processes_per_node=8), say=print)

Ray places the actors and moves no tensor. The machines must share the file system of recipe, data and run folder, and
have posttrain installed in the environment of Ray. Actor 0 keeps the job's store, as torch's elastic agent does, so the
ranks watch each other as everywhere else.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from posttrain.errors import ConfigError, MissingExtraError
from posttrain.launching.outcome import FAILED_SECONDS, STOP_SECONDS, is_own, outcome
from posttrain.launching.ray_actor import RankActor, RankState, failure_text
from posttrain.parallel.failure import Failure

PLACING_SECONDS = 120.0
LOOK_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class RayLaunch:
    """RayLaunch(nodes=2, processes_per_node=8, cpus_per_process=4, gpus_per_process=1)"""

    nodes: int
    processes_per_node: int
    cpus_per_process: int = 1
    gpus_per_process: int | None = None
    """None: one where the cluster has as many, else none."""
    restarts: int = 0
    address: str = "auto"
    module: str = "posttrain"
    """What each process runs, as `python -m MODULE ARGUMENTS`."""

    @property
    def size(self) -> int:
        return self.nodes * self.processes_per_node


def launch_on_ray(arguments: Sequence[str], launch: RayLaunch, say: Callable[[str], None]) -> int:
    """Run `posttrain ARGUMENTS` as every process of the job, and give the exit code of the whole.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there is no cluster, or it has not the room.
    """
    ray = _ray()
    _connect(ray, launch.address)
    try:
        with _placed(ray, launch) as group:
            failure: Failure | None = None
            for attempt in range(launch.restarts + 1):
                job = RayJob(ray, launch, group, say, attempt)
                code, may_restart, failure = job.run(arguments, failure)
                if not may_restart or attempt == launch.restarts:
                    return code
                say(f"starting all {launch.size} processes again ({attempt + 1} of {launch.restarts} restarts)")
        raise AssertionError("unreachable")
    finally:
        ray.shutdown()


def _ray() -> Any:
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError(
            "`posttrain launch ray` needs the package `ray`", remedy="install it: `pip install 'posttrain[ray]'`"
        )
    import ray

    return ray


def _connect(ray: Any, address: str) -> None:
    """Raises ConfigError if nobody answers there."""
    try:
        if ":" in address and "://" not in address:
            # Ray itself would try for minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        # The ranks' own words come through their actors; Ray would print those of its workers as well, with a prefix.
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "there is no Ray cluster here",
            where=address,
            found=str(error).splitlines()[0],
            remedy="start one (`ray start --head`, and `ray start --address=HOST:PORT` on the other machines), or give "
            "its `--address`",
        ) from error


@contextmanager
def _placed(ray: Any, launch: RayLaunch) -> Iterator[Any]:
    """The room for all processes, as many machines as there are nodes."""
    from ray.util.placement_group import placement_group, remove_placement_group

    gpus = _gpus(ray, launch)
    bundle = {"CPU": launch.cpus_per_process * launch.processes_per_node}
    if gpus:
        bundle["GPU"] = gpus * launch.processes_per_node
    group = placement_group([dict(bundle) for _ in range(launch.nodes)], strategy="STRICT_SPREAD")
    try:
        try:
            ray.get(group.ready(), timeout=PLACING_SECONDS)
        except ray.exceptions.GetTimeoutError:
            there = {name: count for name, count in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            machines = len([node for node in ray.nodes() if node["Alive"]])
            raise ConfigError(
                "the Ray cluster has no room for the job",
                found=f"{there} on {machines} machines, of which others may use a part",
                expected=f"{bundle} on each of {launch.nodes} machines",
                remedy="lower `--nodes`, `--processes-per-node` or `--cpus-per-process`, or wait until there is room",
            ) from None
        yield group
    finally:
        remove_placement_group(group)


def _gpus(ray: Any, launch: RayLaunch) -> int:
    if launch.gpus_per_process is not None:
        return launch.gpus_per_process
    return int(ray.cluster_resources().get("GPU", 0) >= launch.size)


class RayJob:
    """One attempt: its actors, by rank."""

    def __init__(self, ray: Any, launch: RayLaunch, group: Any, say: Callable[[str], None], attempt: int):
        self.ray, self.launch, self.say, self.attempt = ray, launch, say, attempt
        self._asked: int | None = None
        self._states = [RankState() for _ in range(launch.size)]
        self._actors = [self._actor(group, rank) for rank in range(launch.size)]

    def _actor(self, group: Any, rank: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = PlacementGroupSchedulingStrategy(
            placement_group=group, placement_group_bundle_index=rank // self.launch.processes_per_node
        )
        remote = self.ray.remote(RankActor).options(
            num_cpus=self.launch.cpus_per_process,
            num_gpus=_gpus(self.ray, self.launch),
            scheduling_strategy=place,
            max_concurrency=4,
        )
        return remote.remote(rank, self.launch.module)

    # ------------------------------------------------------------ from its start to its end

    def run(self, arguments: Sequence[str], before: Failure | None) -> tuple[int, bool, Failure | None]:
        """(exit code, whether starting again could help, what went wrong)

        Args:
            before: what ended the attempt before this one; the ranks note it in the run folder.
        """
        try:
            with self._passing_signals_on():
                failure = self._start(arguments, before) or self._watch()
            return self._concluded(failure)
        finally:
            for actor in self._actors:
                self._end(actor)

    def _start(self, arguments: Sequence[str], before: Failure | None) -> Failure | None:
        """Every process with torchrun's variables; the failure of an actor that could not start its own."""
        try:
            places = self.ray.get([actor.place.remote() for actor in self._actors])
            told = None if before is None else before.to_json()
            address, port = self.ray.get(self._actors[0].keep_store.remote(self.attempt, told))
        except self.ray.exceptions.RayError as error:
            return self._of_actor(0, error)
        name = uuid.uuid4().hex[:12]
        started = []
        for rank, actor in enumerate(self._actors):
            node, local = divmod(rank, self.launch.processes_per_node)
            first = node * self.launch.processes_per_node
            here = places[first : first + self.launch.processes_per_node]
            variables = {
                "RANK": str(rank),
                "WORLD_SIZE": str(self.launch.size),
                "LOCAL_RANK": str(local),
                "LOCAL_WORLD_SIZE": str(self.launch.processes_per_node),
                "GROUP_RANK": str(node),
                "MASTER_ADDR": address,
                "MASTER_PORT": str(port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": str(self.attempt),
                "TORCHELASTIC_MAX_RESTARTS": str(self.launch.restarts),
                "TORCHELASTIC_RUN_ID": name,
                "POSTTRAIN_LAUNCHER": "ray",
            }
            # Ray shows an actor its own cards alone; a rank's card is counted among those of its machine.
            if cards := [card for place in here for card in place.cards]:
                variables["CUDA_VISIBLE_DEVICES"] = ",".join(cards)
            started.append(actor.start.remote(list(arguments), variables, os.getcwd()))
        for rank, reference in enumerate(started):
            try:
                self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                return self._of_actor(rank, error)
        return None

    def _watch(self) -> Failure | None:
        """Until all processes have ended, or the first has not ended well and the others have had their time."""
        deadline: float | None = None
        while True:
            lost = self._look()
            if lost is not None:
                return lost
            codes = [state.code for state in self._states]
            if all(code is not None for code in codes):
                return None
            if deadline is None and any(code not in (None, 0) for code in codes):
                seconds = STOP_SECONDS if self._asked is not None else FAILED_SECONDS
                deadline = time.monotonic() + seconds
            if deadline is not None and time.monotonic() > deadline:
                return None
            time.sleep(LOOK_SECONDS)

    def _look(self) -> Failure | None:
        """What is new of every rank; the failure of one whose actor is gone."""
        asked = [actor.news.remote() for actor in self._actors]
        for rank, reference in enumerate(asked):
            try:
                code, text = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                return self._of_actor(rank, error)
            self._states[rank] = RankState(code, self._states[rank].text + text)
            if text and rank == 0:
                self.say(text.rstrip("\n"))
        return None

    def _concluded(self, failure: Failure | None) -> tuple[int, bool, Failure | None]:
        if failure is None:
            failure = self._stored_failure() or self._silent_failure()
        codes = [state.code for state in self._states if state.code is not None]
        if failure is not None and self._asked is None and not self._has_said(failure):
            self.say(failure.shown())
        found = outcome(codes, failure, self._asked)
        return found.code, found.may_restart, failure

    def _end(self, actor: Any) -> None:
        # First the process: its actor gone, it would go on until it misses the store.
        with suppress(self.ray.exceptions.RayError):
            self.ray.get(actor.end.remote(), timeout=FAILED_SECONDS)
        self.ray.kill(actor)

    # ------------------------------------------------------------ what went wrong

    def _has_said(self, failure: Failure) -> bool:
        """Whether the rank that speaks has said it: what rank 0 writes comes here."""
        return failure.problem.splitlines()[0] in self._states[0].text

    def _stored_failure(self) -> Failure | None:
        """What the ranks themselves know of it."""
        try:
            text = self.ray.get(self._actors[0].failure.remote(self.attempt))
        except self.ray.exceptions.RayError as error:
            return self._of_actor(0, error)
        return None if text is None else Failure.from_json(text)

    def _silent_failure(self) -> Failure | None:
        """A process that ended without a word, before it had joined the job."""
        for rank, state in enumerate(self._states):
            if state.code is not None and not is_own(state.code):
                return failure_text(rank, self.launch.size, state)
        return None

    def _of_actor(self, rank: int, error: Exception) -> Failure:
        return Failure(
            rank=rank,
            size=self.launch.size,
            host="the Ray cluster",
            phase="running" if self._states[rank].text else "starting",
            problem=f"its Ray actor failed: {str(error).strip().splitlines()[-1]}",
            stack=str(error),
            remedy="`ray status` and Ray's dashboard say which machine or actor is gone",
        )

    # ------------------------------------------------------------ signals

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            signal.signal(number, self._pass_on)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pass_on(self, number: int, frame: Any) -> None:
        self._asked = self._asked or number
        for actor in self._actors:
            actor.send.remote(number)
