"""The one trusted process of a sandbox: it forks the two sides of a job, ends them, and says how they ended.

It never sees a program or a test: a job arrives as open files, which only the side that needs them reads. What it
forks from holds the interpreter and these modules, so that neither side finds anything of the other's in its memory.

    run(control, settings)      control: a socket; settings: see Settings in the client

    job      one byte, the role (t: tests, s: script), the wall seconds, and the files
             t: the program, the tests, the result      s: the program, the input, the output
    answer   {"seconds": 0.02, "timed_out": false, "worker": 0, "harness": 0}    wait statuses
"""

from __future__ import annotations

import gc
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from posttrain.rewards.sandbox.inside import harness, linux, worker

JOB = struct.Struct("!cd")


class Server:
    def __init__(self, control: socket.socket, settings: Mapping[str, Any]):
        self.control = control
        self.settings = settings
        self.readable = linux.without_hidden(settings["readable"], settings["hidden"])
        self.filter = linux.seccomp_filter()
        self.landlock = linux.landlock_version()
        self.processes: int | None = None
        """This process's PID namespace; None where there are no namespaces."""
        self.folder = ""
        """Where scratch folders are made; unused with namespaces."""
        self.alarm, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def layers(self) -> dict[str, bool]:
        spaces = self.processes is not None
        return {
            "limits": True,
            "session": True,
            "seccomp": self.filter is not None,
            "landlock": self.landlock > 0,
            "user namespace": spaces,
            "network namespace": spaces,
            "process namespace": spaces,
            "mount namespace": spaces,
        }

    def serve(self) -> None:
        _tell(self.control, {"layers": self.layers()})
        while True:
            data, files, _, _ = socket.recv_fds(self.control, JOB.size, 3)
            if not data:
                return
            role, seconds = JOB.unpack(data)
            _tell(self.control, self.job(role, seconds, files))

    def job(self, role: bytes, seconds: float, files: list[int]) -> dict[str, Any]:
        started = time.monotonic()
        self.folder = tempfile.mkdtemp(prefix="posttrain-sandbox-") if self.processes is None else ""
        sides: dict[str, int] = {}
        try:
            if role == b"t":
                program, tests, result = files
                (to_worker, from_harness), (to_harness, from_worker) = os.pipe(), os.pipe()
                sides["worker"] = self.fork(
                    lambda: worker.serve(program, to_worker, from_worker), {program, to_worker, from_worker}
                )
                sides["harness"] = self.fork(
                    lambda: harness.judge(tests, result, from_harness, to_harness),
                    {tests, result, from_harness, to_harness},
                )
                files += [to_worker, from_harness, to_harness, from_worker]
            else:
                program, given, output = files
                sides["worker"] = self.fork(lambda: worker.script(program), {program}, given, output)
            for fd in files:  # a side must see the end of a pipe when the other side dies
                os.close(fd)
            timed_out, statuses = self.wait(sides, started + seconds)
        finally:
            if self.folder:
                shutil.rmtree(self.folder, ignore_errors=True)
        return {"seconds": time.monotonic() - started, "timed_out": timed_out, "harness": None} | statuses

    def wait(self, sides: Mapping[str, int], deadline: float) -> tuple[bool, dict[str, int]]:
        """Until the deciding side has ended, the caller has gone or the time is up; then nothing of either is left."""
        decides = sides.get("harness", sides["worker"])
        statuses: dict[int, int] = {}
        timed_out = False
        while decides not in statuses:
            left = deadline - time.monotonic()
            if left <= 0:
                timed_out = True
                break
            ready, _, _ = select.select([self.alarm, self.control.fileno()], [], [], left)
            if self.control.fileno() in ready:  # no job comes before this one is answered: the caller has hung up
                break
            if self.alarm in ready:
                os.read(self.alarm, 4096)
            _reap(sides, statuses, os.WNOHANG)
        for pid in sides.values():
            if pid not in statuses:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        _reap(sides, statuses, 0)
        return timed_out, {name: statuses[pid] for name, pid in sides.items()}

    def fork(self, run: Callable[[], None], keep: set[int], given: int | None = None, output: int | None = None) -> int:
        """A confined child; as the first process of a PID namespace where there are namespaces."""
        if self.processes is not None:
            linux.next_child_is_first()
        try:
            pid = os.fork()
            if not pid:
                self.become(run, keep, given, output)
        finally:
            if self.processes is not None:
                linux.children_are_own(self.processes)
        return pid

    def become(self, run: Callable[[], None], keep: set[int], given: int | None, output: int | None) -> None:
        """The child: confined, then `run`, then gone; never returns."""
        code, confined = 1, False
        try:
            nothing = os.open("/dev/null", os.O_RDWR)
            for standard, fd in ((0, given), (1, output)):
                os.dup2(nothing if fd is None else fd, standard)
            self.confine()
            os.dup2(nothing, 2)
            _close_all_but(keep)
            confined = True
            run()
            code = 0
        except SystemExit as leave:
            code = leave.code & 127 if isinstance(leave.code, int) else int(leave.code is not None)
        except BaseException as error:  # the boundary of the process: its parent sees that it failed
            if not confined:  # the caller reads this, and stops: a program must not fail for the sandbox's fault
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            with suppress(BaseException):
                sys.stdout.flush()
            os._exit(code)

    def confine(self) -> None:
        settings = self.settings
        linux.die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if os.getsid(0) != os.getpid():
            os.setsid()
        if self.processes is not None:
            linux.mount_scratch(settings["scratch_bytes"])
            scratch = linux.SCRATCH
        else:
            scratch = tempfile.mkdtemp(dir=self.folder)
        os.chdir(scratch)
        linux.set_limits(
            seconds=settings["cpu_seconds"],
            memory=settings["memory_bytes"],
            file_size=settings["file_bytes"],
            files=settings["open_files"],
            no_processes=self.filter is None,
        )
        if not linux.LINUX:
            return
        if self.processes is not None or os.geteuid() == 0:
            linux.drop_capabilities()
        linux.no_new_privileges()
        if self.landlock:
            linux.restrict_files(self.landlock, self.readable, [scratch])
        if self.filter is not None:
            linux.install_filter(self.filter)


