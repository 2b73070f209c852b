"""The caller's side of the sandbox: jobs out, verdicts back.

One lane is one server process with one job at a time; several lanes run several jobs. Programs and tests go over as
open files in memory, which the server hands on unread.
"""

from __future__ import annotations

import glob
import json
import os
import queue
import secrets
import select
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from posttrain.errors import ConfigError, TrainingError

START_SECONDS = 30.0
ANSWER_SECONDS = 10.0
"""How much longer than the job's own time its answer may take before the server is given up."""
PRELOAD = (
    "abc",
    "bisect",
    "cmath",
    "collections",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "io",
    "itertools",
    "json",
    "math",
    "operator",
    "random",
    "re",
    "statistics",
    "string",
    "struct",
    "sys",
    "textwrap",
    "time",
    "types",
    "typing",
    "unittest",
)
"""Modules that programs often import; loaded once, before the first job."""

_START = """
import json, sys, types
for name, path in json.loads(sys.argv[2]):
    package = types.ModuleType(name)
    package.__path__ = [path]
    sys.modules[name] = package
from posttrain.rewards.sandbox.inside.server import run
run(int(sys.argv[1]), json.loads(sys.argv[3]))
"""
"""Imports the server without the packages around it, whose modules would be in every program's memory."""


class Outcome(StrEnum):
    """How a program ended."""

    PASSED = "passed"
    """The tests ran to their end, and the harness said so with the job's nonce."""
    FAILED = "failed"
    """A check failed, the program does not load, or the tests ended early."""
    FINISHED = "finished"
    """A script ran to its end; what it printed is for the caller to judge."""
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    """The deciding process died: of a signal, or of a limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. Limits(seconds=5, memory_mb=512) is the default."""

    seconds: float = 5.0
    """Of wall time, tests included; as much CPU time for each of the two processes."""
    memory_mb: int = 512
    """Address space of each process. Libraries such as NumPy want 2,000 and more."""
    scratch_mb: int = 16
    """Scratch folder, which lies in memory where there are namespaces."""
    file_mb: int = 4
    """Any one file, and what a script may print."""
    open_files: int = 64

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("memory_mb", self.memory_mb), ("file_mb", self.file_mb)):
            if not value > 0:
                raise ConfigError(
                    f"the sandbox's `{name}` is not positive", found=value, remedy=f"write `{name}: 5`, say"
                )


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
        self._settings = _settings(self.limits, packages)
        self._namespaces = namespaces
        self._free: queue.LifoQueue[_Lane] = queue.LifoQueue()
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
        with _file(program) as one, _file(json.dumps(job)) as two, _file("") as result:
            end = self._run(b"t", (one, two, result), seconds)
            said = _said(result)
        passed = secrets.compare_digest(str(said.get("nonce", "")), nonce)
        outcome = Outcome.PASSED if passed else end.outcome
        if outcome is Outcome.FINISHED:
            outcome = Outcome.FAILED
        message = "" if passed else str(said.get("failed") or end.described("the tests"))
        return Verdict(outcome, int(said.get("calls", 0)), message, end.seconds)

    def run_script(self, program: str, given: str = "", *, seconds: float | None = None) -> Printed:
        """What `program` prints when it reads `given`; whether that is right is for the caller to say."""
        with _file(program) as one, _file(given) as two, _file("") as output:
            end = self._run(b"s", (one, two, output), seconds)
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

    def _run(self, role: bytes, files: Sequence[IO[bytes]], seconds: float | None) -> _End:
        lane = self._free.get()
        try:
            return lane.run(role, files, self.limits.seconds if seconds is None else seconds)
        except (OSError, ValueError, EOFError):  # the server is gone: nothing of the job is left, and nothing is proven
            lane.close()
            with self._changing:
                self._lanes.remove(lane)
                lane = self._start()
                self._lanes.append(lane)
            return _End({"seconds": 0.0, "timed_out": False, "worker": -1, "harness": -1})
        except _Unconfined as trouble:
            raise _not_confined(trouble) from None
        finally:
            self._free.put(lane)

    def _start(self) -> _Lane:
        if self._namespaces is not False:
            try:
                return self._proven(_Lane(self._settings | {"namespaces": True}))
            except (_Refused, _Unconfined) as refused:
                if self._namespaces:
                    raise ConfigError(
                        "this system does not let a process make its own namespaces",
                        found=str(refused),
                        remedy="allow it (docs/sandbox.md says how), or do with the other layers: `namespaces: false`",
                    ) from None
                self._namespaces = False
        try:
            return self._proven(_Lane(self._settings | {"namespaces": False}))
        except _Unconfined as trouble:
            raise _not_confined(trouble) from None

    def _proven(self, lane: _Lane) -> _Lane:
        """A lane in which an empty program ran to its end."""
        with _file("") as program, _file("") as given, _file("") as output:
            try:
                end = lane.run(b"s", (program, given, output), START_SECONDS)
            except (EOFError, OSError, ValueError) as error:
                end = None
                trouble = _Unconfined(f"{type(error).__name__}: {error}")
            except _Unconfined:
                lane.close()
                raise
        if end is None or end.outcome is not Outcome.FINISHED:
            lane.close()
            raise trouble if end is None else _Unconfined(f"an empty program has {end.outcome}")
        return lane


def _not_confined(trouble: _Unconfined) -> TrainingError:
    return TrainingError(
        "the sandbox cannot confine programs on this machine, so it runs none",
        found=str(trouble),
        remedy="`python -m benchmarks.sandbox --layers` shows each layer; a limit may be too low for Python to start",
    )


class _Refused(Exception):
    """The system allows no namespaces."""


