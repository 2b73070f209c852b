"""One server process and the line to it: how it is started, given a job, and ended."""

from __future__ import annotations

import glob
import json
import os
import select
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from posttrain.errors import ConfigError, TrainingError
from posttrain.rewards.sandbox.inside.removal import remove_tree

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
    threads: int = 64
    """At once, on Linux from 5.5; each takes address space for its stack."""
    files: int = 1024
    """In the scratch folder; without namespaces, all that were made there, those that were removed as well."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ConfigError(
                    f"the sandbox's `{name}` is not positive", found=value, remedy=f"write `{name}: 5`, say"
                )


class Refused(Exception):
    """The system allows no namespaces."""


class Unconfined(Exception):
    """A layer that the server counts on did not hold for a job; the job did not run."""


class End:
    """How a job ended, as the server saw it."""

    def __init__(self, answer: dict[str, Any]):
        self.seconds = float(answer["seconds"])
        self.timed_out = bool(answer["timed_out"])
        self.killed = str(answer["killed"])
        """The side that the system or somebody killed, "worker" or "harness"; empty where none was."""
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


class Lane:
    """One server process and the line to it."""

    def __init__(self, settings: dict[str, Any]):
        here, there = socket.socketpair()
        packages = [(name, str(_package(name))) for name in _PACKAGES]
        # No user site, no .pth files, no bytecode: nothing on the way in that a job could have left there.
        command = [sys.executable, "-I", "-S", "-B", "-c", _START]
        arguments = [str(there.fileno()), json.dumps(packages), json.dumps(settings)]
        self._process = subprocess.Popen(
            command + arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[there.fileno()],
            # Empty: keys and tokens of the environment are nothing that a program should find.
            env={},
            cwd="/",
            start_new_session=True,  # an interrupt at the keyboard is the caller's to deal with
        )
        there.close()
        self._control = here
        try:
            hello = self._read(time.monotonic() + START_SECONDS)
        except (EOFError, ValueError, OSError):
            self._process.kill()
            _, trouble = self._process.communicate()
            here.close()
            last = _last_line(trouble)
            raise TrainingError(
                "the sandbox's server does not start",
                found="; ".join(last) or None,
                remedy="run `python -m benchmarks.sandbox --layers` to see what this machine allows",
            ) from None
        if "refused" in hello:
            self.close()
            raise Refused(hello["refused"])
        self.layers: dict[str, bool] = hello["layers"]
        self._folder: str = hello["folder"]

    def run(self, role: bytes, files: Sequence[IO[bytes]], seconds: float) -> End:
        """One job.

        Raises:
            Unconfined: a side could not be confined, and did not run.
            EOFError, OSError, ValueError: the server has died; `died_of` says of what.
        """
        deadline = time.monotonic() + seconds + ANSWER_SECONDS
        socket.send_fds(self._control, [struct.pack("!cd", role, seconds)], [file.fileno() for file in files])
        end = End(self._read(deadline))
        assert self._process.stderr is not None
        if select.select([self._process.stderr], [], [], 0)[0]:  # only a side that is not yet confined has this pipe
            raise Unconfined(os.read(self._process.stderr.fileno(), 4096).decode(errors="replace").strip())
        return end

    def died_of(self) -> str:
        """What is known of the end of a server that no longer answers."""
        assert self._process.stderr is not None
        try:
            status = self._process.wait(START_SECONDS / 30)
        except subprocess.TimeoutExpired:
            return "it does not answer"
        # Only what is there: a child that lives a moment longer holds the pipe open.
        there = select.select([self._process.stderr], [], [], 0)[0]
        last = _last_line(os.read(self._process.stderr.fileno(), 65536)) if there else []
        return "; ".join([f"it died of signal {-status}" if status < 0 else f"it ended with exit code {status}", *last])

    def close(self) -> None:
        self._control.close()  # the server ends what runs, and itself
        try:
            self._process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        if self._folder:
            _remove_what_is_left(self._folder)

    def _read(self, deadline: float) -> dict[str, Any]:
        data = b""
        while not data.endswith(b"\n"):
            ready, _, _ = select.select([self._control], [], [], max(0.0, deadline - time.monotonic()))
            part = self._control.recv(65536) if ready else b""
            if not part:
                raise EOFError
            data += part
        return dict(json.loads(data))


def _remove_what_is_left(folder: str) -> None:
    """A server that was killed leaves its folder, and its programs, which die a moment later, make files until then."""
    for pause in (0.01, 0.1, 1.0):
        with suppress(OSError):
            remove_tree(folder)
            return
        time.sleep(pause)
    remove_tree(folder)


def _last_line(printed: bytes) -> list[str]:
    """The end of a traceback, which names the error; empty where nothing was printed."""
    return printed.decode(errors="replace").strip().splitlines()[-1:]


_PACKAGES = ("posttrain", "posttrain.rewards", "posttrain.rewards.sandbox", "posttrain.rewards.sandbox.inside")


def _package(name: str) -> Path:
    return Path(__file__).parents[len(_PACKAGES) - 2].joinpath(*name.split(".")[1:])


def settings_of(limits: Limits, packages: bool) -> dict[str, Any]:
    installed = [path for path in sys.path if path.endswith("-packages")] if packages else []
    wanted = [*_standard_library(), *installed]
    readable = {
        path for wanted_path in wanted for path in (wanted_path, os.path.realpath(wanted_path)) if os.path.exists(path)
    }
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
        "threads": limits.threads,
        "files": limits.files,
        # Asked here: the server's environment is empty, so that it would take /tmp whatever the user wants.
        "scratch": tempfile.gettempdir(),
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


def job_file(text: str) -> IO[bytes]:
    """An open file that has no name."""
    if sys.platform == "linux":
        file: IO[bytes] = os.fdopen(os.memfd_create("job"), "w+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 -- the caller closes it
    file.write(text.encode(errors="surrogatepass"))
    file.flush()
    file.seek(0)
    return file
