"""The caller's side of the sandbox: jobs out, verdicts back.

One lane is one server process with one job at a time; several lanes run several jobs. Programs and tests go over as
open files in memory, which the server hands on unread.
"""

from __future__ import annotations

import json
import queue
import secrets
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from posttrain.errors import ConfigError, TrainingError
from posttrain.rewards.sandbox.lane import (
    START_SECONDS,
    End,
    Lane,
    Limits,
    Outcome,
    Refused,
    Unconfined,
    job_file,
    settings_of,
)

ATTEMPTS = 2
"""Runs of a job that ends by a fault of the machine's, before the run stops."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Verdict(Outcome.FAILED, calls=3, message="AssertionError (line 4 of the tests)", seconds=0.01)"""

    outcome: Outcome
    calls: int
    """Calls of the program that were answered."""
    message: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASSED


@dataclass(frozen=True, slots=True)
class Printed:
    """Printed("3\\n", Outcome.FINISHED, 0.01)"""

    text: str
    outcome: Outcome
    seconds: float


class Sandbox:
    """Runs untrusted Python; start one and keep it, for starting takes longer than running.

    Args:
        lanes: how many programs run at once.
        packages: programs may import what is installed beside posttrain, not only the standard library.
        namespaces: None uses them where the system allows; True insists; False does without.

    Raises:
        ConfigError: `namespaces=True` where the system does not allow them.
        TrainingError: the server does not start.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        lanes: int = 1,
        packages: bool = False,
        namespaces: bool | None = None,
    ):
        self.limits = limits or Limits()
        self._settings = settings_of(self.limits, packages)
        self._namespaces = namespaces
        self._free: queue.LifoQueue[Lane] = queue.LifoQueue()
        self._lanes = [self._start()]
        self.layers: dict[str, bool] = self._lanes[0].layers
        """What holds programs back on this machine, by name, and whether it is active."""
        self._lanes += [self._start() for _ in range(lanes - 1)]
        for lane in self._lanes:
            self._free.put(lane)
        self._changing = threading.Lock()

    def run_tests(
        self, program: str, tests: str, *, entry_point: str | None = None, setup: str = "", seconds: float | None = None
    ) -> Verdict:
        """Whether `program` passes `tests`.

        Args:
            program: untrusted; runs in one process.
            tests: trusted; run in another, where the program's functions are remote: assertions, `check(candidate)`,
                `unittest` cases, or `test_` functions.
            entry_point: the function that `check` is called with; names that the tests use and do not define are the
                program's in any case.
            setup: trusted code that the tests need, such as the helpers in HumanEval's prompts.
            seconds: in place of the limits'.
        """
        nonce = secrets.token_hex(16)
        job = {"tests": tests, "setup": setup, "entry_point": entry_point or "", "nonce": nonce}
        with job_file(program) as program_file, job_file(json.dumps(job)) as two, job_file("") as result:
            end = self._run(b"t", (program_file, two, result), seconds)
            record = _read_record(result)
        passed = secrets.compare_digest(str(record.get("nonce", "")), nonce)
        outcome = Outcome.PASSED if passed else end.outcome
        if outcome is Outcome.FINISHED:
            outcome = Outcome.FAILED
        # When the time is up the program is ended first, and the tests may still get to say that it died: of what, the
        # server knows better.
        failed = None if end.timed_out else record.get("failed")
        message = "" if passed else str(failed or end.described("the tests"))
        return Verdict(outcome, int(record.get("calls", 0)), message, end.seconds)

    def run_script(self, program: str, given: str = "", *, seconds: float | None = None) -> Printed:
        """What `program` prints when it reads `given`; whether that is right is for the caller to say."""
        with job_file(program) as program_file, job_file(given) as two, job_file("") as output:
            end = self._run(b"s", (program_file, two, output), seconds)
            output.seek(0)
            text = output.read(self.limits.file_mb << 20).decode(errors="replace")
        outcome = end.outcome if end.outcome is not Outcome.FAILED else Outcome.FINISHED
        return Printed(text, outcome, end.seconds)

    def run_many(self, jobs: Iterable[dict[str, Any]]) -> list[Verdict]:
        """`run_tests` on every job's keywords, in the jobs' order, as many at once as there are lanes."""
        with ThreadPoolExecutor(len(self._lanes)) as pool:
            return list(pool.map(lambda job: self.run_tests(**job), jobs))

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, role: bytes, files: Sequence[IO[bytes]], seconds: float | None) -> End:
        """One job; once more, on a new lane, if it came to its end by a fault that is not the program's.

        Raises:
            TrainingError: it did so twice. A zero would say that the program is wrong, and nobody has judged it.
        """
        lane = self._free.get()
        faults: list[str] = []
        try:
            while True:
                try:
                    end = lane.run(role, files, self.limits.seconds if seconds is None else seconds)
                    if not end.killed:
                        return end
                    faults.append(f"the {end.killed} process was killed from outside")
                except Unconfined as trouble:
                    if faults:
                        raise _not_confined(trouble) from None
                    faults.append(f"a layer did not hold: {trouble}")
                except (OSError, ValueError, EOFError):
                    faults.append(f"the lane's server is gone: {lane.died_of()}")
                if len(faults) == ATTEMPTS:
                    raise _not_judged(faults)
                lane = self._another_for(lane)
                _begin_again(files)
        except TrainingError:
            raise
        except BaseException:  # an interrupt: the answer to this job must not be taken for the next one's
            lane = self._another_for(lane)
            raise
        finally:
            self._free.put(lane)

    def _another_for(self, lane: Lane) -> Lane:
        lane.close()
        another = self._start()
        with self._changing:
            self._lanes[self._lanes.index(lane)] = another
        return another

    def _start(self) -> Lane:
        if self._namespaces is not False:
            try:
                return self._proven(Lane(self._settings | {"namespaces": True}))
            except (Refused, Unconfined) as refused:
                if self._namespaces:
                    raise ConfigError(
                        "this system does not let a process make its own namespaces",
                        found=str(refused),
                        remedy="allow it (docs/sandbox.md says how), or do with the other layers: `namespaces: false`",
                    ) from None
                self._namespaces = False
        try:
            return self._proven(Lane(self._settings | {"namespaces": False}))
        except Unconfined as trouble:
            raise _not_confined(trouble) from None

    def _proven(self, lane: Lane) -> Lane:
        """A lane in which an empty program ran to its end."""
        with job_file("") as program, job_file("") as given, job_file("") as output:
            try:
                end = lane.run(b"s", (program, given, output), START_SECONDS)
            except (EOFError, OSError, ValueError) as error:
                end = None
                trouble = Unconfined(f"{type(error).__name__}: {error}")
            except Unconfined:
                lane.close()
                raise
        if end is None or end.outcome is not Outcome.FINISHED:
            lane.close()
            raise trouble if end is None else Unconfined(f"an empty program has {end.outcome}")
        return lane


def _not_confined(trouble: Unconfined) -> TrainingError:
    return TrainingError(
        "the sandbox cannot confine programs on this machine, so it runs none",
        found=str(trouble),
        remedy="`python -m benchmarks.sandbox --layers` shows each layer; a limit may be too low for Python to start",
    )


def _not_judged(faults: Sequence[str]) -> TrainingError:
    return TrainingError(
        "the sandbox could not judge a program: its processes ended early, on a second lane as well",
        found="; then ".join(faults),
        expected="processes that nothing but the sandbox ends",
        remedy="if memory runs out (the system's log names what it killed), lower `memory_mb` or `lanes`",
    )


def _begin_again(files: Sequence[IO[bytes]]) -> None:
    """A job's files as they were: what goes in is read from its start, and what came out is gone."""
    for file in files:
        file.seek(0)
    files[-1].truncate(0)


def _read_record(result: IO[bytes]) -> dict[str, Any]:
    """What the harness wrote; nothing, if it died before."""
    result.seek(0)
    try:
        record = json.loads(result.read(65536) or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