class _Unconfined(Exception):
    """A layer that the server counts on did not hold for a job; the job did not run."""


class _End:
    """How a job ended, as the server saw it."""

    def __init__(self, answer: dict[str, Any]):
        self.seconds = float(answer["seconds"])
        self.timed_out = bool(answer["timed_out"])
        self.status = int(answer["worker"] if answer["harness"] is None else answer["harness"])

    @property
    def outcome(self) -> Outcome:
        if self.timed_out:
            return Outcome.TIMED_OUT
        if self.status < 0 or os.WIFSIGNALED(self.status):
            return Outcome.CRASHED
        return Outcome.FINISHED if self.status == 0 else Outcome.FAILED

    def described(self, what: str) -> str:
        if self.timed_out:
            return f"still running after {self.seconds:.1f} s"
        if self.status >= 0 and os.WIFSIGNALED(self.status):
            return f"{what} died of signal {os.WTERMSIG(self.status)}"
        return f"{what} ended before the last check"


class _Lane:
    """One server process and the line to it."""

    def __init__(self, settings: dict[str, Any]):
        here, there = socket.socketpair()
        packages = [(name, str(_package(name))) for name in _PACKAGES]
        command = [sys.executable, "-I", "-S", "-B", "-c", _START]
        arguments = [str(there.fileno()), json.dumps(packages), json.dumps(settings)]
        self._process = subprocess.Popen(
            command + arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[there.fileno()],
            env={},
            cwd="/",
        )
        there.close()
        self._control = here
        try:
            hello = self._read(time.monotonic() + START_SECONDS)
        except (EOFError, ValueError, OSError):
            self._process.kill()
            _, trouble = self._process.communicate()
            here.close()
            last = trouble.decode(errors="replace").strip().splitlines()[-1:]
            raise TrainingError(
                "the sandbox's server does not start",
                found="; ".join(last) or None,
                remedy="run `python -m benchmarks.sandbox --layers` to see what this machine allows",
            ) from None
        if "refused" in hello:
            self.close()
            raise _Refused(hello["refused"])
        self.layers: dict[str, bool] = hello["layers"]

    def run(self, role: bytes, files: Sequence[IO[bytes]], seconds: float) -> _End:
        """One job.

        Raises:
            _Unconfined: a side could not be confined, and did not run.
            EOFError: the server has died.
        """
        deadline = time.monotonic() + seconds + ANSWER_SECONDS
        socket.send_fds(self._control, [struct.pack("!cd", role, seconds)], [file.fileno() for file in files])
        end = _End(self._read(deadline))
        assert self._process.stderr is not None
        if select.select([self._process.stderr], [], [], 0)[0]:  # only a side that is not yet confined has this pipe
            raise _Unconfined(os.read(self._process.stderr.fileno(), 4096).decode(errors="replace").strip())
        return end

    def close(self) -> None:
        self._control.close()  # the server ends what runs, and itself
        try:
            self._process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def _read(self, deadline: float) -> dict[str, Any]:
        data = b""
        while not data.endswith(b"\n"):
            ready, _, _ = select.select([self._control], [], [], max(0.0, deadline - time.monotonic()))
            part = self._control.recv(65536) if ready else b""
            if not part:
                raise EOFError
            data += part
        return dict(json.loads(data))


_PACKAGES = ("posttrain", "posttrain.rewards", "posttrain.rewards.sandbox", "posttrain.rewards.sandbox.inside")


def _package(name: str) -> Path:
    return Path(__file__).parents[len(_PACKAGES) - 2].joinpath(*name.split(".")[1:])


def _settings(limits: Limits, packages: bool) -> dict[str, Any]:
    installed = [path for path in sys.path if path.endswith("-packages")] if packages else []
    wanted = [*_standard_library(), *installed]
    readable = {path for one in wanted for path in (one, os.path.realpath(one)) if os.path.exists(path)}
    # What is installed may hold data sets with their answers, so a program does not read it uninvited.
    hidden = {
        name for path in readable for inner in ("", "/python*") for name in glob.glob(f"{path}{inner}/*-packages")
    }
    return {
        "readable": sorted(readable),
        "hidden": sorted(hidden - set(installed)),
        "packages": installed,
        "preload": PRELOAD,
        "cpu_seconds": int(limits.seconds) + 1,
        "memory_bytes": limits.memory_mb << 20,
        "scratch_bytes": limits.scratch_mb << 20,
        "file_bytes": limits.file_mb << 20,
        "open_files": limits.open_files,
    }


def _standard_library() -> list[str]:
    """Folders and files that importing the standard library reads: its modules, and the shared libraries they need."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix, "installed_base": sys.base_prefix}
    modules = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
    architecture = sysconfig.get_config_var("MULTIARCH")
    system = ["/usr/lib", "/lib"] if architecture is None else [f"/usr/lib/{architecture}", f"/lib/{architecture}"]
    own = sysconfig.get_config_var("LIBDIR")
    if own and own not in ("/usr/lib", "/lib"):
        modules.append(own)
    return [*modules, *system, "/usr/lib64", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache"]


def _file(text: str) -> IO[bytes]:
    """An open file that has no name."""
    if sys.platform == "linux":
        file: IO[bytes] = os.fdopen(os.memfd_create("job"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 -- the caller closes it
    file.write(text.encode(errors="surrogatepass"))
    file.flush()
    file.seek(0)
    return file


def _said(result: IO[bytes]) -> dict[str, Any]:
    """What the harness wrote; nothing, if it died before."""
    result.seek(0)
    try:
        said = json.loads(result.read(65536) or b"{}")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