def _reap(sides: Mapping[str, int], statuses: dict[int, int], flags: int) -> None:
    for pid in sides.values():
        if pid not in statuses:
            found, status = os.waitpid(pid, flags)
            if found:
                statuses[pid] = status


def _close_all_but(keep: set[int]) -> None:
    low = 3
    for fd in [*sorted(keep), os.sysconf("SC_OPEN_MAX") if not linux.LINUX else 1 << 20]:
        os.closerange(low, fd)
        low = fd + 1


def _tell(control: socket.socket, message: Mapping[str, Any]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


def run(control_fd: int, settings: Mapping[str, Any]) -> None:
    """Serves until the caller hangs up. With `namespaces` it enters them, or says why it cannot and ends."""
    control = socket.socket(fileno=control_fd)
    for name in settings["preload"]:
        with suppress(ImportError):
            __import__(name)
    os.environ.clear()
    os.environ.update({"PATH": "/usr/bin:/bin", "HOME": linux.SCRATCH, "TMPDIR": linux.SCRATCH, "LANG": "C.UTF-8"})
    if settings["namespaces"]:
        try:
            proc = linux.enter_namespaces(settings["readable"], settings["hidden"])
        except OSError as error:
            _tell(control, {"refused": str(error)})
            return
        child = os.fork()  # the first process of the namespace: when it ends, all others do
        if child:
            control.close()
            os.waitpid(child, 0)
            return
        linux.die_with_parent()
        server = Server(control, {**settings, "readable": ["/"], "hidden": []})
        server.processes = linux.own_processes(proc)
        os.close(proc)
    else:
        server = Server(control, settings)
    os.umask(0o077)
    sys.path += settings["packages"]
    gc.freeze()
    server.serve()
