"""The server's side of metered calls: a program may have so many threads at once, and make so many files.

No limit of the kernel's counts the threads of one program where there is no user namespace, and none counts files on a
disk. So the filter hands such calls on (`SECCOMP_RET_USER_NOTIF`): the caller sleeps, the kernel puts the question on a
descriptor, and the server lets the call go on or refuses it. 4,000 threads, made in half a second, would starve the
programs beside; refused here, they never come to be, however busy the machine is.

    worker                               server
    filter installed -- listener -->     accept
    clone(...)       -- question -->     64 already? EAGAIN : go on
    exit(...)        -- question -->     one less; go on
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import struct
from contextlib import suppress

from posttrain.rewards.sandbox.inside import linux
from posttrain.rewards.sandbox.inside.seccomp import number, seccomp_filter

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_QUESTION = struct.Struct("=QIIi60x")
"""`struct seccomp_notif`: identity, thread, flags, number of the call; the rest is not looked at."""
_ANSWER = struct.Struct("=QqiI")
"""`struct seccomp_notif_resp`: identity, value, error, flags."""
_GO_ON = 1
_PROBE_MS = 5000


class Meter:
    """The threads and files of one program; made before the fork, `installed` by the child, `served` by the parent."""

    def __init__(self, *, threads: int, files: int):
        self.threads, self.files = threads, files
        self.running, self.made = 1, 0
        self.ended: set[int] = set()
        """Threads whose end was told. Each counts once: a thread that a signal interrupts there asks again."""
        self._here, self._there = socket.socketpair()
        self._listener: int | None = None

    def installed(self, program: bytes) -> None:
        """In the child: the filter holds, and the parent gets the listener. The child has to close its own copy."""
        listener = linux.install_metered_filter(program)
        socket.send_fds(self._there, [b"m"], [listener])

    def forked(self) -> None:
        """In the parent, after the fork: the child's end of the line is closed, so that its death is seen."""
        self._there.close()

    def fileno(self) -> int:
        """What to wait on: the line to the child, and then the listener that came over it."""
        return self._here.fileno() if self._listener is None else self._listener

    def served(self, events: int) -> bool:
        """Does what `poll` reports for `fileno`; False once nothing more can come.

        A question is read only where `poll` promises one: on Linux before 6.11 the reading would wait for ever for a
        program that has ended.
        """
        if not events & select.POLLIN:
            return False
        if self._listener is not None:
            self._answer(self._listener)
            return True
        _, listeners, _, _ = socket.recv_fds(self._here, 1, 1)
        self._listener = listeners[0] if listeners else None
        return self._listener is not None

    def close(self) -> None:
        self._here.close()
        self._there.close()
        if self._listener is not None:
            os.close(self._listener)
            self._listener = None

    def _answer(self, listener: int) -> None:
        question = bytearray(_QUESTION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, question)
        except OSError:  # the program was ended meanwhile, or a signal came: `poll` says if the question is still there
            return
        identity, thread, _, call = _QUESTION.unpack(question)
        refusal = self._refusal(call)
        answer = _ANSWER.pack(identity, 0, -refusal, 0 if refusal else _GO_ON)
        with suppress(OSError):  # it asks no more, and so its call has not been made
            fcntl.ioctl(listener, _SEND, answer)
            if not refusal:
                self._count(call, thread)

    def _refusal(self, call: int) -> int:
        """The error that the call gets; 0 lets it go on."""
        if call == number("clone"):
            return errno.EAGAIN if self.running >= self.threads else 0
        if call == number("exit"):
            return 0
        return errno.EDQUOT if self.made >= self.files else 0

    def _count(self, call: int, thread: int) -> None:
        if call == number("clone"):
            # A thread's number comes again after all others only; it may then end a second time.
            self.running += 1
        elif call != number("exit"):
            self.made += 1
        elif thread not in self.ended:
            self.ended.add(thread)
            self.running -= 1


def works() -> bool:
    """Whether this kernel lets calls be metered (5.5 and later, if no filter further out listens): tried on a child."""
    program = seccomp_filter(meter_threads=True)
    if program is None:
        return False
    meter = Meter(threads=1, files=0)
    child = os.fork()
    if not child:
        try:
            linux.no_new_privileges()
            meter.installed(program)
            linux.end_thread()
        finally:
            os._exit(1)
    meter.forked()
    poll = select.poll()
    try:
        while not meter.ended:
            poll.register(meter, select.POLLIN)
            watched, ready = meter.fileno(), poll.poll(_PROBE_MS)
            if not ready or not meter.served(ready[0][1]):
                break
            poll.unregister(watched)
    finally:
        meter.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return bool(meter.ended)
