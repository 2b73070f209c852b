"""What ends a job as a whole when one of its ranks cannot go on: a thread in every rank, and a few keys in a store.

    watch = Watch(job, store, log, patience=1800)
    watch.start()
    try:
        ...                  # the rank's work
    except BaseException as error:
        watch.leave(error)   # tells the others, unless all raise it
        raise
    watch.leave(None)

    beat/3      the rank's sign of life, every half second: what it does, for how long nothing moved
    failure     the first failure; whoever reads it writes its stacks into its log and ends within seconds
    stop        a signal by which a rank left
    told        the failure is on the terminal

A rank reports its own exception. That of a rank which cannot (killed, stopped, its machine gone) is reported by its
neighbour, one that is stuck by rank 0; see `judging`. Ranks that only follow end with the code 75. The thread draws no
random number and touches no tensor.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist

from posttrain.errors import RankError
from posttrain.parallel import failure as failures
from posttrain.parallel.beats import Beat, Pulse
from posttrain.parallel.failure import FOLLOWED, Failure
from posttrain.parallel.job import Job
from posttrain.parallel.judging import LOST_SECONDS, Seen, stuck
from posttrain.parallel.rank_log import STACKS, RankLog, log_of
from posttrain.parallel.stopping import exit_code, number_of
from posttrain.parallel.world import is_everywhere
from posttrain.runs.progress import Progress, clock

PATIENCE = 1800.0
"""Seconds without any progress on any rank, while one waits, after which a job is taken for stuck."""
BEAT_SECONDS = 0.5
SUSPECT_SECONDS = 3.0
"""How long an error out of torch.distributed waits for a better one: that a peer closed the connection is what all the
others see when a rank dies, and says nothing of why."""
TELLING_SECONDS = 4.0
"""How long a failing rank stays until its failure is on the terminal: a launcher ends all when the first one ends."""
LAUNCHER_SECONDS = 3.0
"""How long a process may be gone before another rank reports it in the launcher's place."""
LEAVING_SECONDS = 120.0
"""How long a rank that is through waits for rank 0, which still writes the report."""
STOPPED_SECONDS, SIGNALLED_SECONDS = 10.0, 60.0
"""After another rank left by a signal: until one that waits for it in vain ends, and until one that does not is sent
the signal too."""

FAILURE, STOP, TOLD, SAID = "failure", "stop", "told", "said"


