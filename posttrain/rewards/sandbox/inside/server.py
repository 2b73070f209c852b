"""The one trusted process of a sandbox: it forks the two sides of a job, ends them, and says how they ended.

It never sees a program or a test: a job arrives as open files, which only the side that needs them reads. What it
forks from holds the interpreter and these modules, so that neither side finds anything of the other's in its memory.

    run(control, settings)      control: a socket; settings: see Settings in the client

    job      one byte, the role (t: tests, s: script), the wall seconds, and the files
             t: the program, the tests, the result      s: the program, the input, the output
    answer   {"seconds": 0.02, "timed_out": false, "worker": 0, "harness": 0, "killed": ""}
             wait statuses; and the side that was killed by neither the server nor a limit
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from posttrain.rewards.sandbox.inside import harness, linux, meter, worker
from posttrain.rewards.sandbox.inside.removal import remove_tree
from posttrain.rewards.sandbox.inside.seccomp import seccomp_filter

JOB = struct.Struct("!cd")
PREFIX = "posttrain-sandbox-"
END_SECONDS = 1.0
"""For which a worker that closed its line may take to end."""
CPU_SLACK = 0.5
"""Seconds by which the CPU time that the kernel reports may lie below the limit that it enforced."""


class Server:
    def __init__(self, control: socket.socket, settings: Mapping[str, Any], processes: int | None):
        self.control = control
        self.settings = settings
        self.processes = processes
        """This process's PID namespace; None where there are no namespaces."""
        self.readable = linux.without_hidden(settings["readable"], settings["hidden"])
        self.filter = seccomp_filter()
        metered = self.filter is not None and meter.works()
        # In namespaces the scratch folder's file system counts files itself.
        self.metered = seccomp_filter(meter_threads=True, meter_files=processes is None) if metered else None
        """The filter of the untrusted side; None where the kernel cannot meter calls."""
        self.landlock = linux.landlock_version()
        self.base = tempfile.mkdtemp(prefix=PREFIX, dir=settings["scratch"]) if processes is None else ""
        """Where scratch folders are made; with namespaces each side has a file system of its own instead."""
        self.folder = ""
        """The job's."""
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
            "metered threads": self.metered is not None,
            "landlock": self.landlock > 0,
            "user namespace": spaces,
            "network namespace": spaces,
            "process namespace": spaces,
            "mount namespace": spaces,
        }

    def serve(self) -> None:
        try:
            _tell(self.control, {"layers": self.layers(), "folder": self.base})
            while True:
                data, files, _, _ = socket.recv_fds(self.control, JOB.size, 3)
                if not data:
                    return
                role, seconds = JOB.unpack(data)
                _tell(self.control, self.job(role, seconds, files))
        finally:
            if self.base:
                remove_tree(self.base)

    def job(self, role: bytes, seconds: float, files: list[int]) -> dict[str, Any]:
        started = time.monotonic()
        self.folder = tempfile.mkdtemp(dir=self.base) if self.base else ""
        sides: dict[str, int] = {}
        limits = {"threads": self.settings["threads"], "files": self.settings["files"]}
        counts = None if self.metered is None else meter.Meter(**limits)
        try:
            if role == b"t":
                program, tests, result = files
                (to_worker, from_harness), (to_harness, from_worker) = os.pipe(), os.pipe()
                sides["worker"] = self.fork(
                    lambda: worker.serve(program, to_worker, from_worker), {program, to_worker, from_worker}, counts
                )
                # The tests are trusted, and what they do is not metered.
                sides["harness"] = self.fork(
                    lambda: harness.judge(tests, result, from_harness, to_harness),
                    {tests, result, from_harness, to_harness},
                )
                files += [to_worker, from_harness, to_harness, from_worker]
            else:
                program, given, output = files
                sides["worker"] = self.fork(lambda: worker.script(program), {program}, counts, given, output)
            for fd in files:  # a side must see the end of a pipe when the other side dies
                os.close(fd)
            ending = self.wait(sides, started + seconds, counts)
        finally:
            if counts is not None:
                counts.close()
            if self.folder:
                remove_tree(self.folder)
        return {"seconds": time.monotonic() - started, "harness": None} | ending

    def wait(self, sides: Mapping[str, int], deadline: float, counts: meter.Meter | None) -> dict[str, Any]:
        """Until the deciding side has ended, the caller has gone or the time is up; then nothing of either is left."""
        decides = sides.get("harness", sides["worker"])
        ended: dict[int, tuple[int, float]] = {}
        poll = select.poll()
        for watched in (self.alarm, self.control, counts):
            if watched is not None:
                poll.register(watched, select.POLLIN)
        while decides not in ended and (left := deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(left * 1000))
            if self.control.fileno() in ready:  # no job comes before this one is answered: the caller has hung up
                break
            if self.alarm in ready:
                os.read(self.alarm, 4096)
                _reap(sides, ended, os.WNOHANG)
            if counts is not None and (asked := counts.fileno()) in ready:
                going_on = counts.served(ready[asked])
                if not going_on or counts.fileno() != asked:
                    poll.unregister(asked)
                if going_on:
                    poll.register(counts, select.POLLIN)
        timed_out = decides not in ended and deadline <= time.monotonic()
        if decides in ended and os.waitstatus_to_exitcode(ended[decides][0]) == harness.LINE_CLOSED:
            _await_end(sides, ended)
        _reap(sides, ended, os.WNOHANG)  # the last moment at which a death is not of this process's making
        killed = [name for name, pid in sides.items() if pid in ended and self.killed_from_outside(*ended[pid])]
        for pid in sides.values():
            if pid not in ended:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
        _reap(sides, ended, 0)
        statuses = {name: ended[pid][0] for name, pid in sides.items()}
        return {"timed_out": timed_out, "killed": "" if timed_out else " and ".join(killed)} | statuses

    def killed_from_outside(self, status: int, cpu_seconds: float) -> bool:
        """Whether a side that ended so was killed by the system or by somebody: it says nothing of the program.

        The filter lets no program send a signal, to itself either; the kernel's own reason is the limit of CPU time.
        """
        within_limit = cpu_seconds < self.settings["cpu_seconds"] - CPU_SLACK
        return self.filter is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9 and within_limit

    def fork(
        self,
        run: Callable[[], None],
        keep: set[int],
        counts: meter.Meter | None = None,
        given: int | None = None,
        output: int | None = None,
    ) -> int:
        """A confined child; as the first process of a PID namespace where there are namespaces."""
        if self.processes is not None:
            linux.next_child_is_first()
        try:
            pid = os.fork()
            if not pid:
                self.become(run, keep, counts, given, output)
        finally:
            if self.processes is not None:
                linux.children_are_own(self.processes)
        if counts is not None:
            counts.forked()
        return pid

    def become(
        self,
        run: Callable[[], None],
        keep: set[int],
        counts: meter.Meter | None,
        given: int | None,
        output: int | None,
    ) -> None:
        """The child: confined, then `run`, then gone; never returns."""
        code, confined = 1, False
        try:
            nothing = os.open("/dev/null", os.O_RDWR)
            for standard, fd in ((0, given), (1, output)):
                os.dup2(nothing if fd is None else fd, standard)
            self.confine(counts)
            os.dup2(nothing, 2)
            _close_all_but(keep)  # the listener with them, or the program would answer for itself
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

    def confine(self, counts: meter.Meter | None) -> None:
        settings = self.settings
        linux.die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if os.getsid(0) != os.getpid():
            os.setsid()
        if self.processes is not None:
            linux.mount_scratch(settings["scratch_bytes"], settings["files"])
            scratch = linux.SCRATCH
        else:
            scratch = tempfile.mkdtemp(dir=self.folder)
            os.environ.update({"HOME": scratch, "TMPDIR": scratch})
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
        if counts is not None and self.metered is not None:
            counts.installed(self.metered)
        elif self.filter is not None:
            linux.install_filter(self.filter)


def _reap(sides: Mapping[str, int], ended: dict[int, tuple[int, float]], flags: int) -> None:
    """Puts the wait status and the CPU seconds of every side that has ended into `ended`."""
    for pid in sides.values():
        if pid not in ended:
            found, status, used = os.wait4(pid, flags)
            if found:
                ended[pid] = status, used.ru_utime + used.ru_stime


def _await_end(sides: Mapping[str, int], ended: dict[int, tuple[int, float]]) -> None:
    """Gives a worker whose files are closed the moment that its end takes: killed in it, it would look like ours.

    Bounded, for a program may have closed its line itself and live on.
    """
    last = time.monotonic() + END_SECONDS
    while len(ended) < len(sides) and time.monotonic() < last:
        _reap(sides, ended, os.WNOHANG)
        time.sleep(0.001)


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
        processes = linux.own_processes(proc)
        os.close(proc)
        server = Server(control, {**settings, "readable": ["/"], "hidden": []}, processes)
    else:
        server = Server(control, settings, None)
    os.umask(0o077)
    sys.path += settings["packages"]
    gc.freeze()
    server.serve()
