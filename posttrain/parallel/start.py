"""One process joins its job, and leaves it: the only place where torch.distributed is started.

    with joined() as here:                      # under torchrun, `--processes`, Slurm or Ray; alone it does nothing
        here.log_to(run_folder)                 # ranks other than 0 write logs/rank-N.log
        here.follow(progress)                   # by which a stuck rank is told from a slow one
        ...

CPU tensors travel by gloo, those of GPUs by NCCL where both are there; a rank's GPU is that of its local rank.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from posttrain.errors import ConfigError, RankError
from posttrain.parallel.failure import Failure
from posttrain.parallel.job import Job, job_of
from posttrain.parallel.rank_log import RankLog
from posttrain.parallel.watch import PATIENCE, Watch, await_all, failure_of
from posttrain.parallel.world import ALONE, World, world
from posttrain.runs.progress import Progress

START_SECONDS = 600.0
"""How long the ranks wait for each other at the start: some read their libraries from a slow network disk."""
COLLECTIVE_TIMEOUT = timedelta(days=7)
"""The watch ends a job that is stuck. A collective's own clock cannot tell that from a rank whose judge is slow."""


class Member:
    """This process as a member of its job; alone, all of it does nothing."""

    def __init__(self, job: Job | None = None, watch: Watch | None = None, ended_by: Failure | None = None):
        self.job = job
        self._watch = watch
        self.ended_by = ended_by
        """What ended the attempt before this one, where the job was started again and it is known."""

    @property
    def world(self) -> World:
        return ALONE if self.job is None else world()

    @property
    def is_main(self) -> bool:
        return self.job is None or self.job.is_main

    def follow(self, progress: Progress) -> None:
        if self._watch is not None:
            self._watch.follow(progress)

    def log_to(self, folder: Path) -> None:
        """From here on what this rank writes is in logs/rank-N.log of the folder; rank 0 keeps the terminal.

        Raises:
            SourceError: on every rank, where one of them cannot write its log.
        """
        if self._watch is not None:
            with self.world.together("opening its log"):
                self._watch.log.move_to(folder)


@contextmanager
def joined(*, patience: float = PATIENCE) -> Iterator[Member]:
    """Join the job that the environment names (torchrun's variables), and leave it at the end.

    Args:
        patience: seconds without any progress after which a job with a waiting rank is ended as stuck.

    Raises:
        ConfigError: the environment is wrong, or this machine has fewer GPUs than processes.
        RankError: some rank did not start.
        BaseException: whatever the body raises; an error that this rank alone met ends the others too.
    """
    job = job_of(os.environ)
    if job is None or (dist.is_available() and dist.is_initialized()):
        yield Member()
        return
    log = RankLog(job.rank, job.attempt)
    log.open()
    error: BaseException | None = None
    try:
        # Under an elastic agent the store is the agent's, and is there when all ranks are gone.
        is_keeper = job.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = _connect(job, is_keeper=is_keeper)
        watch = Watch(job, keys_of(_connect(job), job.attempt), log, patience=patience)
        watch.start()
        try:
            await_all(keys_of(store, job.attempt), job, START_SECONDS)
            _prepare(job, store)
            yield Member(job, watch, failure_of(keys_of(store, job.attempt - 1)) if job.attempt else None)
        except BaseException as failure:
            error = failure
            raise
        finally:
            watch.leave(error)
            _take_leave(error)
    except BaseException as failure:
        error = failure
        raise
    finally:
        log.close(restore=error is None)


def _connect(job: Job, *, is_keeper: bool = False) -> dist.Store:
    """The keys of this attempt, over a connection of its own: whoever waits in one makes the others of it wait.

    Raises:
        RankError: whoever keeps the store cannot be reached.
    """
    try:
        store = dist.TCPStore(
            job.address,
            job.port,
            is_master=is_keeper,
            timeout=timedelta(seconds=START_SECONDS),
            wait_for_workers=False,
        )
    except RuntimeError as error:  # torch's DistError and its kin
        raise RankError(
            f"rank {job.rank} of {job.size} cannot reach the process that keeps the job together",
            where=f"{job.address}:{job.port}",
            found=str(error).splitlines()[0],
            remedy="see whether this machine can open that address: its name, a firewall, a port that is taken",
        ) from error
    return store


def keys_of(store: dist.Store, attempt: int) -> dist.Store:
    """Of one attempt: the launcher's store outlives them all."""
    return dist.PrefixStore(f"posttrain/{attempt}", store)


def _prepare(job: Job, store: dist.Store) -> None:
    """Threads, device and process group."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of(job.local_size))
    backend = "gloo"
    if torch.cuda.is_available():
        if job.local_size > torch.cuda.device_count():
            raise ConfigError(
                f"{job.local_size} processes were started on a machine with {torch.cuda.device_count()} GPUs",
                expected="at most one process a GPU",
                remedy=f"start {torch.cuda.device_count()}, or set CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU",
            )
        torch.cuda.set_device(job.local_rank)
        if dist.is_nccl_available():
            backend = "cpu:gloo,cuda:nccl"
    if job.size > 1:
        pairs = dist.PrefixStore("group", keys_of(store, job.attempt))
        dist.init_process_group(
            backend, store=pairs, rank=job.rank, world_size=job.size, timeout=COLLECTIVE_TIMEOUT, group_name=job.name
        )


def threads_of(local_size: int) -> int:
    """Of each process, where `local_size` of them share this machine's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // local_size)


def _take_leave(error: BaseException | None) -> None:
    # After an error NCCL would wait for operations that the other ranks never begin; the process ends anyway.
    if dist.is_initialized() and (error is None or dist.get_backend() == "gloo"):
        dist.destroy_process_group()