class Watch:
    """
    Args:
        store: of this job's attempt alone (a `PrefixStore`): keys of the one before must not be seen.
        end: ends the process; another one in tests.
    """

    def __init__(
        self,
        job: Job,
        store: dist.Store,
        log: RankLog,
        *,
        patience: float = PATIENCE,
        end: Callable[[int], Any] = os._exit,
    ):
        self.job, self.log, self.patience = job, log, patience
        self.lost_after = min(LOST_SECONDS, patience)
        # A thousand ranks at half a second each would be all that the store's one thread does.
        self.interval = min(max(BEAT_SECONDS, job.size / 256), self.lost_after / 4)
        self._end_process = end
        self._store = store
        self._store.set_timeout(timedelta(seconds=self.lost_after))
        self._pulse = Pulse()
        self._halt = threading.Event()
        self._is_leaving = False
        self._stop_seen: float | None = None
        self._is_signalled = False
        self._neighbour = (job.rank + 1) % job.size
        self._seen = Seen(time.monotonic())
        self._gone_since: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, name="posttrain-rank-watch", daemon=True)

    def start(self) -> None:
        self._store.set(_beat(self.job.rank), self._pulse.take().to_json())
        self._thread.start()

    def follow(self, progress: Progress) -> None:
        """What the beats say of this rank's phase and progress."""
        self._pulse.progress = progress

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        while not self._halt.wait(self.interval):
            try:
                self._look()
            except RuntimeError as error:  # torch raises it, and subclasses, where the store is gone
                if not self._halt.is_set():
                    self._lost_store(error)
                return

    def _look(self) -> None:
        beat = self._pulse.last() if self._is_leaving else self._pulse.take()
        self._store.set(_beat(self.job.rank), beat.to_json())
        if (failed := self.failure()) is not None:
            self._follow(failed, beat)
        elif self._store.check([STOP]):
            self._heed_stop(int(self._store.get(STOP)), beat)
        else:
            self._judge_neighbour()
            if self.job.is_main and self.job.size > 1:
                self._judge_all()

    def failure(self) -> Failure | None:
        """The one that ends this job, if there is one."""
        return Failure.from_json(self._store.get(FAILURE).decode()) if self._store.check([FAILURE]) else None

    def _judge_neighbour(self) -> None:
        if self._neighbour == self.job.rank:
            return
        beat = self._beat_of(self._neighbour)
        silence = self._seen.look(beat, time.monotonic(), self.interval)
        if beat.has_left:
            return
        is_here = beat.machine == failures.machine_tag()
        if is_here and failures.is_gone(beat.pid, beat.born):
            if self._launcher_may_know(self._neighbour):
                return
            problem = "its process is gone: it was killed, or ended without a word"
            remedy = "a process that the system killed had most likely no memory left: `dmesg` says so"
            self._accuse(self._neighbour, beat, problem, remedy=remedy, code=exit_code(signal.SIGKILL))
        elif silence > self.lost_after:
            if is_here and STACKS is not None and self._logs(self._neighbour):
                os.kill(beat.pid, STACKS)  # where native code keeps Python's lock, it still writes its stacks
            problem = f"no sign of life for {clock(silence)}: stopped, or inside of native code that never returns"
            self._accuse(self._neighbour, beat, problem, remedy=f"look at process {beat.pid} on {beat.host}")

    def _launcher_may_know(self, rank: int) -> bool:
        """Our own launcher sees how a process ended (which signal, which code), where this rank can only see that it is
        gone. It looks ten times a second, so it is given a moment to say so; without an end, for it may be gone too."""
        if self.job.launcher != "posttrain":
            return False
        self._gone_since.setdefault(rank, time.monotonic())
        return time.monotonic() - self._gone_since[rank] < LAUNCHER_SECONDS

    def _judge_all(self) -> None:
        beats = [self._beat_of(rank) for rank in range(self.job.size)]
        found = stuck(beats, self.patience)
        if found is not None:
            rank, why = found
            remedy = "the stack says what it does; where that is slow and not stuck, give `--patience` more seconds"
            self._accuse(rank, beats[rank], why, remedy=remedy)

    def _accuse(self, rank: int, beat: Beat, problem: str, *, remedy: str, code: int = failures.FAULT) -> None:
        """Report the failure of a rank that cannot do it itself."""
        failed = Failure(
            rank=rank,
            size=self.job.size,
            host=beat.host,
            phase=beat.phase,
            problem=problem,
            stack=beat.stack,
            log=self._logs(rank),
            code=code,
            remedy=remedy,
        )
        self._follow(self._publish(failed), beat)

    def _publish(self, failed: Failure) -> Failure:
        """Ours, or the one that was there first."""
        return Failure.from_json(self._store.compare_set(FAILURE, "", failed.to_json()).decode())

    def _beat_of(self, rank: int) -> Beat:
        return Beat.from_json(self._store.get(_beat(rank)))

    def _logs(self, rank: int) -> str:
        return "" if self.log.path is None else str(log_of(self.log.path.parent.parent, rank))

    # ------------------------------------------------------------ the end of this process

    def _follow(self, failed: Failure, beat: Beat) -> None:
        """Another rank failed, or this one as another sees it."""
        if failed.rank == self.job.rank and self._is_leaving:
            return  # it is ours, and the main thread is on its way out with it
        self.log.dump_stacks(f"{failed.sentence}\n==== this rank: {beat.phase}")
        self._tell(failed)
        failures.report_to_torchrun(failed, is_own=False)
        self._end(FOLLOWED)

    def _tell(self, failed: Failure) -> None:
        """One rank says it: rank 0, where that one can. A rank that tells its own error says nothing here."""
        if not self.job.is_main:
            deadline = time.monotonic() + TELLING_SECONDS
            while not self._store.check([TOLD]) and time.monotonic() < deadline:
                time.sleep(0.05)
        if self._store.add(SAID, 1) == 1:
            self.log.say(failed.shown())
        self._store.set(TOLD, "")

    def _lost_store(self, error: RuntimeError) -> None:
        keeper = "the launcher" if self.job.launcher in ("posttrain", "torchrun") else "rank 0"
        self.log.dump_stacks(f"the job's store is gone ({error})")
        if self.job.is_main or self.job.launcher != "posttrain":
            self.log.say(f"rank {self.job.rank}: the job's store does not answer, so {keeper} is gone; this rank ends")
        self._end(FOLLOWED)

    def _heed_stop(self, number: int, beat: Beat) -> None:
        """Another rank left by a signal; this one does too, by itself where they stop in lockstep."""
        now = time.monotonic()
        self._stop_seen = now if self._stop_seen is None else self._stop_seen
        seconds = now - self._stop_seen
        if self._is_leaving or seconds < STOPPED_SECONDS:
            return
        if beat.is_waiting and beat.still > STOPPED_SECONDS:
            self.log.dump_stacks(
                f"another rank was stopped by {signal.Signals(number).name}, and this one waits for it"
            )
            self._end(exit_code(number))
        elif seconds > SIGNALLED_SECONDS and not self._is_signalled:
            self._is_signalled = True
            os.kill(os.getpid(), number)

    def _end(self, code: int) -> None:
        # What this rank has started (a sandbox, a server, workers) would outlive it.
        for child in psutil.Process().children(recursive=True):
            child.kill()
        self._halt.set()
        self._end_process(code)

    # ------------------------------------------------------------ leaving

    def leave(self, error: BaseException | None) -> None:
        """The rank's work has ended, by an error or well; called once, by the thread that did the work.

        Where another rank has failed, this does not return: the thread ends the process.
        """
        try:
            if error is None or (isinstance(error, SystemExit) and not error.code):
                self._leave_well()
            elif isinstance(error, KeyboardInterrupt):
                self._await_failure(3 * self.interval)
                self._store.compare_set(STOP, "", str(number_of(error)))
                self._leave_after_main()
            elif is_everywhere(error):
                self._leave_after_main()
            else:
                self._leave_failed(error)
        except RuntimeError:  # the store is gone with the rank that kept it: nobody is there to be told
            if error is None and self.job.is_main:
                raise
        finally:
            self._halt.set()
            self._thread.join()

    def _leave_well(self) -> None:
        self._say_left()
        # The store may be in this process; and a report that fails now would be nobody's any more.
        if self.job.is_main:
            self._until(lambda: all(self._beat_of(rank).has_left for rank in range(self.job.size)), None)

    def _leave_after_main(self) -> None:
        """All ranks end alike, and rank 0 has more to write and to say than the others: a launcher that sees one of
        them end sends the signal of the end to all."""
        self._say_left()
        if not self.job.is_main:
            self._until(lambda: self._beat_of(0).has_left, LEAVING_SECONDS)
            time.sleep(1.0)

    def _leave_failed(self, error: BaseException) -> None:
        if _is_of_collectives(error):
            self._await_failure(SUSPECT_SECONDS)
            if (gone := self._left_alone()) is not None:
                problem = "it has ended its program, while another rank still computes with it"
                self._accuse(*gone, problem, remedy="a rank must not decide alone that it is through")
                return
        beat = self._pulse.take()
        phase = self._pulse.left_at(error) or beat.phase
        failed = Failure(
            rank=self.job.rank,
            size=self.job.size,
            host=beat.host,
            phase=phase,
            problem=failures.problem_of(error),
            stack=failures.stack_of(error),
            log=self._logs(self.job.rank),
            code=failures.code_of(error),
            is_transient=failures.is_transient(error),
        )
        self._is_leaving = True
        if self._publish(failed) != failed:
            self._is_leaving = False
            self._await_failure(self.lost_after)
        failures.report_to_torchrun(failed, is_own=True)
        if self.job.size > 1:
            error.add_note(f"rank {self.job.rank} of {self.job.size} on {beat.host} ({phase})")
        if self.job.is_main:
            self._store.add(SAID, 1)  # whoever called shows the error, on this rank's terminal
        else:
            self._until(lambda: self._store.check([TOLD]), TELLING_SECONDS)

    def _left_alone(self) -> tuple[int, Beat] | None:
        """A rank that left before this one, and well as far as it knows."""
        beats = [(rank, self._beat_of(rank)) for rank in range(self.job.size) if rank != self.job.rank]
        return next(((rank, beat) for rank, beat in beats if beat.has_left), None)

    def _say_left(self) -> None:
        self._is_leaving = True
        self._store.set(_beat(self.job.rank), self._pulse.last().to_json())

    def _await_failure(self, seconds: float) -> None:
        """Gives the thread time to find another rank's failure, by which it ends this process."""
        self._until(lambda: not self._thread.is_alive(), seconds)

    def _until(self, is_so: Callable[[], bool], seconds: float | None) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds
        while not is_so() and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.05)


def await_all(store: dist.Store, job: Job, seconds: float) -> None:
    """Until every rank has given its first sign of life.

    Raises:
        RankError: some have not within `seconds`; names them.
    """
    deadline = time.monotonic() + seconds
    missing = list(range(job.size))
    while missing := [rank for rank in missing if not store.check([_beat(rank)])]:
        if time.monotonic() > deadline:
            raise RankError(
                f"{len(missing)} of {job.size} ranks did not start within {clock(seconds)}",
                found=f"no word from ranks {', '.join(map(str, missing[:20]))}",
                remedy="look for them on their machines: a disk that does not answer, another command, a firewall",
            )
        time.sleep(0.05)


def failure_of(store: dist.Store) -> Failure | None:
    """What ended the attempt whose store this is."""
    return Failure.from_json(store.get(FAILURE).decode()) if store.check([FAILURE]) else None


def last_beat(store: dist.Store, rank: int) -> Beat | None:
    return Beat.from_json(store.get(_beat(rank))) if store.check([_beat(rank)]) else None


def _beat(rank: int) -> str:
    return f"beat/{rank}"


def _is_of_collectives(error: BaseException) -> bool:
    """Whether it came out of torch.distributed."""
    marker = os.path.join("torch", "distributed")
    return any(marker in frame.filename for frame in traceback.extract_tb(error.__traceback__))
